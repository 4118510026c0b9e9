"""InfLLM: memory units of distant blocks, looked up per chunk (Xiao et al. 2024, arXiv 2402.04617)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lengthwise.cache.offload import Tier, arena_on
from lengthwise.core.arena import Arena
from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import UNROTATED, Frame, Visible, at
from lengthwise.core.seams import Observes, Positions, Selects, Stores, View
from lengthwise.core.spec import Method, Spec, param


@dataclass(frozen=True)
class Infllm(Positions, Selects, Observes, Stores):
    """First tokens, a local window, and the `top` blocks of the distant past that fit the chunk of queries best.

    Everything beyond the local window stands at one distance, local - 1, with keys un-rotated. Tokens that left the
    window but do not fill a block yet stay visible. Two rules score a block b for a chunk of queries q:

    published: s_b = sum_h mean_i(q_ih) . r_bh, with r_bh the mean of the block's `reps` keys that drew most attention
        weight from queries in whose local window they lay;
    max: s_b = max_{h,i} softmax_b(max_{n in b} q_ih . k_nh / sqrt(d)): every token represents its block and one
        query of one head is enough to call it.
    """

    init: int = param(128, "first tokens, always visible")
    local: int = param(4096, "local window in tokens")
    block: int = param(128, "tokens of a memory unit")
    top: int = param(16, "units looked up for a chunk")
    reps: int = param(4, "representative tokens of a unit (rule=published)")
    chunk: int = param(512, "queries that share a lookup")
    rule: Literal["published", "max"] = param("published", "how units are scored; max finds far more on small models")
    to: Tier = param("auto", "where units lie: auto is host RAM for a model on a GPU and disk for one on the CPU")
    cached: int = param(32, "units that an LRU keeps in memory, per layer and lane")
    folder: str | None = param(None, "where to put the units' file; none: the system's folder for temporary files")

    per_layer = True

    spec: ClassVar[Spec] = Spec(
        name="infllm",
        family="cache",
        summary="distant context in memory units of blocks, the best looked up for every chunk",
        formula="see {init} + top_b s_b + {m-n < local}; rel(m,n) = m-n if < local else local-1; "
        "s_b = sum_h mean(q_h) . mean of the block's reps (published) or max_h,i softmax_b max_n q.k (max)",
        seams=("position", "select", "observe", "tier"),
        papers=(31,),
        source="arXiv 2402.04617, sections 3.1-3.3; defaults of the released configuration for Mistral-7B; "
        "representatives by attention weight and averaged, as released (the paper: mean dot product)",
        exact_when="the input is no longer than the local window",
        refuses="a local window beyond the trained one; fewer cached than looked-up units",
        simplified="distances split exactly at the local window (the released code counts some boundary keys twice)",
        neutral={"local": 1 << 20, "to": "disk"},
        test="tests/oracle/test_infllm.py",
    )

    def validate(self) -> None:
        """Sizes that fit each other."""
        self.require(min(self.local, self.block, self.top, self.reps, self.chunk) >= 1, "sizes must be at least 1")
        self.require(self.init >= 0, "init must be at least 0")
        self.require(self.reps <= self.block, "reps cannot exceed the block")
        self.require(self.cached >= self.top, "cached must be at least top, or every lookup reads its units again")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Trained distances only."""
        if model is not None and model.window < self.local < 1 << 20:
            return [f"local={self.local} is beyond the trained window of {model.window}"]
        return []

    def queries_at_once(self) -> int:
        """A chunk shares its lookup."""
        return self.chunk

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        """Local: as it is. Beyond: query at local - 1, key at 0."""
        return Frame(high=self.local), Frame(low=self.local, query=at(self.local - 1), key=UNROTATED)

    def arena(self, facts: ModelFacts) -> Callable[[], Arena]:
        """Where units lie."""
        return arena_on(self.to, facts, self.folder, self.block, self.cached)

    def hot_tokens(self, facts: ModelFacts) -> int:
        """The local window."""
        return self.local

    def tokens_seen(self, length: int, facts: ModelFacts) -> int | None:
        """First tokens, units, the local window, and what is not in a unit yet; the maximum rule scores all keys."""
        most = self.init + self.top * self.block + self.local + self.block + self.chunk
        return min(length, most) if self.rule == "published" else None

    def visible(self, view: View) -> Visible:
        """First tokens, the looked-up units, and everything that is not in a unit."""
        units = max(0, view.start - self.local + 1 - self.init) // self.block
        if self.rule == "published":
            self._form(view, units)
        if units <= self.top:
            return Visible()
        scores = self._by_representatives(view) if self.rule == "published" else self._by_maximum(view, units)
        best = scores.topk(self.top).indices.sort().values.cpu()
        inside = (self.init + best[:, None] * self.block + torch.arange(self.block)).flatten()
        rest = torch.arange(self.init + units * self.block, view.kv.n)
        return Visible(slots=torch.cat([torch.arange(self.init), inside, rest]))

    def watching(self, view: View) -> bool:
        """Only the published rule weighs tokens, and not while everything is within the local window."""
        return self.rule == "published"

    def wants(self, frame: Frame) -> bool:
        """Only weights within the local window count."""
        return frame.low == 0

    def observe(self, view: View, frame: Frame, slots: Tensor, weights: Tensor) -> None:
        """Add up the weight that tokens draw while they are local."""
        if not self.wants(frame):
            return
        first = view.state.get("scored_from", 0)
        score = view.state.get("score", torch.zeros(weights.shape[0], 0))
        if (grow := view.kv.n - first - score.shape[1]) > 0:
            score = torch.nn.functional.pad(score, (0, grow))
        keep = slots >= first
        score.index_add_(1, slots[keep] - first, weights.sum(1).cpu()[:, keep])
        view.state["score"] = score

    def _form(self, view: View, units: int) -> None:
        """Choose representatives of the blocks that have just left the local window: reps [Hq, units, D]."""
        heads, _, dim = view.q.shape
        reps: Tensor = view.state.get("reps", view.q.new_zeros(heads, 0, dim))
        formed, first = reps.shape[1], view.state.get("scored_from", 0)
        if units <= formed:
            return
        a, b = self.init + formed * self.block, self.init + units * self.block
        score = view.state["score"][:, a - first : b - first].reshape(heads, -1, self.block)
        picked = score.topk(self.reps, dim=-1).indices.to(view.q.device)  # [Hq, new, reps]
        keys = view.kv.keys[UNROTATED].read(a, b)
        keys = keys.repeat_interleave(heads // keys.shape[0], 0).reshape(heads, -1, self.block, dim)
        chosen = keys.gather(2, picked[..., None].expand(-1, -1, -1, dim)).float().mean(2)
        view.state["reps"] = torch.cat([reps, chosen.to(reps)], dim=1)
        view.state["score"], view.state["scored_from"] = view.state["score"][:, b - first :].clone(), b

    def _queries(self, view: View) -> Tensor:
        return view.rope.rotate(view.q, view.positions * 0 + self.local - 1).float()

    def _by_representatives(self, view: View) -> Tensor:
        """Scores [units] by the published rule."""
        reps: Tensor = view.state["reps"].to(view.q.device)  # a loaded session's are on the CPU
        return torch.einsum("hd,hbd->b", self._queries(view).mean(1), reps.float())

    def _by_maximum(self, view: View, units: int) -> Tensor:
        """Scores [units] by the best single token for the best query of the best head."""
        q = self._queries(view) * view.scale
        kv_heads = view.facts.kv_heads
        q = q.reshape(kv_heads, -1, q.shape[-1])
        best = q.new_empty(*q.shape[:2], units)
        for a in range(0, units, 64):  # 64 units at a time bound the logits held at once
            b = min(units, a + 64)
            keys = view.kv.keys[UNROTATED].read(self.init + a * self.block, self.init + b * self.block).float()
            best[..., a:b] = (q @ keys.transpose(1, 2)).reshape(*q.shape[:2], -1, self.block).amax(-1)
        if view.softcap is not None:
            best = view.softcap * torch.tanh(best / view.softcap)
        view.receipt.pairs += view.q.shape[0] * view.q.shape[1] * units * self.block
        # compare log(p / (1 - p)) instead of p = softmax(best): the same order, but p near 1 does not round to a tie
        p = best.softmax(-1)
        odds = p.log() - torch.log1p(-p)
        top = best.argmax(-1, keepdim=True)
        others = best.scatter(-1, top, float("-inf")).logsumexp(-1, keepdim=True)
        return odds.scatter(-1, top, best.gather(-1, top) - others).amax((0, 1))
