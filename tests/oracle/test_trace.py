"""Traces: nothing of a chain is lost, kinds are told by their words, importance is the change of perplexity."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from lengthwise import models
from lengthwise.bench import problems
from lengthwise.errors import BadInput, BadParameter
from lengthwise.thinking._pir import ELICIT, Judge
from lengthwise.thinking._rows import read_chains
from lengthwise.thinking._trace_html import page
from lengthwise.thinking.trace import KINDS, Step, Trace, prune, trace

TALK = """Okay, so I need to find s. We set up 9/s + t = 4.

So s = 2.5 km/h.

Wait, let me check that. 9/2.5 = 3.6, so t = 0.4. That matches.

Alternatively, use the formula. That gives 2.5 again.

Hmm, I made a mistake in the second line. It should be 24.

Now, the walk takes 204 minutes. So s = 2.5 km/h.
"""


def kinds(text: str) -> list[str]:
    return [s.kind for s in trace(text).steps]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" 3+4=7; 7+2=9;", ["progress", "progress"]),
        (" 3+4=8; wait; 3+4=7; 7+2=9;", ["progress", "correction", "progress"]),
        (" 3+4=7; check: 3+4=7; 7+2=9;", ["progress", "verification"]),
        (" 3+4=7; wait; check: 3+4=7;", ["progress", "verification"]),
        (" 3+4=7; check: 3+4=8; wait; 3+4=7; 7+2=9;", ["progress", "verification", "correction", "verification"]),
        (" 3+4=7; 3+4=7;", ["progress", "repetition"]),
        (" 3+4=7; check: 3+4=7;\nNow, 7+2=9;", ["progress", "verification", "progress"]),
        ("So it is 4. But wait, is it?", ["progress", "verification"]),
        ("So it is 4. That is wrong. Now it is 5.", ["correction", "progress"]),
        ("It is 4.\nAnother way: count.\nOne by one.", ["progress", "alternative"]),
        ("The checkers are on the board.\nHe waits.", ["progress", "progress"]),
        ("", []),
        ("\n\n", ["progress"]),
    ],
)
def test_kinds(text: str, found: list[str]) -> None:
    assert kinds(text) == found


def test_a_talk() -> None:
    found = trace(TALK, "204")
    assert [s.kind for s in found.steps] == [
        *["progress"] * 2, "verification", "alternative", "correction", "progress", "repetition"
    ]  # fmt: skip
    assert found.steps[found.answered].text.strip() == "Now, the walk takes 204 minutes."  # type: ignore[index]
    assert found.after(found.answered) == found.steps[-1].tokens
    assert found.patterns == 6


def test_nothing_is_lost_and_tokens_are_all_there() -> None:
    _, tokenizer = models.load("pocket-reasoner", dtype="float32", device="cpu")
    spans = Judge.spans
    draw = random.Random(1)
    texts = [TALK, "¿3 + 4 = 7?\n¡Sí!"]
    for kind in problems.KINDS:
        lines, _ = problems.worked(problems.make(kind, 3, draw), draw, slip=0.3, checks=0.9)
        texts.append("".join(lines))
    for text in texts:
        judge = object.__new__(Judge)
        judge.tokenizer = tokenizer
        found = trace(text, "", lambda t, judge=judge: spans(judge, t))  # type: ignore[misc]
        assert "".join(s.text for s in found.steps) == text
        assert found.tokens == len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert sum(found.by_kind().values()) == found.tokens
        assert found.unit == "tokens"
        assert trace(text).unit == "words"


@pytest.mark.parametrize(
    ("text", "answer", "at"),
    [
        (" 3+4=7; 7+2=9; 9+0=9;", "9", 1),
        (" 7+2=9; 9+8=7;", "7", 1),  # an operand is no result
        (" push 3: 1 2 3; reverse: 3 2 1;", "3 2 1", 1),
        (" push 3: 3 2 1 4; drop: 2 1 4;", "3 2 1", None),
        (" b=a; a=4;", "4", 1),
        ("Put it in \\boxed{x+1}. Then rest", "x+1", 0),
        ("It is 1,234 in all", "1234", 0),
        ("so 45 of them", "5", None),
        (" 3+4=7;", "", None),
    ],
)
def test_where_the_answer_first_stands(text: str, answer: str, at: int | None) -> None:
    assert trace(text, answer).answered == at


# --- importance


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(*models.load("pocket-reasoner", dtype="float32", device="cpu"))


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


QUESTION = "What is 3+4+5+9+2 mod 10?"
ONCE = " 3+4=7; 7+5=2; 2+9=1; 1+2=3;"


def test_importance_and_knowledge_are_those_of_the_formulas(judge: Judge) -> None:
    text = ONCE + " check:" + ONCE
    found = trace(text, "3", judge.spans)
    judge.judge(found, ask(QUESTION), " 3.")
    from lengthwise.thinking.tags import render

    prompt = render(ask(QUESTION), judge.tokenizer, judge.tags)

    def say(chain: str) -> list[float]:
        """log p of the answer's tokens, one pass for each."""
        ids = judge.tokenizer(prompt + chain + "</think>", add_special_tokens=False)["input_ids"]
        out = []
        for token in judge.tokenizer(" 3.", add_special_tokens=False)["input_ids"]:
            with torch.no_grad():
                logits = judge.model(torch.tensor([ids])).logits[0, -1]
            out.append(float(torch.log_softmax(logits, -1)[token]))
            ids = [*ids, token]
        return out

    def perplexity(chain: str) -> float:
        return math.exp(-sum(say(chain)) / len(say(chain)))

    parts = [s.text for s in found.steps]
    assert len(parts) == 5  # four steps, one check
    for i, step in enumerate(found.steps):
        without = "".join(parts[:i] + parts[i + 1 :])
        assert step.importance == pytest.approx(math.log(perplexity(without) / perplexity(text)), abs=1e-3)
        assert step.known == pytest.approx(math.exp(sum(say("".join(parts[: i + 1])))), abs=1e-3)
    assert found.sure == next(i for i, s in enumerate(found.steps) if (s.known or 0) >= 0.5)
    found.steps[-1].pruned = True
    prune(found, 1.0)
    assert found.kept() == ONCE


def test_planted_redundant_steps_rank_below_essential_ones(judge: Judge) -> None:
    """The last step of the way, without a check behind it, matters more than a whole check of it."""
    draw, below = random.Random(5), 0
    for _ in range(8):
        problem = problems.make("sum", 4, draw)
        once = "".join(problem.steps)
        alone = trace(once, problem.answer, judge.spans)
        judge.judge(alone, ask(problem.question), f" {problem.answer}.")
        twice = trace(once + " check:" + once, problem.answer, judge.spans)
        judge.judge(twice, ask(problem.question), f" {problem.answer}.")
        check, last = twice.steps[-1], alone.steps[-1]
        assert check.kind == "verification"
        below += (check.importance or 0) < (last.importance or 0) / 2
    assert below >= 7


def test_pruning_takes_the_least_important_of_each_functional_kind() -> None:
    rows = [
        ("progress", -9.0),
        ("verification", 0.3),
        ("verification", -0.2),
        ("verification", 0.1),
        ("verification", 2),
    ]
    rows += [("correction", 5.0), ("correction", 4.0), ("repetition", -9.0), ("alternative", -1.0)]
    found = Trace([Step(f"{i};", k, 1, importance=v) for i, (k, v) in enumerate(rows)])  # type: ignore[arg-type]
    prune(found, 0.5)
    assert [i for i, s in enumerate(found.steps) if s.pruned] == [2, 3, 6, 8]
    assert found.kept() == "0;1;4;5;7;"
    prune(found, 1.0)
    assert [i for i, s in enumerate(found.steps) if not s.pruned] == [0, 7]
    prune(found, 0.0)
    assert not any(s.pruned for s in found.steps)
    with pytest.raises(BadParameter, match="ratio"):
        prune(found, 1.5)
    with pytest.raises(BadParameter, match="needs a model"):
        prune(trace(ONCE), 0.5)


def test_pruning_says_what_it_does_to_the_answer(judge: Judge) -> None:
    found = trace(ONCE + " check:" + ONCE, "3", judge.spans)
    judge.judge(found, ask(QUESTION), " 3.", ratio=1.0)
    alone, both = (trace(t, "3", judge.spans) for t in (ONCE, ONCE + " check:" + ONCE))
    assert found.kept() == ONCE
    assert found.change == pytest.approx(found.steps[-1].importance)
    for other in (alone, both):
        judge.judge(other, ask(QUESTION), " 3.")
        assert other.change is None


def test_a_long_text_is_asked_for_its_answer_alone(judge: Judge) -> None:
    found, same = trace(ONCE, "3", judge.spans), trace(ONCE, "3", judge.spans)
    judge.judge(found, ask(QUESTION), "We add.\nSo it is 3.\n")
    from lengthwise.thinking.tags import render

    prompt = render(ask(QUESTION), judge.tokenizer, judge.tags)
    (each,) = judge.log_probs([(prompt + ONCE + "</think>" + ELICIT.rstrip(), " 3")])
    assert found.steps[-1].known == pytest.approx(math.exp(sum(each)), rel=1e-4)
    judge.judge(same, ask(QUESTION), "")
    assert same.steps[-1].known == found.steps[-1].known


def test_what_cannot_be_judged_says_so(judge: Judge) -> None:
    found = trace(ONCE, "", judge.spans)
    judge.judge(found, ask(QUESTION))
    assert found.steps[0].importance is None
    assert "no answer" in found.notes[0]
    long = trace(ONCE * 40, "3", judge.spans)
    judge.judge(long, ask(QUESTION), " 3.")
    assert long.steps[0].importance is None
    assert "window 512" in long.notes[0]


def test_batches_change_nothing(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("<s>" + ONCE[: 8 * i], f" {i}") for i in (1, 4, 2, 3)]
    whole = judge.log_probs(pairs)
    monkeypatch.setattr("lengthwise.thinking._pir.BATCH", 1)
    for a, b in zip(whole, judge.log_probs(pairs)):
        assert a == pytest.approx(b, abs=1e-4)


# --- files


def test_rows_of_think_are_read(tmp_path: Path) -> None:
    chains = [
        {"thinking": " 3+4=7;", "text": " 7.", "answer": "7", "thinking_tokens": 8},
        {"thinking": "x", "text": ""},
    ]
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": "q"}], "expected": "8", "chains": chains},
        {"problem": "p", "thinking": "t;", "text": " the answer is 5."},
        {"id": "b", "status": "failed", "error": "no"},
        {"id": "c", "chains": [{"thinking": 3}]},
        {"id": "d"},
        [1],
    ]
    file = tmp_path / "f.jsonl"
    file.write_text("\n".join([json.dumps(r) for r in rows] + ["{broken", ""]))
    found, broken = read_chains(file)
    assert [(s.id, s.answer, s.right, s.tokens) for s in found] == [
        ("a.1", "8", False, 8), ("a.2", "8", False, 0), ("2", "5", None, 0)
    ]  # fmt: skip
    assert [s.messages and s.messages[0]["content"] for s in found] == ["q", "q", "p"]
    assert [line for line, _ in broken] == [4, 5, 6, 7]
    assert "not JSON" in broken[-1][1]


def test_texts_are_read(tmp_path: Path) -> None:
    file = tmp_path / "f.txt"
    file.write_text("Q?\n<think>one\ntwo</think>\nthe answer is 2.\n<think>three</think> 3.\n")
    found, broken = read_chains(file)
    assert [(s.id, s.thinking, s.answer) for s in found] == [("1", "one\ntwo", "2"), ("2", "three", "3")]
    assert not broken
    file.write_text("no tags; at all")
    assert [s.thinking for s in read_chains(file)[0]] == ["no tags; at all"]
    file.write_text(" \n")
    with pytest.raises(BadInput, match="has no chain"):
        read_chains(file)
    with pytest.raises(BadInput, match="there is no file"):
        read_chains(tmp_path / "nothing")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="not UTF-8"):
        read_chains(file)


def test_the_page_escapes_what_models_wrote() -> None:
    found = trace("<script>alert(1)</script> = 4; wait; 4 = 4;", "4")
    found.id = "<b>"
    text = page([found], "a & b")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "a &amp; b" in text
    assert "&lt;b&gt;" in text
    assert all(kind in text for kind in KINDS)
