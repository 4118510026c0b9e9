"""Chains that grow a step at a time under a verifier's eyes: the best prefixes go on, in several copies each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from lengthwise.core.spec import param
from lengthwise.thinking import verify
from lengthwise.thinking.chain import Chain, Messages, Sampler
from lengthwise.thinking.strategies._vote import best
from lengthwise.thinking.strategy import Solves, Strategy, StrategySpec
from lengthwise.thinking.work import Solved, Work, Written, together

ENDS: dict[str, tuple[str, ...]] = {"paragraph": ("\n\n",), "line": ("\n",), "semicolon": (";",)}


@dataclass(eq=False)
class _Beam:
    """A chain on its way. `written` counts the tokens of this branch alone, `tokens` and `steps` the shared ones, too.

    `score` is that of its last step, None without a verdict.
    """

    chain: Chain
    written: Written = field(default_factory=Written)
    steps: list[str] = field(default_factory=list)
    tokens: int = 0
    score: float | None = None
    ended: bool = False
    pruned: bool = False

    async def fork(self) -> _Beam:
        """Another beam that goes on from here."""
        return _Beam(await self.chain.fork(), steps=list(self.steps), tokens=self.tokens)


@dataclass(frozen=True)
class StepSearch(Solves):
    """Beam search over steps: of `k` prefixes the best k / `width` go on, in about `width` copies each.

    A round writes one step of every open prefix, judges the prefixes, keeps the best k / width different ones and forks
    them in turn until there are k again, chains that ended included. The best scored of the chains that ended answers.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="step-search",
        summary="chains grow by steps; a verifier keeps the best prefixes, which go on in several copies",
        formula="a round: k prefixes + one step each -> score(prefix) -> the best k/width, forked until there are k",
        parts=("solve",),
        papers=(103,),
        source=(
            "https://arxiv.org/abs/2504.16828, section 4 (verifier-guided search): k = 16, width = 4, 20 rounds and "
            "steps up to a blank line in https://github.com/mukhal/ThinkPRM"
        ),
        main="k",
        needs=("prefix",),
        simplified=(
            "no trained verifier (see best-of-n) and no lookahead; chains that ended count among the k, where there "
            "the search goes on with k open ones"
        ),
        test="tests/oracle/test_verification.py",
    )
    k: int = param(16, "prefixes at a time, chains that ended included")
    width: int = param(4, "k/width prefixes go on from each round")
    rounds: int = param(20, "steps until the open chains are written to their end")
    ends: Literal["paragraph", "line", "semicolon"] = param("paragraph", "what ends a step")
    verifier: str = param(verify.SELF, "who judges: 'self' (the same model) or module:function (question, steps)")
    checks: int = param(1, "verifications of each prefix by 'self'; their mean counts")
    score: verify.Score = param("min", "how verdicts on steps become one, where there is none on the whole")

    def validate(self) -> None:
        """k is a number of groups of `width`."""
        self.require(min(self.k, self.width, self.rounds, self.checks) >= 1, "k, width, rounds, checks: at least 1")
        self.require(self.k % self.width == 0, f"k={self.k} must be a multiple of width={self.width}")

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """It writes chains step by step itself: nothing else may act inside them."""
        inside = [s.spec.name for s in others if set(s.spec.parts) - {"problem", "solve"}]
        refused = [f"step-search writes its chains by steps itself, and {name} acts inside a chain" for name in inside]
        return [*refused, *verify.reasons(self.verifier, self.spec.name)]

    async def solve(self, work: Work, messages: Messages) -> Solved:
        """The search, then the answers of the chains that ended, and the best of them."""
        every: list[_Beam] = []
        try:
            for _ in range(self.k):
                every.append(_Beam(await work.sampler.chain(messages)))
            beams = list(every)
            for number in range(self.rounds):
                going = [beam for beam in beams if not beam.ended]
                await self._round(work, messages, going, last=number == self.rounds - 1)
                ended = [beam for beam in beams if beam.ended]
                kept = _distinct_best([beam for beam in going if not beam.ended], self.k // self.width)
                for beam in going:
                    beam.pruned = not beam.ended and beam not in kept
                if not kept:
                    break
                copies = [await kept[i % len(kept)].fork() for i in range(self.k - len(ended) - len(kept))]
                every += copies
                beams = [*ended, *kept, *copies]
            ended = [beam for beam in every if beam.ended]
            await together(*(_answer(work, beam) for beam in ended))
            work.spent.waiting_tokens += max((beam.written.answer_tokens for beam in ended), default=0)
        finally:
            for beam in every:
                await _settle(work, beam)
        answered = [beam for beam in ended if beam.written.answer]
        solved = best([beam.written for beam in answered], [beam.score for beam in answered])
        solved.notes.append(f"{sum(beam.pruned for beam in every)} of {len(every)} branches were given up")
        return solved

    async def _round(self, work: Work, messages: Messages, beams: Sequence[_Beam], *, last: bool) -> None:
        """One step more of every beam, in the last round all the rest, and a score of each."""
        before = [beam.chain.written for beam in beams]
        await together(*(self._step(work, beam, last) for beam in beams))
        work.spent.waiting_tokens += max(beam.chain.written - was for beam, was in zip(beams, before))
        prefixes = [beam.steps for beam in beams]
        judged = await verify.judge(work, messages, prefixes, self.verifier, checks=self.checks)
        for beam, judgements in zip(beams, judged):
            beam.score = verify.mean_score(judgements, self.score)

    async def _step(self, work: Work, beam: _Beam, last: bool) -> None:
        """One step more of one beam, which ends when its thinking does, or its tokens."""
        tags, chain, written = work.sampler.tags, beam.chain, beam.written
        close = () if tags is None else (tags.close,)
        left = work.budget(chain, None, None) - beam.tokens
        if left <= 0:
            beam.ended, written.reason = True, "budget"
            return
        was = chain.written
        try:
            settings = work.settings.but(seed=work.seed())
            piece = await chain.write(left, close if last else (*close, *ENDS[self.ends]), settings)
        finally:
            written.thinking_tokens += chain.written - was
            beam.tokens += chain.written - was
        if going := piece.stop in ENDS[self.ends]:
            await chain.put(piece.stop)
        if step := piece.text + piece.stop * going:
            beam.steps.append(step)
        if not going:
            reasons = {"stop": "closed", "end": "closed" if tags is None else "never closed", "length": "budget"}
            beam.ended, written.reason = True, reasons[piece.reason]


async def _answer(work: Work, beam: _Beam) -> None:
    """What a chain says after its thinking."""
    tags, written = work.sampler.tags, beam.written
    written.thinking = beam.chain.text
    if tags is not None and written.reason != "never closed":
        await beam.chain.put(tags.close)
    await work.answer(beam.chain, written, work.settings.but(seed=work.seed()))


async def _settle(work: Work, beam: _Beam) -> None:
    """Count what a beam cost, and close it."""
    written = beam.written
    if not beam.ended:
        written.thinking, written.reason = beam.chain.text, "pruned" if beam.pruned else "cancelled"
        work.spent.cancelled_chains += 1
        work.spent.cancelled_tokens += written.thinking_tokens
    work.spent.chains += 1
    work.chains.append(written)
    work.account(beam.chain, written)
    await beam.chain.close()


def _distinct_best(beams: Sequence[_Beam], count: int) -> list[_Beam]:
    """The `count` beams with the highest scores, of those with the same text one; no verdict is below every score."""
    distinct = list({beam.chain.text: beam for beam in reversed(beams)}.values())[::-1]
    return sorted(distinct, key=lambda beam: -1.0 if beam.score is None else beam.score, reverse=True)[:count]
