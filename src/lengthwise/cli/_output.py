"""What the commands share: tables that fit 80 columns, JSON, sizes and times as people write them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lengthwise.core.ledger import si


def console(*, stderr: bool = False) -> Console:
    """Prints text as it is: no markup, no emoji codes, no colours for numbers."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_json(value: Any) -> None:
    """The value on stdout, and nothing else; non-ASCII characters as they are where the stream can carry them."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=not utf8, allow_nan=False) + "\n")


def note(text: str) -> None:
    """A remark for people, on stderr."""
    console(stderr=True).print(text, style="dim", soft_wrap=True)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Sequence[str] = (),
    widths: Mapping[str, int] | None = None,
) -> Table:
    """A table without side lines; the columns in `right` are aligned to the right and never wrapped.

    `widths` are the most characters of a column; longer text is wrapped.
    """
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        out.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=name in right,
            overflow="fold",
            max_width=(widths or {}).get(name),
        )
    for row in rows:
        out.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return out


def facts(rows: Iterable[tuple[str, str]]) -> Padding:
    """Name and value, one a line; values wrap beside their names."""
    out = Table.grid(padding=(0, 2))
    out.add_column(no_wrap=True, style="bold")
    out.add_column(overflow="fold")
    for name, value in rows:
        out.add_row(name, Text(value))
    return Padding(out, (0, 0, 0, 0))


def bullets(lines: Iterable[str]) -> Table:
    """Lines behind a dash, wrapped beside it."""
    out = Table.grid(padding=(0, 1))
    out.add_column(no_wrap=True)
    out.add_column(overflow="fold")
    for line in lines:
        out.add_row("-", Text(line))
    return out


def size(number: float) -> str:
    """Bytes: 3,019,898,880 -> '3.02 GB'."""
    return f"{si(number)}B"


def flops(number: float) -> str:
    """Operations: '633 TFLOP', '39 PFLOP', '2,100 PFLOP'."""
    if number < 1e15:
        return f"{si(number)}FLOP"
    return f"{number / 1e15:.3g} PFLOP" if number < 1e18 else f"{number / 1e15:,.0f} PFLOP"


def seconds(number: float | None) -> str:
    """A duration: '0.53 s', '12 s', '8 min', '3.2 h', '5 days'; '?' when it is not known."""
    if number is None:
        return "?"
    if number < 0.01:
        return f"{number * 1000:.2g} ms"
    for limit, scale, unit in ((10, 1, "s"), (120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if number < limit:
            return f"{number / scale:.2g} {unit}" if number < 10 * scale else f"{number / scale:.0f} {unit}"
    return f"{number / 86_400:,.0f} days"
