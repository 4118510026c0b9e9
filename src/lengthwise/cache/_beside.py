"""What the methods share that add keys of their own choice: why others cannot stand beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lengthwise.core.spec import Method


def reasons(what: str, others: Sequence[Method], why: Mapping[str, str]) -> list[str]:
    """For every seam in `why` that another method claims, that `what` the method does, and what the other one does."""
    return [
        f"{what}, and {other.spec.name} {why[seam]}"
        for other in others
        for seam in sorted(why.keys() & {*other.spec.seams})
    ]
