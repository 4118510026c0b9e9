"""A temperature of its own for the decision to end the thinking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lengthwise.core.spec import param
from lengthwise.thinking.strategy import Draws, Strategy, StrategySpec

if TYPE_CHECKING:
    from torch import Tensor

    from lengthwise.thinking.chain import Sampler, Settings


@dataclass(frozen=True)
class StopTemperature(Draws):
    """The closing tag's log-probability is divided by T, all others stay: above 1 thinking ends sooner, below later.

    With p the tag's probability, it becomes p^(1/T) / (p^(1/T) + 1 - p): the larger T the more, and p at T = 1.
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="stop-temperature",
        summary="scales the temperature at which the end of the thinking is decided",
        formula="z_close = log p_close / T + logsumexp(z), other logits unchanged",
        parts=("draw",),
        papers=(197,),
        source="Making small language models efficient reasoners (https://arxiv.org/abs/2505.07961), TS",
        main="temperature",
        needs=("logits",),
        needs_tags=True,
        simplified="the paper's equation was not at hand: the tag's log-probability is scaled, not its raw logit, "
        "so that the effect is the same for logits that differ by a constant and grows with T; no TLDR training",
        test="tests/oracle/test_one_chain.py",
    )
    temperature: float = param(2.0, "above 1 the thinking ends sooner, below 1 later")

    def validate(self) -> None:
        """A temperature is positive."""
        self.require(self.temperature > 0, "temperature must be above 0")

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """The closing tag is one token."""
        if sampler is None or "logits" not in sampler.able or sampler.tags is None or _closing(sampler) is not None:
            return []
        return [f"stop-temperature needs a closing tag of one token; '{sampler.tags.close}' is more in {sampler.name}"]

    def settings(self, base: Settings, sampler: Sampler) -> Settings:
        """The same, with the tag's logit changed after what `base` does to logits."""
        closing, before = _closing(sampler), base.logits
        assert closing is not None  # `check` has seen it

        def scaled(logits: Tensor, ids: Sequence[int]) -> Tensor:
            logits = (logits if before is None else before(logits, ids)).clone()
            total = logits.logsumexp(-1)
            logits[closing] = (logits[closing] - total) / self.temperature + total
            return logits

        return base.but(logits=scaled)


def _closing(sampler: Sampler) -> int | None:
    """The id of the closing tag, None when it is not one token."""
    tokenizer: Any = getattr(sampler, "tokenizer", None)
    if tokenizer is None or sampler.tags is None:
        return None
    ids = tokenizer.encode(sampler.tags.close, add_special_tokens=False)
    return int(ids[0]) if len(ids) == 1 else None
