"""TokenSelect: the keys that most heads vote for, token by token (Wu et al. 2024, arXiv 2411.02886)."""

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
from lengthwise.core.frames import UNROTATED, Frame, Visible, at
from lengthwise.core.seams import Positions, Selects, View
from lengthwise.core.spec import Method, Spec, param

_SCORED = 4096  # keys that are scored at once: bounds what decoding coded keys needs in between


@dataclass(frozen=True)
class Tokenselect(Positions, Selects):
    """First tokens, the `top` tokens of the middle that all heads vote for together, and a local window.

    A chunk's query is the mean over its queries, each rotated at local + i, with keys un-rotated:

    votes_n = sum_h softmax_n(mean_i(q_ih) . k_nh)   over the tokens n between first tokens and local window

    What is seen is numbered anew without gaps, so no distance exceeds init + top + local. A decoded token whose query
    is as similar to the one that chose last as `reuse` takes over its choice without looking at the keys.
    """

    init: int = param(128, "first tokens, always visible")
    local: int = param(512, "local window in tokens, counted from the end of the chunk")
    top: int = param(2048, "tokens chosen by vote")
    chunk: int = param(512, "queries that share a choice")
    reuse: float | None = param(0.9, "cosine similarity from which a decoded token reuses a choice; none: never")

    per_layer = True

    spec: ClassVar[Spec] = Spec(
        name="tokenselect",
        family="cache",
        summary="single tokens of the past chosen by a soft vote of all heads, reused while queries stay similar",
        formula="see {init} + top_n sum_h softmax_n(mean_i q_ih . k_nh) + {last local}, numbered 0..init+top+local-1; "
        "reuse the choice if cos(q, q_chosen) >= reuse",
        seams=("position", "select"),
        papers=(175,),
        source="arXiv 2411.02886, section 4; sizes, un-scaled products, rotation of the voting query and the threshold "
        "of the selection cache as in the released code",
        exact_when="the input is no longer than init + top + local",
        refuses="init + top + local beyond the trained window; methods that evict, choose keys or read weights",
        simplified="the choice is reused by single tokens only, not from chunk to chunk of a prefill; "
        "the paged kernel is left out",
        neutral={"top": 1 << 20},
        test="tests/oracle/test_tokenselect.py",
    )

    def validate(self) -> None:
        """Sizes that fit each other."""
        self.require(min(self.local, self.top, self.chunk) >= 1, "local, top and chunk must be at least 1")
        self.require(self.init >= 0, "init must be at least 0")
        self.require(
            self.chunk <= self.local, "a chunk must fit the local window, or its tokens would not see each other"
        )
        self.require(self.reuse is None or 0 < self.reuse <= 1, "reuse must be above 0 and at most 1, or none")

    @property
    def size(self) -> int:
        """Tokens that a query sees at most."""
        return self.init + self.top + self.local

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Trained distances only; the chosen tokens are hidden from other methods."""
        reasons = []
        if model is not None and model.window < self.size < 1 << 20:
            reasons.append(f"init + top + local = {self.size} is beyond the trained window of {model.window}")
        why = {
            "select": "chooses keys too",
            "keep": "drops tokens that it may want",
            "observe": "reads weights, of which it would miss those",
        }
        return reasons + _beside.reasons("tokenselect adds tokens of its own choice", others, why)

    def queries_at_once(self) -> int:
        """A chunk shares its choice."""
        return self.chunk

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        """What is near, as it is. Chosen tokens are read from the un-rotated keys of the second frame, in `extras`."""
        return Frame(high=self.size), Frame(low=self.size, query=at(self.size), key=UNROTATED)

    def visible(self, view: View) -> Visible:
        """Everything while it fits, then the local window; the rest of what is chosen is added by `extras`."""
        view.state.pop("slots", None)
        first = view.kv.n - self.local
        if view.kv.n <= self.size:
            return Visible()
        view.state["slots"] = torch.cat([torch.arange(self.init), self._choose(view, first)])
        return Visible(slots=torch.arange(first, view.kv.n))

    def extras(self, view: View) -> list[Partial]:
        """First and chosen tokens at positions 0, 1, 2 ... right before the local window."""
        slots: Tensor | None = view.state.get("slots")
        if slots is None:
            return []
        rows, count = view.q.shape[1], len(slots)
        q = view.rope.rotate(view.q, count + self.local - rows + torch.arange(rows))
        k = view.rope.rotate(view.kv.keys[UNROTATED].gather(slots), torch.arange(count))
        v = view.kv.values.gather(slots)
        view.receipt.pairs += view.q.shape[0] * rows * count
        view.receipt.bytes_read += 2 * k.numel() * k.element_size()
        if view.added is not None:
            logits = attend.logits(q, k, scale=view.scale, softcap=view.softcap)
            view.added.append((view.kv.positions[slots], logits))
        return [attend.partial(q, k, v, scale=view.scale, softcap=view.softcap)]

    def _choose(self, view: View, first: int) -> Tensor:
        """Slots [top] between the first tokens and `first`: the choice of last time, or a new one."""
        rows = view.q.shape[1]
        query = view.rope.rotate(view.q, self.local + torch.arange(rows)).float().mean(1)
        if rows == 1 and (known := self._reused(view, query)) is not None:
            return known
        keys, logits = view.kv.keys[UNROTATED], []
        q = query.reshape(view.facts.kv_heads, -1, query.shape[-1])
        for a in range(self.init, first, _SCORED):
            logits.append(q @ keys.read(a, min(first, a + _SCORED)).float().transpose(1, 2))
        # the logarithm of the votes: the same order, but small ones do not round to a tie
        votes = torch.cat(logits, -1).log_softmax(-1).flatten(0, 1).logsumexp(0)
        slots = self.init + votes.topk(self.top).indices.sort().values.cpu()
        view.state["query"], view.state["chosen"] = query, slots
        view.receipt.pairs += view.q.shape[0] * (first - self.init)
        view.receipt.bytes_read += (first - self.init) * q.shape[0] * q.shape[2] * view.q.element_size()
        return slots

    def _reused(self, view: View, query: Tensor) -> Tensor | None:
        """The slots that were chosen last, if the query is similar enough to the one that chose them; else None."""
        known: Tensor | None = view.state.get("query")
        if self.reuse is None or known is None:
            return None
        cosine = torch.cosine_similarity(query.flatten(), known.flatten().to(query), dim=0)
        chosen: Tensor = view.state["chosen"]
        return chosen if float(cosine) >= self.reuse else None
