"""Thinks only where it is needed: by the model's own token, or by a router fitted on problems with known answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lengthwise.core.spec import param
from lengthwise.errors import BadInput
from lengthwise.thinking.strategy import Modes, Strategy, StrategySpec

if TYPE_CHECKING:
    from lengthwise.thinking.chain import Messages, Sampler
    from lengthwise.thinking.work import Work


@dataclass(frozen=True)
class Mode(Modes):
    """Without `router`: the model begins to think, and when `token` is among its first tokens, it answers at once.

    With `router`: it answers at once where P(right without thinking) >= `threshold`, by a logistic regression on
    features of the question and of the model's answer without thinking. It is fitted by

        python -m lengthwise.thinking fit-mode PROBLEMS.jsonl --model M --out ROUTER.json

    What is written to decide counts as other tokens, and as waiting.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="mode",
        summary="decides for each problem whether to think, by a token or a fitted router",
        formula="think unless first tokens hold `token`, or unless sigmoid(w x + b) >= threshold",
        parts=("mode",),
        papers=(149, 96, 117, 1),
        source="Thinkless (https://arxiv.org/abs/2505.13379), AutoL2S (https://arxiv.org/abs/2505.22662), LHRM "
        "(https://arxiv.org/abs/2505.14631), Adaptive deep reasoning (https://arxiv.org/abs/2505.20101)",
        main="router",
        needs_tags=True,
        simplified="inference only: the papers train models to choose. A token that a model writes in place of the "
        "opening tag is not seen, since chains begin inside the section. The router is ours: the papers have none",
        test="tests/oracle/test_mode.py",
    )
    router: str | None = param(None, "a file of a fitted router")
    threshold: float = param(0.5, "with a router: how probable a right answer without thinking must be")
    token: str = param("<EASY>", "without a router: the text by which the model says that it need not think")
    within: int = param(4, "without a router: the token must be among the first so many")

    def validate(self) -> None:
        """Values in range."""
        self.require(0 <= self.threshold <= 1, "threshold is a probability, 0 to 1")
        self.require(self.within > 0, "within must be above 0")
        self.require(bool(self.token.strip()), "token must not be empty")
        if self.router is None:
            self.require(self.threshold == Mode.threshold, "threshold is a router's: give router, or leave it out")
        else:
            own = self.token == Mode.token and self.within == Mode.within
            self.require(own, "token and within are for models that say it themselves: leave them or router out")

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """The router can be read, and the sampler can give what it looks at."""
        if self.router is None:
            return []
        from lengthwise.thinking.router import load_router

        try:
            router = load_router(self.router)
        except BadInput as error:
            return [f"mode: {error}"]
        if sampler is not None and router.asks and "logprobs" not in sampler.able:
            return [f"mode: the router looks at log-probabilities, which {sampler.name} does not give"]
        return []

    async def thinks(self, work: Work, messages: Messages) -> bool:
        """By router or token."""
        if self.router is None:
            return not await self._says(work, messages)
        from lengthwise.thinking.router import load_router, look

        router = load_router(self.router)
        seen = await look(work.sampler, messages, router.features, settings=work.settings)
        work.spent.other_tokens += seen.written
        work.spent.waiting_tokens += seen.written
        work.spent.prompt_tokens += seen.read
        return router(seen.x) < self.threshold

    async def _says(self, work: Work, messages: Messages) -> bool:
        """Whether the model begins with the token."""
        chain = await work.sampler.chain(messages)
        try:
            piece = await chain.write(self.within, (self.token,), work.settings.but(temperature=0.0))
        finally:
            await chain.close()
            work.spent.other_tokens += chain.written
            work.spent.waiting_tokens += chain.written
            work.spent.prompt_tokens += chain.read
        return piece.reason == "stop"
