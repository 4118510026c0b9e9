"""ThinK: store older keys with fewer channels, chosen by the queries (Xu et al. 2024, arXiv 2407.21018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.cache._evict import own_frames, reading_ended, remember
from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import NATIVE, Frame
from lengthwise.core.seams import Observes, Stores, View
from lengthwise.core.spec import Method, Spec, param
from lengthwise.core.store import KeyCodec


class Channels(KeyCodec):
    """Holds `count` of `dim` channels of every head; the others are read as 0."""

    def __init__(self, dim: int, count: int) -> None:
        self.dim, self.count = dim, count
        self.kept: Tensor | None = None  # [H, count], ascending

    @property
    def ready(self) -> bool:
        """Whether the channels are chosen."""
        return self.kept is not None

    def fresh(self) -> Channels:
        """Of the same size, not chosen yet."""
        return Channels(self.dim, self.count)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """[n, H, D] -> [n, H, count]; before the choice, something of that size."""
        if self.kept is None:
            return (x[..., : self.count],)
        return (x.gather(2, self.kept.to(x.device).expand(len(x), -1, -1)),)

    def decode(self, parts: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """[n, H, D] with zeros in the channels that were dropped."""
        assert self.kept is not None
        held = parts[0]
        out = torch.zeros(*held.shape[:2], self.dim, dtype=dtype, device=held.device)
        return out.scatter_(2, self.kept.to(held.device).expand(len(held), -1, -1), held.to(dtype))

    def state(self) -> dict[str, Tensor]:
        """The choice."""
        return {} if self.kept is None else {"kept": self.kept}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over a choice."""
        self.kept = state.get("kept")


@dataclass(frozen=True)
class ThinkK(Stores, Observes):
    """When the reading ends, every key head drops the `ratio` of channels that add least to the logits.

    Channel c counts mean_i q_ic^2 * mean_n k_nc^2, over the last `window` queries of the heads that share the keys and
    all keys held: the mean square of what it adds to q.k, up to correlations. Keys older than the `recent` ones are
    stored without these channels; values stay whole.
    """

    ratio: float = param(0.4, "share of the key channels that is dropped")
    recent: int = param(32, "recent tokens whose keys stay whole")
    window: int = param(32, "last queries that choose")

    spec: ClassVar[Spec] = Spec(
        name="think-k",
        family="cache",
        summary="older keys are stored without the channels that matter least to the last queries",
        formula="drop the ratio*D channels c of lowest mean_(i in last w) q_ic^2 * mean_n k_nc^2, in each key head",
        seams=("format", "observe"),
        papers=(89,),
        source="arXiv 2407.21018, section 3; ratio and sizes of the released scripts; scores as released "
        "(mean squares, heads of a group averaged)",
        exact_when="no more than `recent` tokens are read and written, or ratio is 0",
        refuses="methods that move keys or give them several positions; tiers",
        simplified="chosen once, when the first reading ends; keys written later lose the same channels as they age "
        "(released: they stay whole); zeros are multiplied, so memory is saved and not time",
        neutral={"ratio": 0.0},
        test="tests/oracle/test_think_k.py",
    )

    def validate(self) -> None:
        """Sizes that make sense."""
        self.require(0 <= self.ratio < 1, "ratio must be at least 0 and below 1")
        self.require(self.recent >= 0 and self.window >= 1, "recent must be at least 0 and window at least 1")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """One position frame; keys that wait for the choice cannot leave for a tier."""
        tiers = [m.spec.name for m in others if "tier" in m.spec.seams]
        return own_frames(others, model) + [
            f"keys wait in memory until the reading ends, and {name} (tier) would move them" for name in tiers
        ]

    def codec(self, facts: ModelFacts) -> Channels:
        """The channels that stay."""
        return Channels(facts.head_dim, facts.head_dim - int(facts.head_dim * self.ratio))

    def hot_tokens(self, facts: ModelFacts) -> int:
        """The recent keys."""
        return self.recent

    def watching(self, view: View) -> bool:
        """Once, when the reading has ended; until then the last queries are remembered."""
        codec = view.kv.keys[NATIVE].key_codec
        if codec is None or codec.ready:
            return False
        if reading_ended(view):
            return True
        remember(view, self.window)
        return False

    def observe(self, view: View, frame: Frame, slots: Tensor, weights: Tensor) -> None:
        """Choose the channels, by the queries before this token and the keys held."""
        lane = view.kv.keys[NATIVE]
        if not isinstance(codec := lane.key_codec, Channels) or codec.ready:
            return
        keys = lane.read(0, view.kv.n - len(view.positions)).float().square().mean(1)
        queries = view.state.pop("queries").to(keys.device).float().square().mean(1)
        worth = queries.unflatten(0, (len(keys), -1)).mean(1) * keys
        codec.kept = worth.sort(descending=True, stable=True).indices[:, : codec.count].sort().values
