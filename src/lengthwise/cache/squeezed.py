"""Squeezed Attention: a fixed prompt looked up by clusters of its keys (Hooper et al. 2024, arXiv 2411.09688)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.cache import _beside
from lengthwise.cache._kmeans import kmeans, means
from lengthwise.core import attend
from lengthwise.core.attend import Partial
from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import NATIVE, Visible
from lengthwise.core.seams import Positions, Selects, View
from lengthwise.core.spec import Method, Spec, param

_COARSE_SPARSITY = 0.5  # share of the keys that the first of two levels leaves out
_ROWS = 256  # queries at once: bounds the masks of one block


@dataclass(frozen=True)
class Squeezed(Selects):
    """Keys of a fixed prompt lie in clusters; a query reads the keys of the clusters that seem to matter to it.

    At the end of the prompt the keys of every key head, but for the last `observed`, are clustered by direction
    (k-means). Cluster i has N_i keys and their mean C_i; a query q of any head gives each of its keys the weight

    S_i = exp(q . C_i / sqrt(d)) / sum_j N_j exp(q . C_j / sqrt(d))

    and sees the keys for which S_i > T exactly, beside all tokens after them. T is set so that the mean weights over
    the last `observed` queries of the prompt leave out the share `sparsity` of its keys. With `coarse`, centroids are
    clustered again, and only those in coarse clusters above a threshold of their own are looked at.
    """

    sparsity: float = param(0.7, "share of the clustered keys that a query leaves out, on average; 0: off")
    clusters: float = param(0.05, "clusters, as a share of the keys")
    coarse: float = param(
        0.0, "coarse clusters of two levels, as a share of the keys (0.01 in the paper); 0: one level"
    )
    observed: int = param(100, "last tokens of the prompt that set the threshold; they stay visible")
    fixed: int | None = param(None, "tokens of the fixed prompt; none: all that precedes the first pass of one token")

    per_layer = True

    spec: ClassVar[Spec] = Spec(
        name="squeezed",
        family="cache",
        summary="keys of a fixed prompt clustered once; queries read those of the clusters that matter to them",
        formula="see n if S_i > T for its cluster i, S_i = exp(q.C_i/sqrt d) / sum_j N_j exp(q.C_j/sqrt d); "
        "T: quantile of the mean S over the prompt's last queries; two levels: S' of coarse clusters first",
        seams=("select",),
        papers=(167,),
        source="arXiv 2411.09688, sections 4 and 5; clusters by direction, their means, the calibration by quantiles, "
        "5 % and 1 % of centroids and half of the keys for the first level as in the released code",
        exact_when="sparsity=0, or until the fixed prompt has been read",
        refuses="methods that evict, choose keys, read attention weights, or give keys several positions",
        simplified="one threshold for each layer (the paper: one for all layers); at most 50 rounds of k-means; the "
        "Triton kernels are left out, and keys of a cold tier are all read",
        neutral={"sparsity": 0.0},
        test="tests/oracle/test_squeezed.py",
    )

    def validate(self) -> None:
        """Shares, and levels that get coarser."""
        self.require(0 <= self.sparsity < 1, "sparsity must be at least 0 and below 1")
        self.require(0 < self.clusters <= 1, "clusters must be above 0 and at most 1")
        self.require(0 <= self.coarse < self.clusters, "coarse must be at least 0 and below clusters")
        self.require(self.observed >= 1, "observed must be at least 1")
        enough = self.fixed is None or int((self.fixed - self.observed) * self.clusters) >= 2
        self.require(
            enough, f"fixed={self.fixed} leaves fewer than 2 clusters before the observed={self.observed} tokens"
        )

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Keys must stay, with one position each; what queries choose is hidden from other methods."""
        why = {
            "select": "chooses keys too",
            "keep": "evicts some of them",
            "observe": "reads weights, of which it would miss theirs",
        }
        reasons = _beside.reasons("squeezed looks keys up by clusters", others, why)
        for other in others:
            if isinstance(other, Positions) and other.moves_keys(model):
                reasons.append(
                    f"squeezed clusters keys where they stand, and {other.spec.name} gives them several places"
                )
        return reasons

    def queries_at_once(self) -> int | None:
        """Bounds the masks."""
        return _ROWS if self.sparsity else None

    def visible(self, view: View) -> Visible:
        """Everything until the prompt is clustered; then what follows the clustered keys."""
        if not self.sparsity:
            return Visible()
        if "labels" not in view.state and self._ended(view):
            self._cluster(view)
        if "labels" not in view.state:
            self._remember(view)
            return Visible()
        return Visible(slots=torch.arange(view.state["labels"].shape[1], view.kv.n))

    def extras(self, view: View) -> list[Partial]:
        """Exact attention to the keys of the clusters that each query of each head looks up."""
        labels: Tensor | None = view.state.get("labels")
        if labels is None:
            return []
        heads, rows, dim = view.q.shape
        count = labels.shape[1]
        queries = _turned(view).reshape(labels.shape[0], -1, dim)
        out = torch.zeros(queries.shape, device=view.q.device)
        lse = torch.full(queries.shape[:2], float("-inf"), device=view.q.device)
        keys, values = view.kv.keys[NATIVE].read(0, count), view.kv.values.read(0, count)
        logits = None if view.added is None else lse.new_full((*lse.shape, count), float("-inf"))
        for h, q in enumerate(queries):
            wanted = self._look_up(view, h, q)
            slots = wanted.any(0)[labels[h].to(q.device)].nonzero()[:, 0]
            if len(slots) == 0:
                continue
            mask = wanted[:, labels[h].to(q.device)[slots]]
            k, v = keys[h].index_select(0, slots), values[h].index_select(0, slots)
            some = attend.partial(q[None], k[None], v[None], scale=view.scale, mask=mask, softcap=view.softcap)
            out[h], lse[h] = some[0][0].float(), some[1][0].float()
            if logits is not None:
                found = attend.logits(q[None], k[None], scale=view.scale, mask=mask, softcap=view.softcap)
                logits[h, :, slots] = found[0]
            view.receipt.pairs += int(mask.sum())
            view.receipt.bytes_read += 2 * k.numel() * k.element_size()
        if view.added is not None and logits is not None:
            view.added.append((view.kv.positions[:count], logits.reshape(heads, rows, count)))
        return [(out.reshape(heads, rows, dim), lse.reshape(heads, rows))]

    def _ended(self, view: View) -> bool:
        """Whether the fixed prompt has been read, and is long enough for two clusters."""
        ended = view.q.shape[1] == 1 if self.fixed is None else view.start >= self.fixed
        return ended and int((self._length(view) - self.observed) * self.clusters) >= 2

    def _length(self, view: View) -> int:
        return view.start if self.fixed is None else self.fixed

    def _remember(self, view: View) -> None:
        """Keep the last `observed` queries of the prompt, in float32: they set the threshold."""
        new = _turned(view)[:, : None if self.fixed is None else max(0, self.fixed - view.start)].float()
        known = view.state.get("queries", new[:, :0]).to(new.device)
        view.state["queries"] = torch.cat([known, new], 1)[:, -self.observed :].clone()

    def _cluster(self, view: View) -> None:
        """Cluster the keys of the prompt and set the thresholds."""
        count = self._length(view) - self.observed
        keys = view.kv.keys[NATIVE].read(0, count).float()
        labels = kmeans(keys, int(count * self.clusters))
        centroids, sizes = means(keys, labels, int(count * self.clusters))
        state, queries = view.state, view.state.pop("queries").to(keys.device)
        state["labels"], state["centroids"], state["log_sizes"] = labels, centroids, sizes.log()
        state["threshold"] = self._threshold(view, queries, centroids, sizes, labels, self.sparsity)
        if self.coarse:
            few = max(1, int(count * self.coarse))
            state["parents"] = kmeans(centroids, few)
            state["coarse"], _ = means(centroids, state["parents"], few)
            above = state["parents"].gather(1, labels)
            total = torch.zeros_like(state["coarse"][..., 0]).scatter_add_(1, above, torch.ones_like(keys[..., 0]))
            state["log_coarse_sizes"] = total.log()
            state["coarse_threshold"] = self._threshold(view, queries, state["coarse"], total, above, _COARSE_SPARSITY)

    def _threshold(
        self, view: View, queries: Tensor, centroids: Tensor, sizes: Tensor, labels: Tensor, sparsity: float
    ) -> Tensor:
        """The logarithm of the quantile `sparsity` of the keys' mean weights, over all query heads of the layer."""
        each = []
        for h, q in enumerate(queries.reshape(labels.shape[0], -1, *queries.shape[1:])):
            weights = _log_weights(view, q, centroids[h], sizes[h].log()).exp().mean(1)
            each.append(weights[:, labels[h]])
        found = torch.cat(each).flatten()
        return found.kthvalue(1 + int(sparsity * (len(found) - 1))).values.log()

    def _look_up(self, view: View, head: int, q: Tensor) -> Tensor:
        """Which clusters of a key head the queries [R, D] want: [R, clusters]."""
        state, q = view.state, q.float()
        centroids = state["centroids"][head].to(q.device)
        log_sizes = state["log_sizes"][head].to(q.device).expand(len(q), -1)
        alive = torch.arange(len(centroids), device=q.device)
        if self.coarse:
            coarse = state["coarse"][head].to(q.device)
            weights = _log_weights(view, q, coarse, state["log_coarse_sizes"][head].to(q.device))
            left = (weights > state["coarse_threshold"].to(q.device))[:, state["parents"][head].to(q.device)]
            log_sizes = log_sizes.masked_fill(~left, float("-inf"))
            alive = left.any(0).nonzero()[:, 0]  # only their centroids are read
            view.receipt.pairs += weights.numel()
            view.receipt.bytes_read += coarse.numel() * coarse.element_size()
        wanted = torch.zeros(len(q), len(centroids), dtype=torch.bool, device=q.device)
        weights = _log_weights(view, q, centroids[alive], log_sizes[:, alive])
        wanted[:, alive] = (weights > state["threshold"].to(q.device)) & (log_sizes[:, alive] > float("-inf"))
        view.receipt.pairs += weights.numel()
        view.receipt.bytes_read += len(alive) * centroids.shape[1] * centroids.element_size()
        return wanted


def _turned(view: View) -> Tensor:
    """The queries [Hq, C, D], rotated where they stand."""
    return view.rope.rotate(view.q, view.positions) if view.raw else view.q


def _log_weights(view: View, q: Tensor, centroids: Tensor, log_sizes: Tensor) -> Tensor:
    """ln S: the weight that one key of each cluster draws from q [..., D], by its centroid [K, D]: [..., K]."""
    logits = q @ centroids.T * view.scale
    if view.softcap is not None:
        logits = view.softcap * torch.tanh(logits / view.softcap)
    return logits - (logits + log_sizes).logsumexp(-1, keepdim=True)
