"""ALR2: what is asked first, how quotes are found in the text, and what is read in the end."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import lengthwise
import small_reader
from lengthwise._reader import frame
from lengthwise.documents import encode
from lengthwise.prompt.alr2 import RETRIEVE, Alr2, locate, quotes, sentences

TEXT = (
    'Anna lives in Oslo. Her cat is called "Ice"! Nobody knows why.\n\n'
    "A list:\n- Oslo has 700,000 people\n- Bergen less"
)


class Canned:
    """A look whose model writes what it is told to."""

    def __init__(self, text: str, says: str) -> None:
        self.text, self.says, self.asked = text, says, []
        self.offsets = [(m.start(), m.end()) for m in re.finditer(r"\S+\s*", text)]  # a token is a word

    def write(self, lead: str, most: int) -> str:
        self.asked.append((lead, most))
        return self.says


def choose(says: str, text: str = TEXT, limit: int = 100, **given: Any) -> tuple[list[str], Any]:
    look = Canned(text, says)
    choice = Alr2(**given).choose(len(look.offsets), limit, look)  # type: ignore[arg-type]
    return ["".join(text[slice(*o)] for o in look.offsets[a:b]).strip() for a, b in choice.spans], choice


def test_sentences_cover_the_text() -> None:
    spans = sentences(TEXT)
    assert "".join(TEXT[a:b] for a, b in spans) == TEXT
    assert [TEXT[a:b].strip() for a, b in spans] == [
        "Anna lives in Oslo.", 'Her cat is called "Ice"!', "Nobody knows why.", "A list:",
        "- Oslo has 700,000 people", "- Bergen less",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("quote", "found", "share"),
    [
        ("Anna lives in Oslo.", "Anna lives in Oslo.", 1.0),
        ("anna LIVES in Bergen", "Anna lives in Oslo.", 0.75),
        ("Oslo", "Anna lives in Oslo.", 1.0),  # both sentences that hold it have four words: the first
        ("Oslo has 700,000", "- Oslo has 700,000 people", 1.0),
        ("entirely made up", None, 0.0),
    ],
)
def test_a_quote_is_the_sentence_that_holds_most_of_its_words(quote: str, found: str | None, share: float) -> None:
    hit = locate(quote, TEXT, sentences(TEXT))
    if found is None:
        assert hit is None
        return
    assert hit is not None
    assert TEXT[slice(*hit[0])].strip() == found
    assert hit[1] == pytest.approx(share)


def test_of_sentences_that_hold_as_much_the_shortest_is_taken() -> None:
    text = "Nobody knows really why that is. Why not?"
    hit = locate("why", text, sentences(text))
    assert hit is not None
    assert text[slice(*hit[0])] == "Why not?"


def test_what_was_quoted_is_kept_in_the_order_of_the_text_and_inventions_are_dropped() -> None:
    says = "1. Oslo has 700,000 people.\n* Anna lives in Oslo. The moon is made of cheese.\n--\n"
    assert len(quotes(says)) == 4  # the number in front is one, and a line without words is none
    assert choose("Oslo has 700,000 people.\nAnna lives in Oslo. The moon is of cheese.")[0] == [
        "Anna lives in Oslo.", "- Oslo has 700,000 people",
    ]  # fmt: skip


def test_neighbours_are_joined_and_nothing_is_kept_twice() -> None:
    parts, choice = choose("Nobody knows why.\nHer cat is called Ice.\nNobody knows why.")
    assert parts == ['Her cat is called "Ice"! Nobody knows why.']
    assert len(choice.scores) == 2


def test_a_paraphrase_counts_as_far_as_match_says() -> None:
    assert choose("Anna lives in sunny Rome")[1].spans != choose("Anna lives in sunny Rome", match=0.9)[1].spans


def test_without_any_fact_the_whole_text_is_read() -> None:
    for says in ("", "I cannot find it.", "..."):
        assert choose(says)[1].spans == ((0, len(Canned(TEXT, "").offsets)),)


def test_what_does_not_fit_is_left_out_the_surest_first() -> None:
    assert choose("Nobody knows. Anna lives in Rome", limit=4)[0] == ["Nobody knows why."]


def test_both_steps_are_what_the_plain_model_does() -> None:
    model, tokenizer = small_reader.model(), small_reader.tokenizer()
    prompt, (ids, _) = frame(small_reader.QUESTION, tokenizer), encode(small_reader.TEXT[:300], tokenizer)
    lead = torch.tensor(tokenizer(RETRIEVE)["input_ids"])
    first = torch.cat([prompt.head, ids, lead, prompt.question, prompt.tail])
    with lengthwise.stack("alr2:facts=20,match=0.3").on(model) as run:
        reader = small_reader.reader(run, small_reader.TEXT[:300])
        heard = []
        write = reader.write
        reader.write = lambda *a: heard.append(write(*a)) or "the sum of all is 5"  # type: ignore[method-assign]
        got = reader.read(0, choice := reader.choose(0, 6), 6)
    assert heard == [small_reader.written(model, first, 20)]
    ((a, b),) = choice.spans
    assert "The sum of all is 5." in tokenizer.decode(ids[a:b])
    assert b - a < 30
    assert got.text == small_reader.written(model, torch.cat([prompt.head, ids[a:b], prompt.after]), 6)
    assert run.ledger.acted["alr2"] == 1
