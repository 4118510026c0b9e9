"""Writes the tables of docs/results/methods.md out of rows of `lengthwise compare`.

    python scripts/methods_table.py OUT/results.jsonl [MORE.jsonl …]            write the tables into the page
    python scripts/methods_table.py OUT/results.jsonl --check                   write nothing; exit 1 when they differ

Everything behind the page's heading "## The tables" is made from the rows; the prose before it is written by hand. The
arithmetic in the stacks of benchmarks/methods.sh is shortened to F, N and G, which the page explains. Several files
are one table; where two have the same sample, the later one counts.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lengthwise.bench import registry
from lengthwise.bench.store import Row, read_rows
from lengthwise.bench.summary import sample_id, totals
from lengthwise.bench.table import markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "methods.md"
HEADING = "## The tables"
SHORT = {
    "{max(1, length/window)}": "F",
    "{max(length, window)}": "N",
    "{min(256, 2**ceil(log2(max(1, (length-256)/256))))}": "G",
}
TITLES = {
    "needle": "One pass key of eight",
    "pairs": "One JSON key of sixteen",
    "multi-query": "Several pass keys at once",
    "trace": "A chain of variables",
}
LEGEND = (
    "`F` is `{max(1, length/window)}`, `N` is `{max(length, window)}`, `G` the smallest power of two that brings the "
    "length into the window (at most 256): `benchmarks/methods.sh` has them in full."
)


def short(stack: str) -> str:
    """The stack with its arithmetic shortened."""
    for long, letter in SHORT.items():
        stack = stack.replace(long, letter)
    return re.sub(r"params=[^,+ ]+", "params=FILE", stack)


def title(task: str) -> str:
    """The heading of a task's table, with the task as it is typed."""
    name = task.partition(":")[0]
    known = registry.all_tasks().get(name)
    words = TITLES.get(name) or (known.spec.summary.capitalize() if known else name)
    return f"{words} (`{'needle:keys=8' if task == 'needle' else task}`)"


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row for each sample and stack: the last one."""
    found = {(row["stack"], sample_id(row)): row for row in rows}
    return list(found.values())


def tables(rows: Iterable[Row]) -> str:
    """All that follows the heading: a legend, a table for each task, its caption and reasons."""
    text = markdown(totals({**row, "stack": short(row["stack"])} for row in latest(rows)))
    text = re.sub(r"^### (.*)$", lambda m: f"### {title(m[1])}", text, flags=re.MULTILINE)
    return f"{LEGEND}\n\n{text.rstrip()}\n"


def page_with(page: str, rows: Iterable[Row]) -> str:
    """The page with its tables made anew. Raises SystemExit when it has no place for them."""
    before, heading, _ = page.partition(f"{HEADING}\n")
    if not heading:
        raise SystemExit(f"the page has no line '{HEADING}'")
    return f"{before}{heading}\n{tables(rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="rows of lengthwise compare")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 when the page differs")
    options = parser.parse_args(arguments)
    rows = [row for file in options.files for row in read_rows(file)]
    if not rows:
        raise SystemExit(f"there are no rows in {', '.join(map(str, options.files))}")
    before = options.page.read_text(encoding="utf-8")
    after = page_with(before, rows)
    if options.check:
        if after != before:
            print(f"{options.page} is not what these rows give", file=sys.stderr)
        return int(after != before)
    options.page.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
