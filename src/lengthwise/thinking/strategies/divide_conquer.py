"""A few chains first; only where they disagree is more spent, with what they found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lengthwise.core.spec import param
from lengthwise.thinking.chain import Messages
from lengthwise.thinking.strategies._vote import same_chains, vote
from lengthwise.thinking.strategy import Solves, StrategySpec
from lengthwise.thinking.work import Solved, Work, Written

_OPTION = re.compile(r"^\s*\(?([A-Za-z])[).:]\s")


@dataclass(frozen=True)
class DivideConquer(Solves):
    """`k` chains give a confidence, the share of the answer that most of them give; where it is low they are redone.

    CS = max_a |{i : answer_i = a}| / k. CS >= `sure`: that answer. Otherwise `k` more chains, asked with the reasoning
    of the first ones as prior knowledge (`how=knowledge`), with only the answers that came up left to choose from
    (`choices`), with both, or as before (`again`), and they vote; with `again` the first ones vote, too.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="divide-conquer",
        summary="k chains; k more, told what the first ones found, only where those do not agree",
        formula="CS = max_a n_a / k; CS >= sure: argmax_a n_a, else the majority of k chains on the enriched question",
        parts=("solve",),
        papers=(18,),
        source="https://arxiv.org/abs/2401.05190: confidence score by self-consistency, PKR, FCR and both",
        main="k",
        simplified=(
            "the threshold is a number given beforehand, where the paper divides a data set by the score; the "
            "words of the prompts are ours (no code was released); 'again' is for models of a fixed form of question"
        ),
        test="tests/oracle/test_many_chains.py",
    )
    k: int = param(5, "chains of each round")
    sure: float = param(0.8, "share of equal answers (0 to 1) at which the first round decides")
    how: Literal["knowledge", "choices", "both", "again"] = param("choices", "what the second round is given")

    def validate(self) -> None:
        """A share of at least one chain."""
        self.require(self.k >= 1, "k must be at least 1")
        self.require(0 < self.sure <= 1, "sure must be above 0 and at most 1")

    async def solve(self, work: Work, messages: Messages) -> Solved:
        """The first round, and the second where it is needed."""
        first = await work.many(messages, self.k)
        solved = vote(first)
        solved.notes += same_chains(work, self.k)
        share = solved.confidence or 0.0
        if share >= self.sure - 1e-9:
            solved.notes.append(f"confidence {share:.2f}: the first round decided, {self.k} chains saved")
            return solved
        second = await work.many(self._enriched(messages, first), self.k)
        again = vote(first + second if self.how == "again" else second)
        if not again.answer:
            solved.notes.append(
                f"confidence {share:.2f}, but the second round gave no answer: that of the first is taken"
            )
            return solved
        if self.how != "again":
            for chain in first:
                chain.weight = 0.0
        again.notes.append(f"confidence {share:.2f} after the first round: a second round was asked")
        again.notes += same_chains(work, self.k)
        return again

    def _enriched(self, messages: Messages, first: Sequence[Written]) -> Messages:
        """The messages with what the first round found put into the last of them."""
        question = messages[-1]["content"]
        answers = list(dict.fromkeys(chain.answer for chain in first if chain.answer))
        if self.how in ("choices", "both") and len(answers) > 1:
            question = choices(question, answers)
        if self.how in ("knowledge", "both"):
            question = knowledge(question, [chain.thinking or chain.text for chain in first])
        return [*messages[:-1], {**messages[-1], "content": question}]


def choices(question: str, answers: Sequence[str]) -> str:
    """The question with only the `answers` left to choose from (FCR).

    Where it lists options by letter ("A) ...", one a line) and all answers are such letters, the lines of the other
    letters are taken out; otherwise the answers are listed after it.
    """
    lines = question.splitlines()
    letters = [found[1].upper() if (found := _OPTION.match(line)) else "" for line in lines]
    wanted = {answer.strip("().: ").upper() for answer in answers}
    if wanted <= {letter for letter in letters if letter}:
        return "\n".join(line for line, letter in zip(lines, letters) if not letter or letter in wanted)
    return f"{question}\n\nThe answer is one of these: {'; '.join(answers)}."


def knowledge(question: str, reasoning: Sequence[str]) -> str:
    """The question after earlier reasoning about it (PKR)."""
    found = "\n\n".join(f"[{i}] {text.strip()}" for i, text in enumerate(reasoning, 1))
    return (
        f"Earlier reasoning about the question below, parts of which may be wrong:\n\n{found}\n\nQuestion: {question}"
    )
