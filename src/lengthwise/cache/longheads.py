"""LongHeads: every head picks its own chunks of the past (Lu et al. 2024, arXiv 2402.10685)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.cache import _beside
from lengthwise.core import attend
from lengthwise.core.attend import Partial
from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import Frame, Rotation, Visible, at
from lengthwise.core.seams import Positions, Selects, View
from lengthwise.core.spec import Method, Spec, param


@dataclass(frozen=True)
class Longheads(Positions, Selects):
    """Beyond `length` tokens a head sees k = length / chunk chunks: first, previous, own, and k - 3 of its choice.

    A chunk is known by one vector a head, in which the chunk has read itself, rotated at the places 0..chunk-1:

    o_i = softmax(q_i K^T) V,  c = softmax(mean_i(o_i) K^T) K,  score of the chunk = q . c with q un-rotated

    The k - 3 best chunks are seen in the order of the text and without gaps, so that no distance exceeds `length`.
    """

    chunk: int = param(256, "tokens of a chunk")
    length: int | None = param(None, "tokens that a head sees, in whole chunks; none: the trained window")

    per_layer = True

    spec: ClassVar[Spec] = Spec(
        name="longheads",
        family="cache",
        summary="every head of every query picks chunks of the past, as many as fit the trained window",
        formula="see chunks {0, j-1, j} + top_(k-3) of q . c_b, j = floor(m/l), numbered 0..k-1 in order; "
        "c_b = softmax(mean_i(softmax(q_i K_b^T) V_b) K_b^T) K_b",
        seams=("position", "select"),
        papers=(77,),
        source="arXiv 2402.10685, section 3; chunk vectors, the previous chunk and the sizes as in the released code",
        exact_when="the input is no longer than `length`",
        refuses="a length beyond the trained window or of fewer than 3 chunks; methods that evict, choose keys or "
        "read attention weights",
        simplified="the query's own key is seen (the released prefill leaves it out)",
        neutral={"length": 1 << 20},
        test="tests/oracle/test_longheads.py",
    )

    def validate(self) -> None:
        """Room for the first, the previous and the own chunk."""
        self.require(self.chunk >= 2, "chunk must be at least 2")
        short = self.length is not None and self.length < 3 * self.chunk
        self.require(not short, f"length={self.length} holds fewer than 3 chunks of {self.chunk}")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Trained distances only; chunks must stay whole; what heads choose is hidden from other methods."""
        reasons = []
        if model is not None and self.length is not None and model.window < self.length < 1 << 20:
            reasons.append(f"length={self.length} is beyond the trained window of {model.window}")
        if model is not None and self.length is None and model.window < 3 * self.chunk:
            reasons.append(f"chunk={self.chunk} fits fewer than 3 times into the trained window of {model.window}")
        why = {
            "select": "chooses keys too",
            "keep": "would tear chunks apart",
            "observe": "reads weights, of which it would miss those",
        }
        return reasons + _beside.reasons("longheads adds chunks that each head chooses", others, why)

    def queries_at_once(self) -> int:
        """At most a chunk, which also bounds the partials of one block."""
        return self.chunk

    def cuts(self, facts: ModelFacts, start: int, stop: int) -> Sequence[int]:
        """Where chunks end, so that all queries of a block have the same first keys nearby."""
        return range((start // self.chunk + 1) * self.chunk, stop, self.chunk)

    def tokens_seen(self, length: int, facts: ModelFacts) -> int | None:
        """The chunks that a head sees, and one vector for every chunk there is."""
        return min(length, self._limit(facts) + length // self.chunk)

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        """What fits, as it is. Chosen chunks are read from the second frame's keys, in `extras`."""
        limit = self._limit(facts)
        return Frame(high=limit), Frame(low=limit, query=at(limit), key=self._within)

    def visible(self, view: View) -> Visible:
        """Everything while it fits; then the previous and the own chunk, to which `extras` adds."""
        self._form(view)
        if view.stop <= self._limit(view.facts):
            return Visible()
        return Visible(slots=torch.arange((view.start // self.chunk - 1) * self.chunk, view.kv.n))

    def extras(self, view: View) -> list[Partial]:
        """Attention to the first chunk and to the k - 3 that each head picks, for each query."""
        if view.stop <= self._limit(view.facts):
            return []
        heads, rows, dim = view.q.shape
        k = self._limit(view.facts) // self.chunk
        picked = self._pick(view, k - 3)
        # seen from a query, a chunk that is numbered r begins at (k - 1 - r) chunks and the query's place in its own
        place = view.positions % self.chunk
        turned = torch.stack([view.rope.rotate(view.q, place + (k - 1 - r) * self.chunk) for r in range(k - 2)], 2)
        turned, wanted = turned.reshape(view.facts.kv_heads, -1, dim), picked.reshape(view.facts.kv_heads, -1)
        out = torch.zeros(turned.shape, device=view.q.device)
        lse = torch.zeros(turned.shape[:2], device=view.q.device)
        logits = None if view.added is None else lse.new_zeros(*lse.shape, self.chunk)
        for b in wanted.unique().tolist():
            keys, values = self._chunk(view, b)
            for h in range(view.facts.kv_heads):
                asking = (wanted[h] == b).nonzero()[:, 0].to(view.q.device)
                if len(asking) == 0:
                    continue
                q, k_h, v_h = turned[h : h + 1, asking], keys[h : h + 1], values[h : h + 1]
                some = attend.partial(q, k_h, v_h, scale=view.scale, softcap=view.softcap)
                out[h, asking], lse[h, asking] = some[0][0].float(), some[1][0].float()
                if logits is not None:
                    logits[h, asking] = attend.logits(q, k_h, scale=view.scale, softcap=view.softcap)[0]
                view.receipt.pairs += len(asking) * self.chunk
                view.receipt.bytes_read += 2 * k_h.numel() * k_h.element_size()
        if view.added is not None and logits is not None:
            places = view.kv.positions[wanted[..., None] * self.chunk + torch.arange(self.chunk)]
            view.added.append((places.view(heads, rows, -1), logits.view(heads, rows, -1)))
        out, lse = out.view(heads, rows, k - 2, dim), lse.view(heads, rows, k - 2)
        return [attend.merge([(out[:, :, r], lse[:, :, r]) for r in range(k - 2)])]

    @property
    def _within(self) -> Rotation:
        """A key is rotated at its place in its chunk."""
        return Rotation(wrap=self.chunk)

    def _limit(self, facts: ModelFacts) -> int:
        return (self.length or facts.window) // self.chunk * self.chunk

    def _pick(self, view: View, count: int) -> Tensor:
        """Chunk 0 and the `count` best between it and the previous chunk, in order: [Hq, C, 1 + count], on the CPU."""
        vectors: Tensor = view.state["vectors"][:, : view.start // self.chunk - 1].to(view.q.device)
        scores = torch.einsum("hcd,hbd->hcb", view.q.float(), vectors[:, 1:].float())
        view.receipt.pairs += scores.numel()
        best = 1 + scores.topk(count, dim=-1).indices.sort(-1).values
        return torch.nn.functional.pad(best, (1, 0)).cpu()

    def _chunk(self, view: View, number: int) -> tuple[Tensor, Tensor]:
        """Keys, rotated at their places, and values of one chunk: [Hkv, chunk, D]."""
        a, b = number * self.chunk, (number + 1) * self.chunk
        return view.kv.keys[self._within].read(a, b), view.kv.values.read(a, b)

    def _form(self, view: View) -> None:
        """The vectors [Hq, chunks, D] of the chunks that the block completes; queries of the last one are kept."""
        empty = view.q.new_zeros(view.q.shape[0], 0, view.q.shape[2])
        vectors: Tensor = view.state.get("vectors", empty).to(view.q.device)  # a loaded session's are on the CPU
        queries: Tensor = torch.cat([view.state.get("queries", empty).to(view.q.device), view.q], 1)
        if queries.shape[1] == self.chunk:
            k, v = self._chunk(view, vectors.shape[1])
            q = view.rope.rotate(queries, torch.arange(self.chunk))
            read, _ = attend.partial(q, k, v, scale=view.scale, softcap=view.softcap)
            mean = read.float().mean(1, keepdim=True).to(q.dtype)
            vector, _ = attend.partial(mean, k, k, scale=view.scale, softcap=view.softcap)
            vectors, queries = torch.cat([vectors, vector.to(q.dtype)], 1), empty
        view.state["vectors"], view.state["queries"] = vectors, queries
