"""The patterns of MInference: which blocks and single keys one head sees (arXiv 2407.02490, section 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lengthwise.errors import BadParameter
from lengthwise.kernels.attend.lists import SLOTS

LAST = 64  # queries at the end of a block that its index is made from
FIRST_COLUMNS, NEAREST_DIAGONALS = 30, 100  # those that come before all others in the budget


class Pattern(NamedTuple):
    """What a head sees. vertical-slash: columns and diagonals; a-shape: first and last tokens; block-sparse: blocks."""

    kind: Literal["vertical-slash", "a-shape", "block-sparse"]
    one: int
    two: int = 0


def softmax_of_last(q: Tensor, k: Tensor, scale: float, softcap: float | None, rows: int) -> Tensor:
    """Softmax weights [Hq, R, n] float32 of the last R <= `rows` queries of q [Hq, C, D] over k [Hkv, n, D]."""
    n = k.shape[1]
    some = q[:, -rows:].reshape(k.shape[0], -1, q.shape[2]).float()
    logits = (some @ k.float().transpose(1, 2) * scale).view(q.shape[0], -1, n)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    count = logits.shape[1]
    ahead = torch.arange(n) > torch.arange(n - count, n)[:, None]
    return logits.masked_fill(ahead.to(q.device), float("-inf")).softmax(-1)


def columns_and_diagonals(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax weights [R, n] of the last R of n tokens, summed by key [n] and by distance query - key [n]."""
    rows, n = weights.shape
    turned = weights.flip(-1)  # column j is key n - 1 - j, so query n - rows + i is at distance j - (rows - 1 - i)
    diagonals = torch.zeros(n, device=weights.device)
    for i in range(rows):
        skip = rows - 1 - i
        diagonals[: n - skip] += turned[i, skip:]
    return weights.sum(0), diagonals


def seen_by(pattern: Pattern, weights: Tensor, q: Tensor, k: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks [QB, B] and columns [n], both bool, of a head with queries q [C, D] at the end of keys k [n, D].

    `weights` [R, n] are the softmax weights of its last queries, `stop` [QB] the blocks up to the last query of every
    64. What lies ahead of a query is left to the mask of attention.
    """
    (count, _), n, blocks = q.shape, len(k), int(stop.max())
    mask, columns = torch.zeros(len(stop), blocks, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    first = torch.arange(n - count, n, SLOTS)
    last = (first + SLOTS).clamp(max=n) - 1
    if pattern.kind == "a-shape":
        block = torch.arange(blocks)
        mask |= block * SLOTS < pattern.one
        mask |= block >= (last - pattern.two + 1).clamp(min=0)[:, None] // SLOTS
    elif pattern.kind == "block-sparse":
        pooled = torch.stack([x.float().mean(0) for x in q.split(SLOTS)])
        means = torch.stack([x.float().mean(0) for x in k.split(SLOTS)])
        score = (pooled @ means.T).cpu().masked_fill(torch.arange(blocks) >= stop[:, None], float("-inf"))
        mask.scatter_(1, score.topk(min(pattern.one, blocks), dim=-1).indices, True)
        mask[torch.arange(len(stop)), stop - 1] = True
    else:
        vertical, diagonal = (x.cpu() for x in columns_and_diagonals(weights))
        vertical[: min(pattern.one, FIRST_COLUMNS)] = float("inf")
        diagonal[: min(pattern.two, NEAREST_DIAGONALS)] = float("inf")
        columns[vertical.topk(min(n, pattern.one)).indices] = True
        slashes = diagonal.topk(min(n, pattern.two)).indices
        for tile, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            for edge in (a, b):
                touched = torch.div(edge - slashes, SLOTS, rounding_mode="floor")
                mask[tile, touched[touched >= 0]] = True
    return mask & (torch.arange(blocks) < stop[:, None]), columns


@cache
def read(path: str) -> tuple[tuple[Pattern, ...], ...]:
    """The patterns of every head of every layer from a JSON file. Raises BadParameter for one that is none."""
    try:
        layers = json.loads(Path(path).expanduser().read_text())["layers"]
        found = tuple(tuple(Pattern(str(h[0]), int(h[1]), int(h[2])) for h in layer) for layer in layers)  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BadParameter(
            f"minference: {path} holds no patterns ({error}): write it with python -m lengthwise.attention minference"
        ) from error
    kinds = ("vertical-slash", "a-shape", "block-sparse")
    for head in (head for layer in found for head in layer):
        if head.kind not in kinds or min(head.one, head.two) < 0 or (head.kind != "block-sparse" and head.two < 1):
            raise BadParameter(f"minference: {path} names {tuple(head)}: write it anew")
    return found


def write(path: str | Path, patterns: Sequence[Sequence[Pattern]]) -> None:
    """The patterns as the JSON file that `read` reads."""
    Path(path).expanduser().write_text(json.dumps({"layers": [[list(h) for h in layer] for layer in patterns]}) + "\n")
