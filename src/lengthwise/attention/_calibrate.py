"""What is measured once for a model: the pattern of every head (`minference`), and which heads stream (`lserve`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lengthwise.attention import _blocks
from lengthwise.attention._patterns import Pattern, seen_by, softmax_of_last
from lengthwise.core.frames import EVERYTHING, Visible
from lengthwise.core.seams import Selects, View
from lengthwise.core.spec import Spec
from lengthwise.core.stack import Stack
from lengthwise.kernels.attend.lists import SLOTS

# of about the same cost at 128k tokens (arXiv 2407.02490, appendix on the search space)
CANDIDATES = (
    Pattern("a-shape", 1024, 4096),
    Pattern("vertical-slash", 30, 2048),
    Pattern("vertical-slash", 100, 1800),
    Pattern("vertical-slash", 500, 1500),
    Pattern("vertical-slash", 3000, 200),
    Pattern("block-sparse", 100),
)
_JUDGED = 256  # last queries of the text whose attention a pattern must hold


def last_block(model: PreTrainedModel, ids: Tensor, look: Callable[[View], None]) -> None:
    """Read ids [1, N] with plain attention and call `look` in every layer with the last block of queries."""

    class Looking(Selects):
        """Sees everything, and shows it."""

        per_layer = True
        spec: ClassVar[Spec] = Spec(
            name="calibration", family="attention", summary="plain", formula="plain", seams=("select",)
        )

        def visible(self, view: View) -> Visible:
            """Everything."""
            if view.stop == ids.shape[1]:
                look(view)
            return EVERYTHING

    with Stack([Looking()]).on(model) as run:
        for _ in run.feed(ids, run.cache(ids.shape[1])):
            pass


def scaled(candidates: Sequence[Pattern], scale: float) -> list[Pattern]:
    """The candidates with all sizes multiplied, for texts that are shorter than those they were meant for."""
    return [Pattern(p.kind, max(1, round(p.one * scale)), max(1, round(p.two * scale))) for p in candidates]


def search_patterns(
    model: PreTrainedModel, ids: Tensor, *, candidates: Sequence[Pattern] = CANDIDATES, recall: float = 0.0
) -> tuple[list[list[Pattern]], list[list[float]]]:
    """The pattern of every head of every layer, and the share of its attention that it holds.

    Each head gets the candidate that holds most of the softmax of the last 256 queries of ids [1, N]. With `recall`
    (Qwen2.5-1M, arXiv 2501.15383, section 5.2) the sizes of a head that holds less grow by half until it does.
    """
    layers: list[list[Pattern]] = [[] for _ in range(int(model.config.num_hidden_layers))]
    shares: list[list[float]] = [[] for _ in layers]

    def look(view: View) -> None:
        q, k, stop = _blocks.queries(view), _blocks.keys(view), _blocks.limits(view)
        weights = softmax_of_last(q, k, view.scale, view.softcap, min(_JUDGED, q.shape[1]))
        for h in range(q.shape[0]):
            key = k[h * k.shape[0] // q.shape[0]]

            def held(p: Pattern, h: int = h, key: Tensor = key) -> float:
                return share_held(p, weights[h], q[h], key, stop)

            best = max(candidates, key=held)
            while recall and held(best) < recall and max(best.one, best.two) < view.kv.n:
                best = scaled([best], 1.5)[0]._replace(one=max(best.one + 1, round(1.5 * best.one)))
            layers[view.layer].append(best)
            shares[view.layer].append(held(best))

    last_block(model, ids, look)
    return layers, shares


def share_held(pattern: Pattern, weights: Tensor, q: Tensor, k: Tensor, stop: Tensor) -> float:
    """The mean share of softmax weights [R, n], of the last R of q [C, D], that lies where `pattern` lets them look."""
    blocks, columns = seen_by(pattern, weights[-min(len(weights), 64) :], q, k, stop)
    rows, n = weights.shape
    tile = torch.arange(len(q) - rows, len(q)) // SLOTS
    seen = blocks.repeat_interleave(SLOTS, 1)[:, :n][tile] | columns
    return float((weights.cpu() * seen).sum() / rows)


def streaming_heads(
    model: PreTrainedModel, ids: Tensor, *, share: float = 0.5, sinks: int = 128, window: int = 256
) -> tuple[list[list[bool]], list[list[float]]]:
    """Which KV heads of every layer stream, and the attention that each has beyond sinks and window.

    Of all KV heads the `share` that look away least: the softmax of the last 256 queries of ids [1, N] beyond the first
    `sinks` and the last `window` keys, in the head of the group that has most there. Use a text that makes heads look
    back, such as `repeated`.
    """
    layers = int(model.config.num_hidden_layers)
    far: list[list[float]] = [[] for _ in range(layers)]

    def look(view: View) -> None:
        q, k = _blocks.queries(view), _blocks.keys(view)
        weights = softmax_of_last(q, k, view.scale, view.softcap, min(_JUDGED, q.shape[1]))
        n = torch.arange(view.kv.n)
        m = n[view.kv.n - weights.shape[1] :, None]
        beyond = (n >= sinks) & (m - n >= window)
        mass = (weights.cpu() * beyond).sum(-1).mean(-1)
        far[view.layer] = mass.unflatten(0, (k.shape[0], -1)).amax(1).tolist()

    last_block(model, ids, look)
    order = sorted((x, layer, h) for layer, heads in enumerate(far) for h, x in enumerate(heads))
    chosen = {(layer, h) for _, layer, h in order[: round(share * len(order))]}
    return [[(layer, h) in chosen for h in range(len(heads))] for layer, heads in enumerate(far)], far


def repeated(vocabulary: int, length: int, period: int = 1024, seed: int = 0) -> Tensor:
    """Random tokens [1, length] that repeat after `period`: every head that retrieves looks one period back."""
    period = min(period, max(1, length // 2))
    once = torch.randint(0, vocabulary, (1, period), generator=torch.Generator().manual_seed(seed))
    return once.repeat(1, -(-length // period))[:, :length]


def write_gates(path: str | Path, streaming: Sequence[Sequence[bool]]) -> None:
    """The gates as the JSON file that `lserve:gates=` reads."""
    Path(path).expanduser().write_text(json.dumps({"streaming": [list(layer) for layer in streaming]}) + "\n")
