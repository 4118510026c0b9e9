"""JRT: what the model sees, token by token, and evidence that counts both copies."""

from __future__ import annotations

import pytest
import torch

import lengthwise
import small_reader
from lengthwise._reader import frame
from lengthwise.documents import Document, encode

TEXT = small_reader.TEXT[:330]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_model_reads_question_texts_question(times: int) -> None:
    model, tokenizer = small_reader.model(), small_reader.tokenizer()
    prompt, (ids, _) = frame(small_reader.QUESTION, tokenizer), encode(TEXT, tokenizer)
    line = torch.tensor(tokenizer("\n")["input_ids"])
    seen = [prompt.head, ids, prompt.after]
    if times > 1:
        seen = [prompt.head, prompt.question, *[line, ids] * times, prompt.after]
    with lengthwise.stack(f"jrt:times={times}").on(model) as run:
        reader = small_reader.reader(run, TEXT)
        got = reader.read(0, reader.choose(0, 9), 9)
    assert got.text == small_reader.written(model, torch.cat(seen), 9)
    assert got.kept.tolist() == list(range(len(ids)))
    assert run.ledger.acted["jrt"] == (times > 1)


def test_evidence_is_the_attention_on_both_copies() -> None:
    """Against attention probabilities of the unmodified model, eager: the strongest head of every layer, summed."""
    model, tokenizer = small_reader.model(), small_reader.tokenizer()
    prompt, (ids, _) = frame(small_reader.QUESTION, tokenizer), encode(TEXT, tokenizer)
    line = torch.tensor(tokenizer("\n")["input_ids"])
    before = [prompt.head, prompt.question, line, ids, line, ids]
    full = torch.cat([*before, prompt.after])[None]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(full, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    weights = sum(a[0, :, -1].amax(0) for a in attentions)
    second = sum(map(len, before)) - len(ids)
    first = second - len(line) - len(ids)
    want = weights[first : first + len(ids)] + weights[second : second + len(ids)]
    with lengthwise.stack("jrt").on(model) as run:
        reader = small_reader.reader(run, TEXT)
        got = reader.read(0, reader.choose(0, 1), 1)
    torch.testing.assert_close(got.mass, want, atol=1e-5, rtol=1e-4)


def test_through_ask() -> None:
    given = {"model": (small_reader.model(), small_reader.tokenizer()), "max_new_tokens": 4}
    documents = [Document("a", TEXT)]
    once = lengthwise.ask(documents, small_reader.QUESTION, stack="dense", **given)
    twice = lengthwise.ask(documents, small_reader.QUESTION, stack="jrt", **given)
    tokenizer = small_reader.tokenizer()
    more = len(encode(TEXT, tokenizer)[0]) + len(frame(small_reader.QUESTION, tokenizer).question) + 2
    assert twice.ledger.tokens_read == once.ledger.tokens_read + more
    assert all(p.text == TEXT[p.start : p.end] for p in twice.evidence)
