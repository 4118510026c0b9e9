"""A run: a stack attached to a model, its caches, its chunked prefill and its ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lengthwise.core import compat, probe
from lengthwise.core.facts import LayerKind
from lengthwise.core.frames import NATIVE, stay
from lengthwise.core.ledger import LayerReceipt, Ledger
from lengthwise.core.pieces import Piece
from lengthwise.core.plan import LayerPlan, plan_layers
from lengthwise.core.rope import Rope
from lengthwise.core.seams import Prompts, Selects
from lengthwise.core.session import BLOCK, LayerSlot, Session
from lengthwise.core.stack import Stack, refusals
from lengthwise.core.watch import Watch
from lengthwise.errors import BadInput, NothingFired, StackRefused

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 1024  # tokens of a prefill chunk: bounds activation memory
Progress = Callable[[int, int], None]  # (tokens read, tokens in all)


class Run:
    """`with stack.on(model) as run:` attaches on entry and leaves the model as it was on exit.

    Several runs may be active on one model; a forward pass belongs to the run whose cache it is given, and a pass
    without one runs as if nothing were attached. Raises StackRefused on entry when stack and model do not fit,
    NothingFired on exit when the model ran but a method of the stack was never asked.
    """

    def __init__(self, stack: Stack, model: PreTrainedModel, threads: tuple[int, int] | None = None) -> None:
        anatomy, reasons = compat.examine(model)
        if anatomy is None:
            raise StackRefused(str(stack), reasons)
        self.stack, self.model, self.anatomy = stack, model, anatomy
        self.facts = compat.model_facts(model)
        if reasons := refusals(stack.methods, self.facts):
            raise StackRefused(str(stack), reasons)
        known = self.facts.model_type in compat.KNOWN or stack.methods == (probe.TwoFrames(),)
        if not known and (reasons := probe.trial(Run(Stack([probe.TwoFrames()]), model))):
            raise StackRefused(str(stack), reasons)
        self.ropes = compat.ropes(anatomy, self.facts)
        self.plans: Mapping[LayerKind, LayerPlan] = plan_layers(stack.methods, self.facts, self.ropes)
        self.block = min([BLOCK, *(m.queries_at_once() or BLOCK for m in stack.methods)])
        self.ledger = Ledger(stack=str(stack), model=self.facts.model_type)
        self.ledger.layers = [LayerReceipt(i, kind) for i, kind in enumerate(self.facts.layer_kinds)]
        left_alone = sum(kind != "full" for kind in self.facts.layer_kinds)
        if left_alone:
            self.ledger.notes.append(f"{left_alone} sliding-window layers are left as the model built them")
        self.active = False
        self._threads, self._threads_before = threads, torch.get_num_threads()
        self._rope_memo: tuple[int, Rope] | None = None
        self._attachment: compat.Attachment | None = None

    def __enter__(self) -> Run:
        self._attachment = compat.attach(self.anatomy)
        self._plain_before = self._attachment.plain_passes
        self._threads_before = torch.get_num_threads()
        self.active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._attachment is not None
        self.active = False
        shared = self._attachment.runs > 1
        plain = self._attachment.plain_passes - self._plain_before
        compat.detach(self._attachment)
        if self._threads is not None:
            torch.set_num_threads(self._threads_before)
        if kind is None:
            self._check_fired(0 if shared else plain)

    def use_threads(self, tokens: int) -> None:
        """Before a forward pass of `tokens` columns: the threads for its kind of work."""
        if self._threads is not None:
            wanted = self._threads[tokens == 1]
            if wanted != torch.get_num_threads():
                torch.set_num_threads(wanted)

    @property
    def most_at_once(self) -> int:
        """The most tokens of one sequence that a pass may read: a chunk must leave room for what is kept."""
        keeps = self.plans["full"].keeps
        return 1 << 40 if keeps is None else max(1, keeps.tokens_held(1 << 40, self.facts) // 4)

    def cache(self, expected: int = 0) -> Session:
        """A new cache: one reading of one batch. `expected` tokens, if known, are reserved at once."""
        return Session(self, expected)

    def prefill(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cache: Session | None = None,
        chunk: int = CHUNK,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Session:
        """Read input_ids [B, N] but for the last token, in chunks, into a cache for `generate(input_ids)`.

        A `cache` that has read the first tokens of input_ids goes on where it was. `attention_mask` [B, N] marks left
        padding. `stop` is asked between chunks; when it says so, the cache is returned as far as it has read.
        """
        if any(isinstance(m, Prompts) for m in self.stack.methods):
            raise BadInput(
                f"'{self.stack}' needs the question apart from the text: use lengthwise.ask (a prefill would ignore it)"
            )
        cache = cache if cache is not None else self.cache(input_ids.shape[1] + 256)
        total = input_ids.shape[1] - 1
        for b in self.feed(input_ids[:, :total], cache, attention_mask=attention_mask, chunk=chunk):
            if progress is not None:
                progress(b, total)
            if stop is not None and stop():
                break
        return cache

    def feed(
        self,
        input_ids: Tensor,
        cache: Session,
        *,
        attention_mask: Tensor | None = None,
        chunk: int = CHUNK,
        hidden: list[Tensor] | None = None,
    ) -> Iterator[int]:
        """Read what `cache` has not seen of input_ids [B, N], a chunk for each step; yields the columns seen so far.

        `hidden` collects the last hidden states [B, chunk, H] of every chunk.
        """
        chunk = min(chunk, self.most_at_once)
        positions = None if attention_mask is None else (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        device = next(self.model.parameters()).device
        for a in range(cache.get_seq_length(), input_ids.shape[1], chunk):
            b = min(input_ids.shape[1], a + chunk)
            with torch.no_grad(), self.ledger.timing("prefill"):
                out = self.anatomy.decoder(
                    input_ids=input_ids[:, a:b].to(device),
                    attention_mask=None if attention_mask is None else attention_mask[:, :b].to(device),
                    position_ids=None if positions is None else positions[:, a:b].to(device),
                    past_key_values=cache,
                    use_cache=True,
                )
            self.ledger.tokens_read += (b - a) * input_ids.shape[0]
            if hidden is not None:
                hidden.append(out[0])
            yield b

    @torch.no_grad()
    def losses(self, input_ids: Tensor, *, chunk: int = CHUNK, progress: Progress | None = None) -> Tensor:
        """Loss of every next token in nats: input_ids [1, N] -> [N - 1] float32, read in chunks under the stack."""
        cache = self.cache(input_ids.shape[1])
        out: list[Tensor] = []
        total = input_ids.shape[1] - 1
        hidden: list[Tensor] = []
        for b in self.feed(input_ids[:, :total], cache, chunk=chunk, hidden=hidden):
            states = hidden.pop()[0]
            targets = input_ids[0, b - len(states) + 1 : b + 1]
            for some, wanted in zip(torch.split(states, 256), torch.split(targets, 256), strict=True):
                logits = compat.logits_of(self.model, some).float()
                out.append(torch.nn.functional.cross_entropy(logits, wanted.to(logits.device), reduction="none").cpu())
            if progress is not None:
                progress(b, total)
        return torch.cat(out)

    def logits(self, hidden: Tensor) -> Tensor:
        """The language-model head on hidden states [..., H]: logits [..., V]."""
        return compat.logits_of(self.model, hidden)

    @contextmanager
    def watching(self, cache: Session) -> Iterator[Watch]:
        """Sum the attention weights of the forward passes with `cache` inside the block, by position."""
        watch = cache.watch = Watch()
        try:
            yield watch
        finally:
            cache.watch = None

    def receipt(self) -> dict[str, Any]:
        """The ledger as JSON; raises NothingFired when the model ran but a method was never asked."""
        self._check_fired(0)
        return self.ledger.to_json()

    def rope_at(self, length: int) -> Rope:
        """The full layers' rotary embedding for a sequence of `length` tokens, when it follows the length."""
        if self._rope_memo is None or self._rope_memo[0] != length:
            position = self.plans["full"].position
            assert position is not None
            base = self.ropes["full"]
            changed = position.frequencies(self.facts, base.inv_freq, length)
            self._rope_memo = length, base.with_frequencies(*changed) if changed else base
        return self._rope_memo[1]

    def count(self, plan: LayerPlan, pieces: list[Piece], dense_pairs: int) -> None:
        """Note which methods were asked about a block, and which of them changed what it sees."""
        narrowed = sum(p.pairs for p in pieces) < dense_pairs
        for select in plan.selects:
            self.ledger.consulted[select.spec.name] += 1
            self.ledger.acted[select.spec.name] += narrowed
        if plan.position is not None and not isinstance(plan.position, Selects):
            self.ledger.consulted[plan.position.spec.name] += 1
            moved = any(p.frame.query is not stay or p.frame.key != NATIVE for p in pieces)
            changed = plan.rope is not self.ropes["full"] or plan.rotates_on_read
            self.ledger.acted[plan.position.spec.name] += moved or changed

    def account(self, slots: Sequence[LayerSlot]) -> None:
        """Write down what a layer, one slot for each session of the pass, holds after a forward pass."""
        slot, rows = slots[0], [kv for s in slots for kv in s.rows]
        receipt = self.ledger.layers[slot.index]
        sizes = [kv.nbytes() for kv in rows]
        receipt.held_tokens = sum(kv.n for kv in rows)
        receipt.held_bytes, receipt.disk_bytes = sum(s[0] for s in sizes), sum(s[1] for s in sizes)
        receipt.peak_bytes = max(receipt.peak_bytes, receipt.held_bytes)
        receipt.evicted_tokens = sum(kv.evicted for kv in rows)
        for method in self.stack.methods:
            if slot.plan.kind == "full" and {"format", "tier"} & set(method.spec.seams):
                self.ledger.consulted[method.spec.name] += 1
                lanes = [lane for kv in rows for lane in kv.lanes()]
                self.ledger.acted[method.spec.name] += any(lane.cold_tokens > 0 for lane in lanes)

    def _check_fired(self, plain: int) -> None:
        ran = any(layer.queries for layer in self.ledger.layers)
        if not ran and plain:
            raise NothingFired(
                f"the stack '{self.stack}' was attached, but no forward pass used it: "
                "pass past_key_values=run.cache() to generate() or to the model"
            )
        silent = [m.spec.name for m in self.stack.methods if m.spec.seams and not self.ledger.consulted[m.spec.name]]
        if ran and silent:
            raise NothingFired(f"the model ran, but {' and '.join(silent)} of '{self.stack}' was never asked anything")
