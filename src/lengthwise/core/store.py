"""What a layer holds of one sequence: lanes of keys and values, with the position of every slot.

A *lane* is one growing tensor [H, n, D]: a hot part in the model's dtype on the model's device, and, when the stack
quantises or offloads, a cold part of older tokens in coded form on an arena (RAM or a file).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lengthwise.core.arena import Arena, Lru, Ram
from lengthwise.core.frames import UNROTATED, Rotation
from lengthwise.core.growing import Growing, by_head
from lengthwise.kernels import Coded

_SLACK = 64  # tokens by which a hot part may overrun before it is moved in one go
_DECODED = 4096  # tokens that are decoded at once: bounds what a codec needs in between


class Codec(Protocol):
    """The coded form of tokens [n, H, D]: `encode` and `decode` are inverse up to the codec's rounding."""

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """[n, H, D] -> tensors whose first axis is n."""

    def decode(self, parts: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """The inverse: [n, H, D] in `dtype`."""

    def coded(self, parts: tuple[Tensor, ...]) -> Coded | None:
        """The same tokens [H, n, D] in the form that kernels read as it is; None: there is no such form."""


class Plain:
    """The codec that changes nothing."""

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """[n, H, D] as it is."""
        return (x,)

    def decode(self, parts: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """The tensor as it was."""
        return parts[0]

    def coded(self, parts: tuple[Tensor, ...]) -> None:
        """Not coded."""


class KeyCodec:
    """A codec of keys alone that every lane has its own copy of, since it codes in a way that the lane's keys decide.

    Until it is `ready`, the lane codes nothing. Heads are the second axis of every part.
    """

    @property
    def ready(self) -> bool:
        """Whether it was decided how to code."""
        raise NotImplementedError

    def fresh(self) -> KeyCodec:
        """A copy for one lane."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """[n, H, D] -> tensors whose first axes are n and H."""
        raise NotImplementedError

    def decode(self, parts: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """The inverse: [n, H, D] in `dtype`."""
        raise NotImplementedError

    def coded(self, parts: tuple[Tensor, ...]) -> Coded | None:
        """There is no form that kernels read."""
        return None

    def state(self) -> dict[str, Tensor]:
        """What was decided, as tensors that `restore` reads back."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what another copy decided."""


@dataclass(frozen=True)
class Layout:
    """How a lane is stored: codec and arena of the cold part, and how many recent tokens stay hot (None: all).

    `forget`: there is no cold part; what is older than the hot tokens is never asked for again.
    """

    codec: Codec | None = None
    arena: Callable[[], Arena] | None = None
    hot: int | None = None
    forget: bool = False

    @property
    def cold(self) -> bool:
        """Whether lanes have a cold part."""
        return self.hot is not None and not self.forget


class Lane:
    """One growing tensor [H, n, D]; slots are counted from 0 and stay in order."""

    def __init__(self, heads: int, dim: int, dtype: torch.dtype, device: torch.device, layout: Layout) -> None:
        self.shape, self.dtype, self.device = (heads, dim), dtype, device
        self._hot = Growing(heads, (dim,), dtype, device)
        self._hot_limit = layout.hot
        codec = layout.codec
        self.key_codec = codec.fresh() if isinstance(codec, KeyCodec) else None
        self._codec: Codec = self.key_codec or codec or Plain()
        self._arena: Arena | None = None
        if layout.cold:
            self._arena = layout.arena() if layout.arena else Ram(device)  # coded only: it stays on the device
        self._cold_n = 0

    def __len__(self) -> int:
        return self._cold_n + self._hot.n

    @property
    def cold_tokens(self) -> int:
        """How many of the oldest tokens are in the cold part."""
        return self._cold_n

    def append(self, x: Tensor) -> None:
        """Add tokens x [H, m, D] at the end. Raises StoreError when there is no memory for them."""
        start = self._hot.n
        self._hot.resize(start + x.shape[1])
        self._hot.tensor[:, start : self._hot.n] = x

    def settle(self) -> None:
        """Move what is older than the hot part's limit to the cold part; called after the tokens were attended to."""
        if self.key_codec is not None and not self.key_codec.ready:
            return
        if self._hot_limit is not None and self._hot.n > self._hot_limit + _SLACK:
            count = self._hot.n - self._hot_limit
            if self._arena is not None:
                self._arena.append(self._codec.encode(self._hot.tensor[:, :count].transpose(0, 1)))
            self._cold_n += count
            self._hot.keep(torch.arange(count, self._hot.n))

    def read(self, start: int, stop: int) -> Tensor:
        """Slots [start, stop) as [H, stop - start, D]. When all are hot: a view, good until the lane changes."""
        hot = self._hot.tensor[:, max(0, start - self._cold_n) : max(0, stop - self._cold_n)]
        return hot if start >= self._cold_n else self._with_cold(slice(start, min(stop, self._cold_n)), hot)

    def coded(self, start: int, stop: int) -> Coded | None:
        """Cold slots [start, stop) as codes that kernels read; None when they are not in such a form."""
        if self._arena is None or self.device.type != "cpu":
            return None
        return self._codec.coded(self._arena.read(slice(start, stop)))

    def gather(self, slots: Tensor) -> Tensor:
        """Slots [m] (ascending, on the CPU) as [H, m, D], a copy."""
        split = int(torch.searchsorted(slots, self._cold_n))
        rest = (slots[split:] - self._cold_n).to(self.device)
        hot = self._hot.tensor.index_select(1, rest)  # of the whole room: torch is slow where heads lie apart
        return self._with_cold(slots[:split], hot) if split else hot

    def keep(self, slots: Tensor) -> None:
        """Drop every slot but `slots` [m] or, for each head, [H, m] (ascending, on the CPU).

        Coded tokens are moved as they are, not re-coded.
        """
        if slots.dim() == 2 and self._cold_n:
            self._keep_by_head(slots)
            return
        if slots.dim() == 2:
            self._hot.keep(slots)
            return
        split = int(torch.searchsorted(slots, self._cold_n))
        self._hot.keep(slots[split:] - self._cold_n)
        if self._arena is not None:
            self._arena.keep(slots[:split])
        self._cold_n = split

    def _keep_by_head(self, slots: Tensor) -> None:
        """As `keep`, when heads may keep different numbers of cold tokens: those that not all do become hot."""
        assert self._arena is not None
        split = int(torch.searchsorted(slots, torch.full((len(slots), 1), self._cold_n)).min())
        rest = slots[:, split:]
        first = int(rest.min()) if rest.numel() else len(self)
        hot = by_head(self.read(first, len(self)), (rest - first).to(self.device))
        parts = tuple(
            by_head(p.transpose(0, 1), slots[:, :split].to(p.device)).transpose(0, 1)  # heads are the second axis
            for p in self._arena.read(slice(0, self._cold_n))
        )
        self._arena.keep(torch.empty(0, dtype=torch.long))
        self._arena.append(parts)
        self._cold_n = split
        self._hot.resize(hot.shape[1])
        self._hot.tensor[:, : self._hot.n] = hot

    def rewrite(self, x: Tensor) -> None:
        """Hold x [H, m, D] instead of what was held."""
        if self._arena is not None:
            self._arena.keep(torch.empty(0, dtype=torch.long))
        self._cold_n = 0
        self._hot.resize(x.shape[1])
        self._hot.tensor[:, : x.shape[1]] = x

    def nbytes(self) -> tuple[int, int]:
        """(bytes in memory, bytes on disk): what is held, not what is reserved."""
        hot = self._hot.nbytes()
        if self._arena is None:
            return hot, 0
        cold = self._arena.nbytes()
        if isinstance(self._arena, Lru):
            hot += self._arena.cached_bytes()
        return (hot, cold) if self._arena.on_disk else (hot + cold, 0)

    def state(self) -> dict[str, Tensor]:
        """Everything held, as tensors that `restore` reads back; views where that is possible."""
        parts = self._arena.read(slice(0, self._cold_n)) if self._arena is not None and self._cold_n else ()
        cold = {f"cold{i}": p for i, p in enumerate(parts)}
        return {"hot": self._hot.tensor[:, : self._hot.n], **cold, **self._decided()}

    def outline(self) -> dict[str, Tensor]:
        """As `state`, without the content: tensors on torch's meta device."""
        parts = self._arena.read(slice(0, 0)) if self._arena is not None and self._cold_n else ()
        hot = torch.empty(self.shape[0], self._hot.n, self.shape[1], dtype=self.dtype, device="meta")
        cold = [torch.empty(self._cold_n, *p.shape[1:], dtype=p.dtype, device="meta") for p in parts]
        decided = {name: t.to("meta") for name, t in self._decided().items()}
        return {"hot": hot, **{f"cold{i}": p for i, p in enumerate(cold)}, **decided}

    def restore(self, state: Mapping[str, Tensor], slots: int) -> None:
        """Fill an empty lane of `slots` slots from `state`; everything is copied."""
        cold = tuple(state[f"cold{i}"] for i in range(sum(name.startswith("cold") for name in state)))
        if self.key_codec is not None:
            codec = {k.removeprefix("codec."): t.clone() for k, t in state.items() if k.startswith("codec.")}
            self.key_codec.restore(codec)
        if cold and self._arena is not None:
            self._arena.append(cold)
        self.append(state["hot"])
        self._cold_n = slots - self._hot.n

    def reserve(self, tokens: int, most: int) -> None:
        """Make room for `tokens` in all, so that growing never copies; `most` is all that will ever be held."""
        limit = None if self.key_codec else self._hot_limit  # a lane that waits for its codec holds all of them
        self._hot.reserve(tokens if limit is None else min(tokens, limit + _SLACK), most)

    def _decided(self) -> dict[str, Tensor]:
        """The state of a codec that has one."""
        state = self.key_codec.state() if self.key_codec is not None else {}
        return {f"codec.{name}": t for name, t in state.items()}

    def _with_cold(self, where: slice | Tensor, hot: Tensor) -> Tensor:
        """The cold tokens at `where`, decoded, and `hot` [H, m, D] behind them."""
        assert self._arena is not None
        parts = self._arena.read(where)
        count = len(parts[0])
        out = torch.empty(hot.shape[0], count + hot.shape[1], hot.shape[2], dtype=self.dtype, device=self.device)
        for a in range(0, count, _DECODED):
            some = tuple(p[a : a + _DECODED].to(self.device) for p in parts)
            out[:, a : a + len(some[0])] = self._codec.decode(some, self.dtype).transpose(0, 1)
        out[:, count:] = hot
        return out


class KV:
    """Keys and values that one layer holds of one sequence, and the position of every held slot.

    Keys lie in one lane for each `Rotation` that the stack's frames need; `positions` [n] is on the CPU, ascending.
    Once heads have kept different tokens, a slot has a position in every head (`head_positions`), and `positions` are
    the latest of them: a query at or behind one may see the slot in all heads.
    """

    def __init__(
        self,
        keys: Mapping[Rotation, Layout],
        values: Layout,
        heads: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.keys = {rotation: Lane(heads, dim, dtype, device, layout) for rotation, layout in keys.items()}
        self.values = Lane(heads, dim, dtype, device, values)
        self._heads = heads
        self._by_head: Tensor | None = None  # positions [H, n], once they differ
        self._positions = torch.empty(64, dtype=torch.long)
        self.n = 0
        self.evicted = 0

    @property
    def positions(self) -> Tensor:
        """Position in its sequence of every held slot, [n] long, ascending."""
        return self._positions[: self.n]

    @property
    def head_positions(self) -> Tensor:
        """Position of every held slot in every key head, [H, n], ascending in each."""
        return self.positions.expand(self._heads, -1) if self._by_head is None else self._by_head

    @property
    def heads_differ(self) -> bool:
        """Whether a slot may hold different tokens in different heads."""
        return self._by_head is not None

    def append(self, keys: Mapping[Rotation, Tensor], values: Tensor, positions: Tensor) -> None:
        """Add m tokens: keys for each rotation [H, m, D], values [H, m, D], positions [m]."""
        for rotation, lane in self.keys.items():
            lane.append(keys[rotation])
        self.values.append(values)
        end = self.n + len(positions)
        if end > len(self._positions):
            self._positions = torch.cat([self.positions, torch.empty(max(end, 2 * self.n) - self.n, dtype=torch.long)])
        self._positions[self.n : end] = positions
        self.n = end
        if self._by_head is not None:
            self._by_head = torch.cat([self._by_head, positions.expand(self._heads, -1)], 1)

    def keep(self, slots: Tensor) -> None:
        """Drop every slot but `slots` [m] or, for each key head, [H, m] (ascending, on the CPU)."""
        self.evicted += self.n - slots.shape[-1]
        for lane in self.lanes():
            lane.keep(slots)
        if slots.dim() == 2 or self._by_head is not None:
            self._by_head = self.head_positions.gather(1, slots.expand(self._heads, -1))
        kept = self.positions[slots] if self._by_head is None else self._by_head.amax(0)
        self._positions[: len(kept)] = kept
        self.n = len(kept)

    def rotate_again(self, rotate: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Renumber the slots 0..n-1 and rotate every rotated lane anew from the un-rotated one."""
        raw = self.keys[UNROTATED].read(0, self.n)
        for rotation, lane in self.keys.items():
            if rotation != UNROTATED:
                lane.rewrite(rotate(raw, rotation.of(torch.arange(self.n))))
                lane.settle()

    def settle(self) -> None:
        """Let every lane move its older tokens to its cold part."""
        for lane in self.lanes():
            lane.settle()

    def lanes(self) -> list[Lane]:
        """All lanes, keys first."""
        return [*self.keys.values(), self.values]

    def reserve(self, tokens: int, most: int) -> None:
        """Make room for `tokens` held tokens, of which there will never be more than `most`."""
        for lane in self.lanes():
            lane.reserve(tokens, most)

    def nbytes(self) -> tuple[int, int]:
        """(bytes in memory, bytes on disk)."""
        sizes = [lane.nbytes() for lane in self.lanes()]
        return sum(s[0] for s in sizes), sum(s[1] for s in sizes)

    def state(self) -> dict[str, Tensor]:
        """Tensors from which `restore` rebuilds this object: views where that is possible."""
        out = {f"{i}.{name}": t for i, lane in enumerate(self.lanes()) for name, t in lane.state().items()}
        return {**out, **self._places()}

    def outline(self) -> dict[str, Tensor]:
        """As `state`, without the content: tensors on torch's meta device."""
        out = {f"{i}.{name}": t for i, lane in enumerate(self.lanes()) for name, t in lane.outline().items()}
        return {**out, **{name: t.to("meta") for name, t in self._places().items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Fill an empty object from `state`; everything is copied."""
        self._positions = state["positions"].clone()
        self.n = len(self._positions)
        self._by_head = state["head_positions"].clone() if "head_positions" in state else None
        for i, lane in enumerate(self.lanes()):
            lane.restore({k.partition(".")[2]: t for k, t in state.items() if k.startswith(f"{i}.")}, self.n)

    def _places(self) -> dict[str, Tensor]:
        """Where the slots stand."""
        by_head = {} if self._by_head is None else {"head_positions": self._by_head}
        return {"positions": self.positions, **by_head}
