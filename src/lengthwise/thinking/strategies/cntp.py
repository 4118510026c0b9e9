"""Cautious next-token prediction: where the next token is in doubt, several continuations are tried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lengthwise.core.spec import param
from lengthwise.errors import BadInput
from lengthwise.thinking.chain import DEFAULT, Piece
from lengthwise.thinking.strategy import Draws, Strategy, StrategySpec
from lengthwise.thinking.work import together

if TYPE_CHECKING:
    from torch import Tensor

    from lengthwise.thinking.chain import Chain, Sampler, Settings
    from lengthwise.thinking.work import Work

MARKS = (".", ",", "\n", "?", "!", ":", ";", ")", "]", "}")  # where a trial ends


@dataclass(frozen=True)
class Cntp(Draws):
    """At a step of entropy H = -sum p log p (nats), N = clamp(floor(trials (H - low) / (high - low)), 1, trials).

    With N = 1 the token is drawn as ever. With more, N trials go on from this step, each up to the next punctuation
    mark or the end, and the chain goes on after the trial of lowest perplexity, exp(-mean log p of its tokens).
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="cntp",
        summary="where the next token is in doubt, tries several ways to the next punctuation, keeps the likeliest",
        formula="N = clamp(floor(trials (H - low) / (high - low)), 1, trials); keep argmin exp(-mean log p)",
        parts=("draw",),
        papers=(242,),
        source="Cautious Next Token Prediction (https://arxiv.org/abs/2507.03038), algorithm 1",
        main="trials",
        needs=("prefix", "logprobs", "logits"),
        simplified="N as in algorithm 1 (the released code has 1 + floor((trials - 1) u)); entropy and perplexity are "
        "those of the model, before temperature and nucleus; a trial also ends where a watcher wants to look, and a "
        "mark that lies in a string which the chain stops at does not end one; what follows a mark inside its token is "
        "dropped; the pass that found the doubt is lost",
        test="tests/oracle/test_cntp.py",
    )
    trials: int = param(10, "most trials at one step")
    low: float = param(0.01, "entropy in nats from which on the number of trials grows")
    high: float = param(1.5, "entropy in nats at which there are most trials")

    def validate(self) -> None:
        """Thresholds ascend."""
        self.require(self.trials >= 1, "trials must be at least 1")
        self.require(0 <= self.low < self.high, "low must be 0 or more, and below high")

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """Chains that another strategy writes by itself would not be cautious."""
        own = [s.spec.name for s in others if s.spec.name == "step-search"]
        return [f"{name} writes its steps itself, so cntp would never act: use one of them" for name in own]

    def settings(self, base: Settings, sampler: Sampler) -> Settings:
        """As they were. Raises BadInput at temperature 0, where all trials are the same."""
        if base.temperature == 0:
            raise BadInput("cntp chooses between sampled trials, and at temperature 0 they are all the same: raise it")
        return base

    def chain(self, work: Work, chain: Chain) -> Chain:
        """The chain, to be written with care."""
        return CautiousChain(self, work, chain)

    def count(self, entropy: float) -> int:
        """Trials at a step of this entropy in nats."""
        share = (entropy - self.low) / (self.high - self.low)
        return max(1, min(self.trials, math.floor(share * self.trials)))


class _DoubtError(Exception):
    """Raised in place of drawing a token: the step wants `trials` trials."""

    def __init__(self, trials: int) -> None:
        super().__init__(f"{trials} trials")
        self.trials = trials


class CautiousChain:
    """A chain that is exchanged for the best of its trials where it doubts; see `chain.Chain`.

    `written` counts what was kept; discarded trials are other tokens of the work. `side` are the tokens by which the
    longest trials were longer than those that were kept. Its forks are plain chains.
    """

    def __init__(self, strategy: Cntp, work: Work, chain: Chain) -> None:
        self._strategy, self._work, self._now = strategy, work, chain
        self.prompt = chain.prompt
        self.written, self.side = 0, 0
        self._read = 0
        self._seed: int | None = None

    @property
    def text(self) -> str:
        """All text after the prompt."""
        return self._now.text

    @property
    def read(self) -> int:
        """Tokens of the prompt that were read for this chain and its trials."""
        return self._read + self._now.read

    async def write(self, most: int, stop: Sequence[str] = (), settings: Settings = DEFAULT) -> Piece:
        """As for any chain, with trials on the way."""
        start, first, said = len(self.text), self.written, list[float]()
        piece = Piece("", 0, "length")
        while (left := most - (self.written - first)) > 0:
            doubt, piece = await self._steps(left, stop, settings, said)
            if doubt is None:
                break
            piece = await self._try(doubt, left=most - (self.written - first), stop=stop, settings=settings)
            said += piece.logprobs
            if piece.reason == "stop" and piece.stop not in stop:
                await self._now.put(piece.stop)
            elif piece.reason != "length" or piece.tokens == 0:
                break
        came = piece.stop if piece.stop in stop else ""
        reason = "length" if piece.reason == "stop" and not came else piece.reason
        logprobs = tuple(said) if settings.logprobs else ()
        return Piece(self.text[start:], self.written - first, reason, came, logprobs)

    async def _steps(
        self, most: int, stop: Sequence[str], settings: Settings, said: list[float]
    ) -> tuple[int | None, Piece]:
        """Tokens up to a doubt: its trials, if it came, and the piece, which is empty then."""
        before, base = self._now.written, settings.logits
        drawn = list[float]()
        last: list[Tensor] = []

        def look(logits: Tensor, ids: Sequence[int]) -> Tensor:
            logp = logits.log_softmax(-1)
            if last:
                drawn.append(float(last.pop()[ids[-1]]))  # what came of the step before
            used = logits if base is None else base(logits, ids)
            log_used = used.log_softmax(-1)
            trials = self._strategy.count(-float((log_used.exp() * log_used.clamp(min=-1e4)).sum()))
            if trials > 1:
                raise _DoubtError(trials)
            last.append(logp)
            return used

        try:
            piece = await self._now.write(most, stop, self._own(settings.but(logits=look)))
            said += piece.logprobs
            return None, piece
        except _DoubtError as doubt:
            said += drawn
            return doubt.trials, Piece("", 0, "length")
        finally:
            self.written += self._now.written - before

    async def _try(self, trials: int, *, left: int, stop: Sequence[str], settings: Settings) -> Piece:
        """`trials` continuations from here, of which the best becomes this chain; its piece."""
        if left <= 0:
            return Piece("", 0, "length")
        marks = [m for m in MARKS if not any(m in s for s in stop)]
        seeds = [None if settings.seed is None else self._work.seed() for _ in range(trials)]
        forks: list[Chain] = []
        kept = self._now
        try:
            for _ in range(trials):
                forks.append(await self._now.fork())
            writes = (
                f.write(left, (*stop, *marks), settings.but(seed=seed, logprobs=True))
                for f, seed in zip(forks, seeds, strict=True)
            )
            pieces = await together(*writes)
            best = min(range(trials), key=lambda i: _perplexity(pieces[i]))
            kept = forks[best]
            self._seed = seeds[best]
            self.written += kept.written
            self.side += max(f.written for f in forks) - kept.written
            return pieces[best]
        finally:
            for chain in (self._now, *forks):
                if chain is not kept:
                    self._work.spent.other_tokens += chain.written if chain is not self._now else 0
                    self._read += chain.read
                    await chain.close()
            self._now = kept

    def _own(self, settings: Settings) -> Settings:
        """With the seed of the trial that was kept last, so that its random numbers go on."""
        return settings if self._seed is None else settings.but(seed=self._seed)

    async def put(self, text: str) -> None:
        """Add text."""
        await self._now.put(text)

    async def fork(self) -> Chain:
        """A plain chain with the same text."""
        return await self._now.fork()

    async def layered(self, answers: Sequence[str]) -> list[list[float]]:
        """As for the chain itself."""
        return await self._now.layered(answers)

    async def close(self) -> None:
        """Free what is held."""
        await self._now.close()


def _perplexity(piece: Piece) -> float:
    return math.exp(-sum(piece.logprobs) / len(piece.logprobs)) if piece.logprobs else math.inf
