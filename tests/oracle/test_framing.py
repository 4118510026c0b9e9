"""Samples put to a model: the tokens of the parts are the tokens of the whole."""

from __future__ import annotations

import pytest
import torch

from lengthwise import models
from lengthwise.bench import registry
from lengthwise.bench.build import build
from lengthwise.bench.framing import Framing
from lengthwise.errors import BadInput


@pytest.fixture(scope="module")
def framing() -> Framing:
    return Framing(models.load_tokenizer("pocket-reader"))


@pytest.mark.parametrize("name", ["needle", "pairs", "trace", "names", "copy:words=20", "common-words", "problems"])
def test_parts_are_encoded_as_the_whole_would_be(framing: Framing, name: str) -> None:
    sample = build(registry.parse(name), framing, 400, seed=1)
    document, offsets, prompt = framing.prompt(sample)
    assert len(offsets) == len(document)
    assert [offsets[0][0], offsets[-1][1]] == [0, len(sample.document)] if offsets else not sample.document
    parts = torch.cat([prompt.head, document, prompt.after]).tolist()
    assert parts == [framing.tokenizer.bos_token_id, *framing.ids(framing.text(sample))]
    assert framing.size(sample) == len(parts) + framing.answer_tokens(sample)
    assert framing.text(sample).endswith(f" Answer: {sample.prefix}")


def test_chat_template_goes_around_the_whole(framing: Framing) -> None:
    tokenizer = models.load_tokenizer("pocket-reader")
    with pytest.raises(BadInput, match="no chat template"):
        Framing(tokenizer, "chat")
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}<s>model:"
    chat = Framing(tokenizer)
    sample = build(registry.parse("needle:keys=1"), chat, 200, seed=1)
    assert chat.text(sample) == f"<s>user: {sample.document}\n\n{sample.question}</s><s>model:{sample.prefix}"
    assert chat.digest() != framing.digest()
    assert chat.size(sample) <= 200
