"""MASFormer: full attention in a few layers, a window in all others (arXiv 2310.12442)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import EVERYTHING, Visible
from lengthwise.core.seams import Selects, View
from lengthwise.core.spec import Method, Spec, param


@dataclass(frozen=True)
class Masformer(Selects):
    """Attention spans mixed by layer: the last `full` full-attention layers see everything, the others a window.

    Key n is seen by query m in layer l iff l is one of the full layers, or m - n < window, or n < sinks. Layers are
    those that the model itself attends fully in, counted from 0.
    """

    per_layer = True

    full: int = param(4, "how many layers see everything")
    window: int = param(1024, "keys that a query sees in the other layers, its own included")
    sinks: int = param(4, "first tokens that are always seen: without them an untrained window breaks the model")
    place: str = param("last", "which layers are full: last, first, spread, or their numbers as 3-7-11")

    spec: ClassVar[Spec] = Spec(
        name="masformer",
        family="attention",
        summary="full attention in a few layers, a window in all others",
        formula="key n visible to query m in layer l iff l in full or m-n < w or n < s",
        seams=("select",),
        papers=(230,),
        source="arXiv 2310.12442, section 3: full attention in a few layers, a window in the others. Sizes are ours",
        exact_when="the input is no longer than the window, or every layer is full",
        refuses="numbers of layers that the model does not have",
        simplified="no training: the paper trains the model on with its spans. The window slides, where the paper's "
        "windows are blocks; the first tokens are ours",
        neutral={"full": 1 << 20},
        test="tests/oracle/test_masformer.py",
    )

    def validate(self) -> None:
        """Sizes, and a place that can be read."""
        self.require(self.full >= 0 and self.sinks >= 0 and self.window >= 1, "full, sinks from 0, window from 1")
        named = self.place in ("last", "first", "spread") or all(x.isdecimal() for x in self.place.split("-"))
        self.require(named, f"place={self.place} is not last, first, spread, or numbers of layers as 3-7-11")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Layers that are named must be there."""
        if model is None:
            return []
        gone = self.layers(model) - {i for i, kind in enumerate(model.layer_kinds) if kind == "full"}
        return [f"the model has no full-attention layer {n}" for n in sorted(gone)]

    def layers(self, facts: ModelFacts) -> frozenset[int]:
        """The layers that see everything."""
        there = [i for i, kind in enumerate(facts.layer_kinds) if kind == "full"]
        if self.place not in ("last", "first", "spread"):
            return frozenset(map(int, self.place.split("-")))
        count = min(self.full, len(there))
        if self.place == "spread":
            return frozenset(there[(2 * i + 1) * len(there) // (2 * count)] for i in range(count))
        return frozenset(there[:count] if self.place == "first" else there[len(there) - count :])

    def visible(self, view: View) -> Visible:
        """Everything, or sinks and window."""
        return EVERYTHING if view.layer in self.layers(view.facts) else Visible(rules=((self.window, self.sinks),))

    def tokens_seen(self, length: int, facts: ModelFacts) -> int:
        """The mean over layers."""
        there, full = max(1, facts.full_layers), len(self.layers(facts))
        windowed = min(length, self.window + self.sinks)
        return min(length, -(-(full * length + (there - full) * windowed) // there))
