"""Rows of the plain model, padded in one tensor a layer: the stock attention over all of them at once, with a mask."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from lengthwise.core.attach import CHUNK
from lengthwise.core.facts import ModelFacts
from lengthwise.thinking._local_rows import Row

SPARE = 32  # slots by which the padded tensors grow at least


class _PaddedRow(Row):
    """At `slot` of the padded tensors, or, at rest, `held`: (keys, values) [H, n, D] of every layer, never changed."""

    def __init__(self) -> None:
        super().__init__()
        self.slot: int | None = None
        self.held: list[tuple[Tensor, Tensor]] = []


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values [slots, H, room, D] of one layer. Token t of a row stands at t: what is behind it is masked."""

    is_sliding = False

    def __init__(self, rows: PaddedRows) -> None:
        super().__init__()
        self._rows = weakref.ref(rows)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows = self._rows()
        assert rows is not None
        self.keys, self.values = (
            x.new_zeros(rows.slots, x.shape[1], rows.room, x.shape[3]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put new keys and values [B, H, C, D] at their places; returns all of these rows, [B, H, T, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows = self._rows()
        assert rows is not None
        index, places, seen = rows.index, rows.places, rows.seen
        out = []
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            held[index[:, None], :, places] = new.transpose(1, 2)
            out.append(held[: len(index), :, :seen] if rows.front else held[:, :, :seen][index])
        return out[0], out[1]

    def resize(self, slots: int, room: int) -> None:
        """Another number of slots, another room."""
        for name in ("keys", "values") if self.is_initialized else ():
            old = getattr(self, name)
            new = old.new_zeros(slots, old.shape[1], room, old.shape[3])
            n, m = min(slots, old.shape[0]), min(room, old.shape[2])
            new[:n, :, :m] = old[:n, :, :m]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Masks are given whole."""
        return 0, 0

    def get_seq_length(self) -> int:
        """Positions are given."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.9


class PaddedRows:
    """Rows of the plain model, without an attachment: the stock attention over padded tensors, with a mask.

    Rows in use fill the first slots. A pass over most of them runs over all of these (what it computes for the others
    lies behind their ends, where it is never seen); a pass over a few gathers them.
    """

    def __init__(self, model: Any, facts: ModelFacts, threads: tuple[int, int] | None) -> None:
        self.model, self.decoder, self.window, self.most = model, model.base_model, facts.window, CHUNK
        self.slots = self.room = self.seen = 0
        self.index = self.places = torch.empty(0, dtype=torch.long)
        self.front = False
        self._threads = threads
        self._used: list[_PaddedRow] = []  # by slot
        self._resting: weakref.WeakSet[_PaddedRow] = weakref.WeakSet()
        self._layers = [_Layer(self) for _ in facts.layer_kinds]
        self._cache = Cache(layers=self._layers)

    @staticmethod
    def fits(model: Any, facts: ModelFacts) -> bool:
        """Whether the model can run so: full attention in every layer, by a function that takes a mask."""
        kind = getattr(model.config, "_attn_implementation", None)
        return kind in ("sdpa", "eager") and all(k == "full" for k in facts.layer_kinds)

    def new(self) -> Row:
        return _PaddedRow()

    def fork(self, row: Row) -> Row:
        assert isinstance(row, _PaddedRow)
        other = _PaddedRow()
        other.read, other.held = row.read, self._copy(row) if row.slot is not None else row.held
        self._resting.add(other)
        return other

    def cut(self, row: Row, tokens: int) -> bool:
        row.read = tokens  # what stands behind is written over
        return True

    def rest(self, row: Row) -> None:
        assert isinstance(row, _PaddedRow)
        if row.slot is not None:
            held = self._copy(row)
            self._leave(row)
            row.held = held
            self._resting.add(row)

    def drop(self, row: Row) -> None:
        assert isinstance(row, _PaddedRow)
        self._leave(row)
        row.held = []
        self._resting.discard(row)

    def forward(self, rows: Sequence[Row], ids: Tensor, lengths: Sequence[int]) -> Tensor:
        mine = [row for row in rows if isinstance(row, _PaddedRow)]
        columns = ids.shape[1]
        self._take_in(mine, max([0, *(r.read for r in self._used), *(r.read for r in mine)]) + columns)
        self.front = 2 * len(mine) > len(self._used)
        batch = self._used if self.front else mine
        device = next(self.decoder.parameters()).device
        read = torch.tensor([row.read for row in batch], device=device)
        self.index = torch.tensor([row.slot for row in batch], device=device)
        self.places = read[:, None] + torch.arange(columns, device=device)
        self.seen = max(row.read for row in mine) + columns
        wanted = ids
        if self.front:
            wanted = ids.new_zeros(len(batch), columns)
            wanted[[row.slot for row in mine]] = ids
        hidden = torch.arange(self.seen, device=device) > self.places[:, :, None]
        dtype = self.model.dtype
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)
        positions = self.places.clamp(max=self.window - 1) if self.window else self.places  # of padding alone
        with self._own_threads(columns):
            out = self.decoder(
                input_ids=wanted.to(device),
                attention_mask=mask[:, None],
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            )[0]
        for row, n in zip(mine, lengths, strict=True):
            row.read += n
        return self.part(out, rows)

    def part(self, output: Tensor, rows: Sequence[Row]) -> Tensor:
        return output[[row.slot for row in rows if isinstance(row, _PaddedRow)]] if self.front else output

    def nbytes(self) -> int:
        tensors = [t for layer in self._layers if layer.is_initialized for t in (layer.keys, layer.values)]
        tensors += [t for row in self._resting for pair in row.held for t in pair]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}  # forks share
        return sum(sizes.values())

    def clear(self) -> None:
        for row in [*self._used, *self._resting]:
            self.drop(row)

    def _copy(self, row: _PaddedRow) -> list[tuple[Tensor, Tensor]]:
        """What a row at a slot holds."""
        return [
            (layer.keys[row.slot, :, : row.read].clone(), layer.values[row.slot, :, : row.read].clone())
            for layer in self._layers
        ]

    def _take_in(self, rows: Sequence[_PaddedRow], room: int) -> None:
        """Give every row a slot, and all slots room for `room` tokens."""
        fresh = [row for row in rows if row.slot is None]
        slots = len(self._used) + len(fresh)
        if slots > self.slots or room > self.room:
            self.slots = self.slots if slots <= self.slots else max(slots, 2 * self.slots)
            self.room = self.room if room <= self.room else max(room + SPARE, self.room * 3 // 2)
            for layer in self._layers:
                layer.resize(self.slots, self.room)
        for row in fresh:
            row.slot = len(self._used)
            self._used.append(row)
            for layer, (keys, values) in zip(self._layers, row.held):
                if not layer.is_initialized:
                    layer.lazy_initialization(keys[None], values[None])
                layer.keys[row.slot, :, : row.read] = keys[:, : row.read]
                layer.values[row.slot, :, : row.read] = values[:, : row.read]
            row.held = []
            self._resting.discard(row)

    def _leave(self, row: _PaddedRow) -> None:
        """Give the slot back: the last row moves into it. With the last row, the tensors go."""
        if row.slot is None:
            return
        last = self._used.pop()
        if last is not row:
            for layer in self._layers:
                for held in (layer.keys, layer.values):
                    held[row.slot, :, : last.read] = held[last.slot, :, : last.read]
            self._used[row.slot], last.slot = last, row.slot
        row.slot = None
        if not self._used:
            self.slots = self.room = 0
            for layer in self._layers:
                del layer.keys, layer.values
                layer.is_initialized = False

    def _own_threads(self, columns: int) -> Threads:
        return Threads(None if self._threads is None else self._threads[columns == 1])


class Threads:
    """Torch's threads are so many inside the block."""

    def __init__(self, count: int | None) -> None:
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._count not in (None, self._before):
            torch.set_num_threads(self._count)  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        if torch.get_num_threads() != self._before:
            torch.set_num_threads(self._before)
