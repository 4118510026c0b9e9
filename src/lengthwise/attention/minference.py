"""MInference: every head has a pattern, and what it sees is looked up from the last queries (arXiv 2407.02490)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from lengthwise.attention import _blocks
from lengthwise.attention._patterns import LAST, Pattern, read, seen_by, softmax_of_last
from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Blocks, View
from lengthwise.core.spec import Method, Spec, param
from lengthwise.kernels.attend.lists import BlockLists


@dataclass(frozen=True)
class Minference(Blocks):
    """Dynamic sparse prefill: vertical-slash, A-shape and block-sparse heads, with an index built as the text is read.

        A = softmax(q_last64 K^T);  columns = top-`vertical` of sum_i A_in;  diagonals = top-`slash` of sum_i A_i,i-d

    Every head of the pattern vertical-slash sees those columns, key by key, and all blocks of 64 keys that its
    diagonals touch; an A-shape head sees first and last tokens; a block-sparse head the blocks of largest
    mean(q) . mean(k). Each block of queries that is read at once (a chunk, 1,024 at most) has an index of its own from
    its own last 64 queries, as in the chunked prefill of Qwen2.5-1M. Decoding is dense.

    Patterns are searched and their budgets refined by attention recall off line, once for a model:
    `python -m lengthwise.attention minference --model M --out F.json`, then `minference:patterns=F.json`.
    """

    patterns: str | None = param(None, "JSON file of every head's pattern; none: vertical-slash for all heads")
    vertical: int = param(1000, "columns of a head without a pattern in the file")
    slash: int = param(6096, "diagonals of a head without a pattern in the file")

    spec: ClassVar[Spec] = Spec(
        name="minference",
        family="attention",
        summary="sparse prefill by head: columns and diagonals, first and last tokens, or blocks, looked up on the way",
        formula="A = softmax(q_last K^T); a head sees keys n of the top-v column sums of A and blocks that touch the "
        "top-s diagonal sums; or n < s or m-n < w; or top-k blocks of mean(q) . mean(k)",
        seams=("blocks",),
        papers=(4, 177),
        source="arXiv 2407.02490, section 3 and algorithms 1-3, sizes of the released default; Qwen2.5-1M "
        "(arXiv 2501.15383), section 5.2: index for each chunk, budgets refined by attention recall",
        exact_when="the input is no longer than `slash`, without a file of patterns; decoding always is",
        refuses="methods that drop, move or code keys, or give them several positions; patterns of another model",
        simplified="diagonals are seen in whole blocks of 64 keys, columns key by key; the off-line search compares "
        "attention recall, not the error of the output",
        neutral={"slash": 1 << 30},
        test="tests/oracle/test_minference.py",
    )

    def validate(self) -> None:
        """Sizes, and a file that can be read."""
        self.require(self.vertical >= 0 and self.slash >= 1, "vertical must be at least 0 and slash 1")
        if self.patterns is not None:
            read(self.patterns)

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """The file must be of a model of this shape."""
        reasons = super().check(model, others)
        if model is not None and self.patterns is not None:
            layers = read(self.patterns)
            if [len(layer) for layer in layers] != [model.heads] * len(model.layer_kinds):
                reasons.append(
                    f"{self.patterns} has patterns for {len(layers)} layers, the model has {len(model.layer_kinds)} "
                    f"of {model.heads} heads: search them anew"
                )
        return reasons

    def of_layer(self, layer: int, heads: int) -> tuple[Pattern, ...]:
        """The pattern of every query head of a layer."""
        if self.patterns is None:
            return (Pattern("vertical-slash", self.vertical, self.slash),) * heads
        return read(self.patterns)[layer]

    def lists(self, view: View) -> BlockLists | None:
        """The lists of every head; None for a decoded token, and while everything is seen anyway."""
        q, n = view.q, view.kv.n
        patterns = self.of_layer(view.layer, q.shape[0])
        if q.shape[1] == 1 or all(p.kind == "vertical-slash" and p.two >= n for p in patterns):
            return None
        q, k, stop = _blocks.queries(view), _blocks.keys(view), _blocks.limits(view)
        weights = softmax_of_last(q, k, view.scale, view.softcap, LAST)
        view.receipt.pairs += q.shape[0] * sum(range(n - weights.shape[1] + 1, n + 1))
        group = q.shape[0] // k.shape[0]
        found = [seen_by(p, weights[h], q[h], k[h // group], stop) for h, p in enumerate(patterns)]
        view.receipt.pairs += sum(p.kind == "block-sparse" for p in patterns) * int(stop.sum())
        return BlockLists.of(torch.stack([f[0] for f in found])).with_columns(torch.stack([f[1] for f in found]))
