"""LazyLLM: tokens leave the computation layer by layer, and come back when they are needed (arXiv 2407.14057)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Positions, Prompts
from lengthwise.core.spec import Method, Spec, param
from lengthwise.prompt._lazy import LazySession

if TYPE_CHECKING:
    from lengthwise.core.attach import Run
    from lengthwise.core.session import Session


@dataclass(frozen=True)
class LazyLlm(Prompts):
    """After some layers only the share `keep` of the tokens goes on: those at which the last token looks most.

        s_i = 1/H sum_h A_h(last, i),   token i goes on when s_i is among the share `keep` of the largest

    A token that stays behind has no keys in later layers, and its hidden state waits. Every token that is written
    starts again with all tokens: one that it looks at, and that stayed behind, is computed from where it waits. No
    token is computed twice in one layer. Pruning late costs less quality and saves less: `first` says from where on the
    `stages` pruning layers lie evenly.
    """

    keep: float = param(0.7, "share of the tokens that goes on at each pruning layer")
    first: float = param(0.5, "share of the layers that lie before the first pruning")
    stages: int = param(3, "pruning layers, evenly spread from there on")

    spec: ClassVar[Spec] = Spec(
        name="lazyllm",
        family="prompt",
        summary="tokens the last one does not look at leave the computation layer by layer, and may come back",
        formula="s_i = mean_h A_h(last, i) in a pruning layer; the share `keep` of largest s_i goes on to later layers",
        seams=("prompt",),
        papers=(142,),
        source="arXiv 2407.14057, sections 3.1 to 3.3; no code was released, and the places and shares of pruning that "
        "its experiments use could not be found, so the defaults are ours",
        exact_when="keep=1",
        refuses="methods that decide which keys a query sees, which stay, or how they lie; position methods with "
        "several frames",
        simplified="text and question are read in one pass and are not saved; one waiting state is kept for every "
        "token, also for those that are through; batches are refused",
        neutral={"keep": 1.0},
        test="tests/oracle/test_lazyllm.py",
    )

    def validate(self) -> None:
        """A share and a number of layers."""
        self.require(0 < self.keep <= 1, "keep must be above 0 and at most 1")
        self.require(0 <= self.first < 1, "first must be at least 0 and below 1")
        self.require(self.stages >= 1, "stages must be at least 1")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """The reading has a cache and an attention of its own."""
        reasons = []
        if model is not None and model.layer_kinds and self.keep < 1:
            places = len(pruning_layers(model.layer_kinds, self.first, self.stages))
            if places < self.stages:
                reasons.append(f"the model has room for stages={places} pruning layers, not for {self.stages}")
        for other in others:
            taken = sorted({"select", "blocks", "score", "keep", "format", "tier", "observe"} & set(other.spec.seams))
            if taken:
                reasons.append(
                    f"lazyllm itself decides what is computed and held, which {other.spec.name} ({taken[0]}) changes"
                )
            elif isinstance(other, Positions) and other.moves_keys(model):
                reasons.append(f"lazyllm needs one position for every key, and {other.spec.name} gives it several")
        return reasons

    def passes(self, length: int, limit: int) -> list[tuple[int, int]] | None:
        """The whole text; that tokens leave on the way is not counted."""
        return [(length, 1)]

    def reading(self, run: Run) -> AbstractContextManager[Session | None]:
        """One cache for text, question and answer."""
        shares = dict.fromkeys(pruning_layers(run.facts.layer_kinds, self.first, self.stages), self.keep)
        return LazySession(run, shares, self.spec.name).attached()


def pruning_layers(kinds: Sequence[str], first: float, stages: int) -> list[int]:
    """The layers after which tokens are left behind: they cut what follows the share `first` of the depth into parts.

    Of full layers those that lie nearest: one that slides would leave behind all that lies beyond its window.
    """
    full = [i for i, kind in enumerate(kinds[:-1]) if kind == "full"]
    ends = [int((first + (1 - first) * j / stages) * len(kinds) + 1e-9) - 1 for j in range(stages)]
    return sorted({min(full, key=lambda i: (abs(i - end), i)) for end in ends}) if full else []
