"""What the methods share whose rules change at certain positions, so that blocks of queries end there."""

from __future__ import annotations

from collections.abc import Sequence

from lengthwise.core.seams import Keeps
from lengthwise.core.spec import Method


def one_block_each(method: Method, others: Sequence[Method]) -> list[str]:
    """Why `method` cannot stand beside methods that need every forward pass to be one block of queries."""
    return [
        f"{method.spec.name} cuts a forward pass into blocks, and {other.spec.name} scores whole passes"
        for other in others
        if isinstance(other, Keeps) and other.needs_surprise
    ]
