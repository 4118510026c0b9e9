"""One reading of one batch: a transformers Cache whose layers hold our KV, a row of the batch at a time.

A left-padded batch is a list of sequences of different lengths: every row has its own KV without its padding, so a
method only ever sees one sequence, and padding can never be attended to.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from lengthwise.core import step
from lengthwise.core.frames import UNROTATED, Visible
from lengthwise.core.plan import LayerPlan
from lengthwise.core.seams import View
from lengthwise.core.store import KV
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
        self.memo: dict[tuple[Any, ...], list[step.Piece]] = {}
        self.states: defaultdict[tuple[int, int, str], dict[str, Any]] = defaultdict(dict)
        self.surprise: list[Tensor] = []  # per row, by position, nats
        self.turns: list[Tensor] = []  # per row, by position: the turn in which it was read
        self.last_logits: Tensor | None = None  # [B, V], to score the next token
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
        self.end = seen + tokens
        self.broken = True  # until `finish`

    def finish(self) -> None:
        """After a forward pass that went through."""
        self.broken = False

    def attend(self, slot: LayerSlot, q: Tensor, scale: float, softcap: float | None) -> Tensor:
        """The attention step of one layer: q [B, Hq, C, D] -> [B, C, Hq, D]. The keys are those given to `update`."""
        assert slot.new is not None
        assert self.pads is not None
        k, v = slot.new
        slot.new = None
        columns = q.shape[2]
        out = torch.zeros(q.shape[0], columns, q.shape[1], v.shape[3], dtype=q.dtype, device=q.device)
        for row, pad in enumerate(self.pads):
            skip = min(max(0, pad - slot.seen), columns)
            size = self.run.block
            for a in range(skip, columns, size):
                b = min(columns, a + size)
                out[row, a:b] = self._block(
                    slot, row, q[row, :, a:b], k[row, :, a:b], v[row, :, a:b], a - pad, scale, softcap
                )
        slot.seen += columns
        self.run.account(slot)
        return out

    def _block(
        self,
        slot: LayerSlot,
        row: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        offset: int,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        assert self.pads is not None
        plan, kv, pad = slot.plan, slot.rows[row], self.pads[row]
        receipt = self.run.ledger.layers[slot.index]
        start, count = slot.seen + offset, q.shape[1]
        tokens = torch.arange(start, start + count)
        rope = plan.rope
        if plan.rotates_on_read:
            rope = self.run.rope_at(self.end - pad)
        if plan.position is not None and (factor := plan.position.query_factor(self.run.facts, tokens)) is not None:
            q = q * factor.to(q)[:, None]
        view = View(slot.index, self.run.facts, kv, q, tokens, scale, rope, receipt, softcap)
        view.ends_pass = start + count == self.end - pad
        if self.surprise:
            view.surprise = self.surprise[row][kv.positions]
            view.ages = self.turn - self.turns[row][kv.positions]
        self._evict(plan, view, row)
        positions = torch.arange(kv.n, kv.n + count) if plan.in_cache else tokens
        view.positions = positions
        rotate = rope.rotate if plan.raw else None
        on_read = plan.rotates_on_read
        keys = {r: k if r == UNROTATED or rotate is None else rotate(k, r.of(positions)) for r in plan.key_layouts}
        kv.append(keys, v, tokens)
        slot_positions = torch.arange(kv.n) if plan.in_cache else kv.positions
        pieces = self._pieces(plan, view, row, slot_positions)
        extras = []
        for method in plan.selects:
            view.state = self.states[slot.index, row, method.spec.name]
            extras += method.extras(view)
        out, lse = step.score(view, pieces, rotate, softcap, extras, slot_positions if on_read else None)
        self._observe(plan, view, row, pieces, rotate, softcap, lse, slot_positions if on_read else None)
        kv.settle()
        receipt.queries += count
        receipt.dense_pairs += q.shape[0] * (count * start + count * (count + 1) // 2)
        return out.transpose(0, 1).to(q.dtype)

    def _evict(self, plan: LayerPlan, view: View, row: int) -> None:
        kv = view.kv
        if plan.kind == "sliding":
            window = plan.rules[0][0]
            if kv.n > 2 * window:
                kv.keep(torch.arange(kv.n - window, kv.n))
            return
        if plan.keeps is None:
            return
        view.state = self.states[view.layer, row, plan.keeps.spec.name]
        slots = plan.keeps.keep(view)
        self.run.ledger.consulted[plan.keeps.spec.name] += 1
        if slots is not None and len(slots) < kv.n:
            kv.keep(slots)
            if plan.in_cache:
                kv.rotate_again(plan.rope.rotate)
            self.run.ledger.acted[plan.keeps.spec.name] += 1

    def _pieces(self, plan: LayerPlan, view: View, row: int, slot_positions: Tensor) -> list[step.Piece]:
        key = (plan.kind, row, view.start, view.stop, view.kv.n)
        if not plan.per_layer and key in self.memo:
            return self.memo[key]
        visible = Visible(rules=plan.rules)
        for method in plan.selects:
            view.state = self.states[view.layer, row, method.spec.name]
            visible = visible & method.visible(view)
        pieces = step.cut(plan.frames, visible, view.positions, slot_positions)
        self.run.count(plan, pieces, dense_pairs=int((view.positions + 1).sum()))
        self.memo[key] = pieces
        return pieces

    def _observe(
        self,
        plan: LayerPlan,
        view: View,
        row: int,
        pieces: list[step.Piece],
        rotate: Any,
        softcap: float | None,
        lse: Tensor,
        key_positions: Tensor | None,
    ) -> None:
        wanting = []
        for observer in plan.observes:
            view.state = self.states[view.layer, row, observer.spec.name]
            self.run.ledger.consulted[observer.spec.name] += 1
            if observer.watching(view):
                wanting.append(observer)
        watch = self.watch if plan.kind == "full" else None
        if not wanting and watch is None:
            return
        if watch is None:
            pieces = [p for p in pieces if any(o.wants(p.frame) for o in wanting)]
        for piece, weights in step.weigh(view, pieces, rotate, softcap, lse, key_positions):
            slots = piece.indices()
            for observer in wanting:
                view.state = self.states[view.layer, row, observer.spec.name]
                observer.observe(view, piece.frame, slots, weights)
            if watch is not None:
                watch.add(row, view.kv.positions[slots], weights)

    def learn(self, logits: Tensor, ids: Tensor) -> None:
        """After a forward pass: surprisals of the tokens just read. logits [B, C, V], ids [B, C]."""
        assert self.pads is not None
        if not self.surprise:
            self.surprise = [torch.empty(0) for _ in self.pads]
            self.turns = [torch.empty(0, dtype=torch.long) for _ in self.pads]
        logp = torch.log_softmax(logits.float(), dim=-1)
        begun = self.end - ids.shape[1]
        for row, pad in enumerate(self.pads):
            skip = min(max(0, pad - begun), ids.shape[1])
            own = ids[row, skip:]
            if len(own) == 0:
                continue
            new = torch.full((len(own),), float("nan"))
            new[1:] = -logp[row, skip:-1].gather(1, own[1:, None])[:, 0].cpu()
            if self.last_logits is not None and begun > pad:
                new[0] = -torch.log_softmax(self.last_logits[row].float(), -1)[own[0]].cpu()
            # nothing predicted the first token: it counts as the most surprising of its segment
            new = torch.where(new.isnan(), new[1:].max() if len(new) > 1 else torch.tensor(0.0), new)
            self.surprise[row] = torch.cat([self.surprise[row], new])
            self.turns[row] = torch.cat([self.turns[row], torch.full((len(own),), self.turn)])
        self.last_logits = logits[:, -1]


class Watch:
    """Attention by position, the raw material of evidence: the strongest head of every layer and query, summed.

    Most heads spread their weight over what is near; the maximum over heads keeps those that look something up.
    """

    def __init__(self) -> None:
        self.mass: dict[int, Tensor] = {}

    def add(self, row: int, positions: Tensor, weights: Tensor) -> None:
        """Weights [Hq, C, S] on positions [S]."""
        mass = self.mass.get(row, torch.empty(0))
        top = int(positions[-1]) + 1
        if top > len(mass):
            mass = torch.cat([mass, torch.zeros(max(top, 2 * len(mass)) - len(mass))])
        mass.index_add_(0, positions, weights.amax(0).sum(0).float().cpu())
        self.mass[row] = mass
