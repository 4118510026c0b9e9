"""Two-stage answers: the chain is written first, then the answer is asked for with the chain before the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lengthwise.core.spec import param
from lengthwise.thinking.answers import answer_in
from lengthwise.thinking.strategy import Solves, StrategySpec
from lengthwise.thinking.work import Solved

if TYPE_CHECKING:
    from lengthwise.thinking.chain import Messages
    from lengthwise.thinking.work import Work

TRIGGERS = {
    "any": "Therefore, the answer is",
    "number": "Therefore, the answer (arabic numerals) is",
    "choice": "Therefore, among A through E, the answer is",
    "yes-no": "Therefore, the answer (Yes or No) is",
}


@dataclass(frozen=True)
class TwoStage(Solves):
    """Stage 1: question -> chain z. Stage 2: question, z, 'Therefore, the answer is' -> answer.

    The second stage is greedy and does not think; its tokens are counted as other tokens. When nothing comes back, the
    answer of the chain itself is kept, with a note.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="two-stage",
        summary="asks for the answer in a second prompt that holds the chain",
        formula="z = model(question); answer = model(question + z + trigger)",
        parts=("solve",),
        papers=(147,),
        source="Zero-shot-CoT (https://arxiv.org/abs/2205.11916), sec. 3.1 and appendix A.5",
        main="form",
        simplified="the second prompt is a user's message, not a text that is completed",
        test="tests/oracle/test_one_chain.py",
    )
    form: Literal["any", "number", "choice", "yes-no"] = param(
        "any", "the form of the answer, which words the question"
    )
    most: int = param(32, "most tokens of the second stage")

    def validate(self) -> None:
        """Room for an answer."""
        self.require(self.most > 0, "most must be above 0")

    async def solve(self, work: Work, messages: Messages) -> Solved:
        """Both stages."""
        chain = await work.one(messages)
        chain.weight = 1.0
        written = "\n".join(filter(str.strip, [chain.thinking if work.sampler.tags else "", chain.text]))
        last = messages[-1]
        second = f"{last['content']}\n{written}\n{TRIGGERS[self.form]}"
        said = await work.ask([*messages[:-1], {**last, "content": second}], self.most)
        answer = answer_in(said, work.extract)
        if not answer:
            return Solved(
                chain.answer, [chain], notes=["two-stage: the second stage wrote no answer; the chain's stands"]
            )
        return Solved(answer, [chain])
