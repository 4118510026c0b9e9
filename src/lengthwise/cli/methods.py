"""`lengthwise methods`: what there is, and all about one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from lengthwise.cli._output import console, facts, print_json, table

if TYPE_CHECKING:
    from lengthwise.core.spec import Method

EPILOG = """Examples:

  lengthwise methods

  lengthwise methods lm-infinite

  lengthwise methods --json | jq '.[].name'
"""
NAME = typer.Argument(None, metavar="NAME", help="A method; without it, all are listed.")
JSON = typer.Option(False, "--json", help="Print a list of specs as JSON (docs/json.md).")


def methods(name: str | None = NAME, as_json: bool = JSON) -> None:
    """List the methods that can stand in a stack, or show one with its parameters."""
    from lengthwise.core.registry import all_methods, get

    chosen = [get(name)] if name is not None else all_methods()
    if as_json:
        print_json([spec_json(method) for method in chosen])
    elif name is not None:
        _show(chosen[0])
    else:
        _list(chosen)


def spec_json(method: type[Method]) -> dict[str, Any]:
    """The documented JSON form of a method: its Spec and its parameters."""
    from lengthwise.core.spec import parameters

    return {**asdict(method.spec), "parameters": parameters(method)}


def _list(methods: list[type[Method]]) -> None:
    rows: list[list[str]] = []
    family = ""
    for spec in sorted((m.spec for m in methods), key=lambda s: (s.family, s.name)):
        papers = ", ".join(f"#{paper}" for paper in spec.papers)
        first = spec.family if spec.family != family else ""
        family = spec.family
        rows.append([first, spec.name, ", ".join(spec.seams) or "none", papers, spec.summary])
    out = console()
    columns = ["family", "method", "seams", "papers", "what it does"]
    out.print(table(columns, rows, widths={"seams": 16, "papers": 6}))
    out.print(
        f"\n{len(rows)} methods. 'lengthwise methods NAME' shows the formula and the parameters of one; "
        "'lengthwise explain STACK' says which go together, as in 'lm-infinite + int8:group=32'."
    )


def _show(method: type[Method]) -> None:
    from lengthwise.core.spec import SEAMS, format_value, parameters
    from lengthwise.papers import all_papers

    spec, out = method.spec, console()
    out.print(f"{spec.name} ({spec.family}): {spec.summary}\n")
    neutral = "has no such setting" if spec.neutral is None else str(method(**spec.neutral))
    titles = {paper.id: paper.title for paper in all_papers()}
    rows = [
        ("formula", spec.formula),
        ("seams", "; ".join(f"{seam}: {SEAMS[seam]}" for seam in spec.seams) or "none"),
        ("exact", spec.exact_when),
        ("plain model", neutral),
        ("tokens held", "bounded, however long the input" if spec.bounded else "may grow with the input"),
        ("refuses", spec.refuses),
        ("simplified", spec.simplified),
        ("source", spec.source or "none given"),
        ("papers", "\n".join(f"#{i} {titles.get(i, '(not on the map)')}" for i in spec.papers) or "none on the map"),
        ("test", spec.test or "none"),
    ]
    out.print(facts(rows))
    known = parameters(method)
    if known:
        out.print()
        rows_of = [[p["name"], p["type"], format_value(p["default"]), p["help"]] for p in known]
        out.print(table(["parameter", "type", "default", "meaning"], rows_of))
        first = known[0]
        out.print(f"\nIn a stack: {spec.name}:{first['name']}={format_value(first['default'])}")
    else:
        out.print("\nIt has no parameters.")
