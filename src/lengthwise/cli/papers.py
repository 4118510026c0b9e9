"""`lengthwise papers`: the paper map, searched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from lengthwise.cli._output import console, facts, note, print_json, table
from lengthwise.errors import BadParameter

if TYPE_CHECKING:
    from lengthwise.papers import Paper

EPILOG = """Examples:

  lengthwise papers streaming attention

  lengthwise papers 11

  lengthwise papers --status works --json
"""
WORDS = typer.Argument(None, metavar="WORDS", help="Show papers in which every word occurs; a number shows one.")
STATUS = typer.Option(None, "--status", "-s", help="Only works, part, planned, or not-covered.")
JSON = typer.Option(False, "--json", help="Print a list of papers as JSON (docs/json.md).")


def papers(words: list[str] | None = WORDS, status: str | None = STATUS, as_json: bool = JSON) -> None:
    """Search the papers that Lengthwise covers, plans, or leaves out with a reason."""
    from lengthwise.papers import STATUSES, search, to_json

    wanted = status.strip().lower().replace("-", " ").replace("_", " ") if status is not None else None
    if wanted is not None and wanted not in STATUSES:
        raise BadParameter(f"'{status}' is no status ({', '.join(s.replace(' ', '-') for s in STATUSES)})")
    asked = " ".join(words or [])
    found = [paper for paper in search(asked) if wanted in (None, paper.status)]
    if as_json:
        print_json(to_json(found))
        return
    if not found:
        note(f"no paper has all of: {asked or 'any word'}" + (f" (status {wanted})" if wanted else ""))
        return
    out = console()
    if len(found) == 1:
        _show(found[0])
        return
    rows = [[str(p.id), p.status, p.title, ", ".join(p.served_by)] for p in found]
    out.print(table(["#", "status", "title", "run it with"], rows, right=["#"]))
    counts = [f"{n} {s}" for s in STATUSES if (n := sum(p.status == s for p in found))]
    out.print(f"\n{len(found)} papers: {', '.join(counts)}. 'lengthwise papers NUMBER' shows one.")


def _show(paper: Paper) -> None:
    out = console()
    out.print(f"#{paper.id} {paper.title}\n")
    rows = [
        ("status", paper.status),
        ("what it does", paper.line),
        ("run it with", ", ".join(paper.served_by)),
        ("test", paper.test),
        ("room", paper.room.replace("-", "") or "none"),
        ("note", paper.why.partition("; ")[2] if paper.status == "planned" else paper.why),
    ]
    out.print(facts([(name, value) for name, value in rows if value]))
