"""One reading of one batch: a transformers Cache whose layers hold our KV, a row of the batch at a time.

A left-padded batch is a list of sequences of different lengths: every row has its own KV without its padding, so a
method only ever sees one sequence, and padding can never be attended to.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from lengthwise.core import step
from lengthwise.core.pieces import Cut
from lengthwise.core.plan import LayerPlan
from lengthwise.core.step import Block
from lengthwise.core.store import KV
from lengthwise.core.watch import Surprise, Watch
from lengthwise.errors import BadInput, LengthwiseError, SessionError

if TYPE_CHECKING:
    from lengthwise.core.attach import Run

BLOCK = 1024  # queries that are scored at once; bounds the mask of a block to BLOCK x (BLOCK + window)


class LayerSlot(CacheLayerMixin):  # type: ignore[misc]
    """Stands for one layer in transformers' eyes. `update` keeps the new keys and values for the attention step."""

    def __init__(self, session: Session, index: int, plan: LayerPlan) -> None:
        super().__init__()
        self._session = weakref.ref(session)  # no cycle, so that files on disk go away with the last reference
        self.index, self.plan = index, plan
        self.is_sliding = plan.kind == "sliding"
        self.seen = 0
        self.rows: list[KV] = []
        self.new: tuple[Tensor, Tensor] | None = None

    @property
    def session(self) -> Session:
        """The session that this layer is part of."""
        session = self._session()
        assert session is not None
        return session

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Lanes for every row of the batch."""
        heads, dim = key_states.shape[1], key_states.shape[3]
        self.rows = [
            KV(self.plan.key_layouts, self.plan.layout, heads, dim, key_states.dtype, key_states.device)
            for _ in range(key_states.shape[0])
        ]
        keeps = self.plan.keeps
        most = (1 << 40) if keeps is None else keeps.tokens_held(1 << 40, self.session.run.facts)
        for kv in self.rows if self.plan.kind == "full" else []:
            kv.reserve(min(self.session.expected, most), most)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Take the layer's new keys and values [B, Hkv, C, D]; returns this slot in place of both."""
        self.session.check_active()
        if not self.session.broken:  # no pass was begun: no run is attached to the model that has this cache
            raise SessionError("this cache belongs to a run on another model")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if len(self.rows) != key_states.shape[0]:
            raise BadInput(f"this cache holds {len(self.rows)} sequences, the batch has {key_states.shape[0]}")
        self.new = (key_states, value_states)
        return self, self

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """(keys seen with the queries, 0): the mask itself is built in the attention step."""
        self.session.check_active()  # without a run, a mask would be built and fail less clearly
        queries = query_length if isinstance(query_length, int) else len(query_length)  # positions before 5.9
        return self.seen + queries, 0

    def get_seq_length(self) -> int:
        """Tokens seen, padding included, whether or not they are still held."""
        return self.seen

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.9

    def reset(self) -> None:
        """Forget everything."""
        self.rows, self.seen, self.new, self.is_initialized = [], 0, None, False

    def crop(self, *_: int) -> None:
        """Tokens that a method dropped or coded on the way cannot be had back; going back is refused."""
        raise LengthwiseError(
            "a Lengthwise cache cannot go back: assisted and prompt-lookup decoding are not supported"
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search would need a copy of every row for each step; it is refused."""
        raise LengthwiseError("beam search is not supported with a Lengthwise cache: use num_beams=1, or sample")


class Session(Cache):  # type: ignore[misc]
    """The cache of one reading. Made by `run.cache()`; given to the model as `past_key_values`."""

    def __init__(self, run: Run, expected: int = 0) -> None:
        self.run = run
        self.expected = expected
        plans = run.plans
        super().__init__(layers=[LayerSlot(self, i, plans[kind]) for i, kind in enumerate(run.facts.layer_kinds)])
        self.pads: list[int] | None = None
        self.turn = 0
        self.last_was_decode = False
        self.broken = False
        self.memo: dict[tuple[Any, ...], Cut] = {}
        self._ranges: dict[tuple[int, int], Tensor] = {}
        self.states: defaultdict[tuple[int, int, str], dict[str, Any]] = defaultdict(dict)
        self.surprise = Surprise()
        self.end = 0  # columns seen at the end of the forward pass in progress
        self.watch: Watch | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """Refused: a copy would take the run, and with it the model, along."""
        raise LengthwiseError("a Lengthwise cache cannot be copied: read the text again into a new run.cache()")

    def check_active(self) -> None:
        """Raise when the run has ended."""
        if not self.run.active:
            raise SessionError(
                "this cache belongs to a run that has ended: use it inside `with stack.on(model) as run:`"
            )

    def check_whole(self) -> None:
        """Raise when an earlier forward pass was cut short, so that layers hold different tokens."""
        if self.broken:
            raise SessionError("a forward pass with this cache failed half way: start again with a new run.cache()")

    def begin(self, mask: Tensor | None, batch: int, tokens: int) -> None:
        """Before a forward pass of `tokens` columns: read the padding, open a turn. Raises BadInput on odd masks."""
        self.check_active()
        self.check_whole()
        self.run.use_threads(tokens)
        seen = self.layers[0].seen
        if mask is not None:
            if mask.dim() != 2:
                raise BadInput("a 4D attention mask cannot be combined with a stack: pass the 2D padding mask")
            if mask.shape[1] < seen + tokens:
                raise BadInput(f"an attention mask of {mask.shape[1]} columns does not cover {seen + tokens} tokens")
            if bool((mask[:, 1:] < mask[:, :-1]).any()):
                raise BadInput("the batch is padded on the right or in the middle: set tokenizer.padding_side = 'left'")
            pads = (mask[:, : seen + tokens] == 0).sum(1).tolist()
        else:
            pads = self.pads or [0] * batch
        if len(pads) != batch:
            raise BadInput(f"this cache holds {len(pads)} sequences, the batch has {batch}")
        # a row that was all padding so far may have more of it
        if self.pads is not None and any(new != old and old < seen for new, old in zip(pads, self.pads)):
            raise BadInput("the padding of this batch changed since the cache was begun")
        keeps = self.run.plans["full"].keeps
        if keeps is not None and keeps.needs_surprise:
            most = min(keeps.tokens_held(1 << 40, self.run.facts) // 2, self.run.block)
            if tokens > most:
                raise BadInput(
                    f"{keeps.spec.name} scores tokens between passes: read {tokens:,} tokens with run.prefill(...), "
                    f"or set generation_config.prefill_chunk_size to at most {most}"
                )
        self.pads = pads
        if tokens > 1 and (seen == 0 or self.last_was_decode):
            self.turn += 1
        self.last_was_decode = tokens == 1
        self.memo.clear()
        self._ranges.clear()
        self.end = seen + tokens
        self.broken = True  # until `finish`

    def finish(self) -> None:
        """After a forward pass that went through."""
        self.broken = False

    def attend(self, slot: LayerSlot, q: Tensor, scale: float, softcap: float | None) -> Tensor:
        """The attention step of one layer: q [B, Hq, C, D] -> [B, C, Hq, D]. The keys are those given to `update`."""
        out = self.step(slot, q, scale, softcap)
        self.run.account([slot])
        return out

    def step(self, slot: LayerSlot, q: Tensor, scale: float, softcap: float | None) -> Tensor:
        """As `attend`, without writing down what the layer holds now."""
        assert slot.new is not None
        assert self.pads is not None
        k, v = slot.new
        slot.new = None
        columns, rows = q.shape[2], []
        for row, pad in enumerate(self.pads):
            skip = min(max(0, pad - slot.seen), columns)
            parts = [q.new_zeros(q.shape[1], skip, v.shape[3])] if skip else []
            for a, b in self._blocks(skip, columns, slot.seen - pad):
                block = Block(slot, row, q[row, :, a:b], k[row, :, a:b], v[row, :, a:b], slot.seen + a - pad)
                parts.append(step.attend(self, block, scale, softcap))
            rows.append(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
        slot.seen += columns
        return (rows[0][None] if len(rows) == 1 else torch.stack(rows)).transpose(1, 2)

    def positions(self, start: int, stop: int) -> Tensor:
        """The positions [start, stop) as a tensor, which all layers of a forward pass share."""
        if (start, stop) not in self._ranges:
            self._ranges[start, stop] = torch.arange(start, stop)
        return self._ranges[start, stop]

    def _blocks(self, start: int, stop: int, offset: int) -> Iterator[tuple[int, int]]:
        """The columns [start, stop) in blocks [a, b) that are scored at once; column c is at position c + offset."""
        ends = {stop}
        if stop - start > 1:
            for method in self.run.stack.methods:
                ends.update(p - offset for p in method.cuts(self.run.facts, start + offset, stop + offset))
        for low, high in pairwise(sorted({start, *ends})):
            for a in range(low, high, self.run.block):
                yield a, min(high, a + self.run.block)

    def learn(self, logits: Tensor, ids: Tensor) -> None:
        """After a forward pass: remember the surprisals of the tokens just read. logits [B, C, V], ids [B, C]."""
        assert self.pads is not None
        self.surprise.learn(logits, ids, self.pads, self.end - ids.shape[1], self.turn)
