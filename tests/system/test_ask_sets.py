"""`ask` with set-prompt: several documents side by side, in any order."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import lengthwise
import small_reader
from lengthwise._ask import ask, ask_all
from lengthwise._reader import frame
from lengthwise.cli import app
from lengthwise.documents import Corpus, Document, encode, encode_parts
from lengthwise.errors import BadInput, StackRefused

QUESTIONS = ["What is the key of red?", "Where is the cat?"]
DOCUMENTS = [
    Document("b.txt", "The key of red is 17. The sum of all is 4."),
    Document("a.txt", "Where the cat of Oslo is, no key is. " * 9),
    Document("c.txt", "The cat is red."),
]
GIVEN: dict[str, Any] = {"model": (small_reader.model(), small_reader.tokenizer()), "max_new_tokens": 6}


def test_the_order_of_the_files_does_not_matter() -> None:
    answers = [
        ask_all(list(order), QUESTIONS, stack="set-prompt", **GIVEN) for order in itertools.permutations(DOCUMENTS)
    ]
    for index in range(len(QUESTIONS)):
        assert len({found[index].answer for found in answers}) == 1
        assert all(found[index].evidence for found in answers)
    plain = [ask(list(order), QUESTIONS[0], stack="dense", **GIVEN) for order in itertools.permutations(DOCUMENTS)]
    assert len({p.answer for p in plain}) > 1


def logits(order: tuple[Document, ...]) -> tuple[Tensor, str]:
    """Of the first token of the answer, through the pieces that `ask` is made of; and the stack that `ask` used."""
    model, tokenizer = GIVEN["model"]
    corpus, prompt = Corpus(order, apart=True), frame(QUESTIONS[0], tokenizer)
    ids, offsets, borders = encode_parts(corpus.parts, tokenizer)
    assert (offsets[0][0], offsets[-1][1]) == (0, len(corpus.text))
    parts = "-".join(str(len(prompt.head) + b) for b in borders)
    full = torch.cat([prompt.head, ids, prompt.after])[None]
    with lengthwise.stack(f"set-prompt:parts={parts}").on(model) as run, torch.no_grad():
        return model(full, past_key_values=run.cache()).logits[0, -1], f"set-prompt:parts={parts}"


def test_logits_are_the_same_and_ask_uses_these_borders() -> None:
    found = []
    for order in itertools.permutations(DOCUMENTS):
        last, stack = logits(order)
        found.append(last)
        assert ask(list(order), QUESTIONS[0], stack="set-prompt", **GIVEN).stack == stack
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-5)


def test_parts_are_read_as_they_are_alone() -> None:
    tokenizer = small_reader.tokenizer()
    corpus = Corpus(DOCUMENTS, apart=True)
    ids, _, borders = encode_parts(corpus.parts, tokenizer)
    for document, (a, b) in zip(DOCUMENTS, itertools.pairwise(borders), strict=True):
        text = f"# {document.name}\n\n{document.text}\n\n"
        assert ids[a:b].tolist() == encode(text, tokenizer)[0].tolist()
    for name, start, end in corpus.locate(0, len(corpus.text)):
        text = next(d.text for d in DOCUMENTS if d.name == name)
        assert end == len(text) + 2 * (name != "c.txt") or text[start:end] == text
    assert Corpus(DOCUMENTS).text + "\n\n" == corpus.text


def test_beside_other_methods_and_saved(tmp_path: Path) -> None:
    first = ask(DOCUMENTS, QUESTIONS[0], stack="set-prompt + offload:hot=16,pages=1", save=tmp_path, **GIVEN)
    again = ask(DOCUMENTS, QUESTIONS[0], stack="set-prompt + offload:hot=16,pages=1", save=tmp_path, **GIVEN)
    assert again.answer == first.answer == ask(DOCUMENTS, QUESTIONS[0], stack="set-prompt", **GIVEN).answer
    assert again.ledger.tokens_read < first.ledger.tokens_read


def test_what_is_refused() -> None:
    with pytest.raises(BadInput, match="several documents"):
        ask(DOCUMENTS[:1], QUESTIONS[0], stack="set-prompt", **GIVEN)
    with pytest.raises(StackRefused, match=r"set-prompt .* xl3m"):
        ask(DOCUMENTS, QUESTIONS[0], stack="set-prompt + xl3m", **GIVEN)
    given = ask(DOCUMENTS, QUESTIONS[0], stack="set-prompt:parts=1-9-20", **GIVEN)
    assert given.stack == "set-prompt:parts=1-9-20"


def test_from_the_command_line(tmp_path: Path) -> None:
    folder, names = tmp_path / "model", []
    for part in GIVEN["model"]:
        part.save_pretrained(folder)
    for document in DOCUMENTS:
        (tmp_path / document.name).write_text(document.text)
        names.append(str(tmp_path / document.name))
    outputs = [
        CliRunner().invoke(
            app, ["ask", *order, "-q", "Where?", "-m", str(folder), "-s", "set-prompt", "--max-new-tokens", "4"]
        )
        for order in (names, names[::-1])
    ]
    assert [o.exit_code for o in outputs] == [0, 0], outputs[0].stderr
    assert len({o.stdout.split("Evidence")[0] for o in outputs}) == 1
