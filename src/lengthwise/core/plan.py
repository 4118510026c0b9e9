"""What a stack means for each kind of layer of one model: frames, rotary, layout, and the methods to ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lengthwise.core.facts import LayerKind, ModelFacts
from lengthwise.core.frames import FAR, NATIVE, PLAIN, UNROTATED, Frame, Rotation, stay
from lengthwise.core.rope import Rope
from lengthwise.core.seams import Blocks, Keeps, Observes, Positions, Scores, Selects, Stores
from lengthwise.core.spec import Method
from lengthwise.core.store import KeyCodec, Layout


@dataclass(frozen=True)
class LayerPlan:
    """How one kind of layer runs. `raw`: queries and keys arrive un-rotated. `rules`: the model's sliding window."""

    kind: LayerKind
    frames: tuple[Frame, ...]
    rope: Rope
    raw: bool
    layout: Layout
    key_layouts: Mapping[Rotation, Layout]
    rules: tuple[tuple[int, int], ...] = ()
    position: Positions | None = None
    selects: tuple[Selects, ...] = ()
    blocks: Blocks | None = None
    scores: Scores | None = None
    keeps: Keeps | None = None
    observes: tuple[Observes, ...] = ()

    @property
    def rotates_on_read(self) -> bool:
        """Whether the keys' angles change with the length, so that they are stored un-rotated."""
        return self.position is not None and self.position.follows_length()

    @property
    def in_cache(self) -> bool:
        """Whether positions are slot numbers."""
        return self.position is not None and self.position.in_cache

    @property
    def per_layer(self) -> bool:
        """Whether what a block may see differs between layers of this kind."""
        return any(s.per_layer for s in self.selects)


def plan_layers(
    methods: tuple[Method, ...], facts: ModelFacts, ropes: dict[LayerKind, Rope]
) -> dict[LayerKind, LayerPlan]:
    """The plan for full layers, from the methods, and for sliding layers, which run as the model built them."""
    position = next((m for m in methods if isinstance(m, Positions)), None)
    frames = position.frames(facts) if position else PLAIN
    rope = ropes["full"]
    moving = position is not None and position.follows_length()
    if position is not None and not moving:
        changed = position.frequencies(facts, rope.inv_freq, 0)
        rope = rope.with_frequencies(*changed) if changed else rope
    one_frame = len(frames) == 1 and frames[0].query is stay and frames[0].key == NATIVE
    in_cache = position is not None and position.in_cache
    # a rotary module that sliding layers share would scale their frequencies too
    shared = facts.sliding_window is not None and rope.layer_type is None and rope is not ropes["full"]
    raw = not one_frame or moving or in_cache or shared
    rotations = tuple(dict.fromkeys(f.key for f in frames))
    if moving:
        rotations = (UNROTATED,)
    elif in_cache and UNROTATED not in rotations:
        rotations = (*rotations, UNROTATED)
    layout = _layout(methods, facts)
    evicts = any(isinstance(m, Keeps) for m in methods)
    plans = {
        "full": LayerPlan(
            kind="full",
            frames=frames,
            rope=rope,
            raw=raw,
            layout=Layout() if isinstance(layout.codec, KeyCodec) else layout,
            key_layouts={r: _key_layout(r, frames, layout, evicts or moving or in_cache) for r in rotations},
            position=position,
            selects=tuple(m for m in methods if isinstance(m, Selects)),
            blocks=next((m for m in methods if isinstance(m, Blocks)), None),
            scores=next((m for m in methods if isinstance(m, Scores)), None),
            keeps=next((m for m in methods if isinstance(m, Keeps)), None),
            observes=tuple(m for m in methods if isinstance(m, Observes)),
        )
    }
    if facts.sliding_window is not None:
        plans["sliding"] = LayerPlan(
            kind="sliding",
            frames=PLAIN,
            rope=ropes.get("sliding", ropes["full"]),
            raw=raw,
            layout=Layout(),
            key_layouts={NATIVE: Layout()},
            rules=((facts.sliding_window, 0),),
        )
    return plans  # type: ignore[return-value]


def _layout(methods: tuple[Method, ...], facts: ModelFacts) -> Layout:
    stores = [m for m in methods if isinstance(m, Stores)]
    codec = next((c for m in stores if (c := m.codec(facts)) is not None), None)
    arena = next((a for m in stores if (a := m.arena(facts)) is not None), None)
    if codec is None and arena is None:
        return Layout()
    return Layout(codec=codec, arena=arena, hot=max(m.hot_tokens(facts) for m in stores))


def _key_layout(rotation: Rotation, frames: tuple[Frame, ...], layout: Layout, all_needed: bool) -> Layout:
    """A lane whose frames reach only so far forgets older keys, unless evictions make slots and distances differ."""
    reach = max((f.high for f in frames if f.key == rotation), default=FAR)
    return layout if all_needed or reach >= FAR else Layout(hot=reach, forget=True)
