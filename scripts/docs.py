"""Writes the pages that follow from the code: docs/papers.md, methods.md, support.md, strategies.md and tasks.md.

python scripts/docs.py            write the pages
python scripts/docs.py --check    write nothing; exit with 1 and name the pages that are stale
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lengthwise.bench.registry import all_tasks
from lengthwise.core.registry import all_methods
from lengthwise.core.spec import SEAMS, Method, format_value, parameters
from lengthwise.core.stack import refusals
from lengthwise.papers import STATUSES, Paper, all_papers
from lengthwise.thinking import registry as thinking
from lengthwise.thinking.strategy import PARTS, Strategy

DOCS = Path(__file__).resolve().parents[1] / "docs"
MOST_SHOWN = 3  # methods or tasks in a row of the paper table
GENERATED = "<!-- Written by scripts/docs.py from the code; change the code, then run `make docs`. -->"
MEANING = {
    "works": "can be run as documented, and a test fails without the mechanism",
    "part": "a part of it can be run; the last column says which part and what is left out",
    "planned": "fits the library, but cannot be run yet",
    "not covered": "outside what the library does, for the reason given",
}


def papers_page(papers: Sequence[Paper]) -> str:
    """Every paper of the map, by status and room, with the counts on top."""
    pages = {method.spec.name: "methods.md" for method in all_methods()} | dict.fromkeys(all_tasks(), "tasks.md")
    pages |= dict.fromkeys(thinking.all_strategies(), "strategies.md")
    out = ["# Papers", "", GENERATED, ""]
    out += [
        f"The map has {len(papers)} papers. No status is kept by hand: a paper works when a method, a task, a strategy "
        "or a command that the code registers serves it. `lengthwise papers WORDS` searches this list.",
        "",
    ]
    counts = [(status, sum(p.status == status for p in papers)) for status in STATUSES]
    out += table(["status", "papers", "meaning"], [[s, str(n), MEANING[s]] for s, n in counts])
    for status, count in counts:
        if not count:
            continue
        out += ["", f"## {status.capitalize()} ({count})"]
        of_status = [p for p in papers if p.status == status]
        for room in sorted({p.room for p in of_status}):
            rows = [p for p in of_status if p.room == room]
            if status != "not covered":
                out += ["", f"### {'other' if room == '-' else room} ({len(rows)})"]
            out += ["", *paper_table(rows, pages)]
    return text(out)


def paper_table(papers: Sequence[Paper], pages: dict[str, str]) -> list[str]:
    """One table row per paper. Columns that are empty in every row are left out; `pages` have names to link to."""

    def servers(names: Sequence[str]) -> str:
        shown = names if len(names) <= MOST_SHOWN + 1 else names[:MOST_SHOWN]
        links = [link(name, pages[name]) if name in pages else f"`{name}`" for name in shown]
        return ", ".join(links) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")

    columns = {
        "#": [str(p.id) for p in papers],
        "paper": [cell(p.title) for p in papers],
        "what it does": [cell(p.line) for p in papers],
        "run it with": [servers(p.served_by) for p in papers],
        "test": [f"`{p.test}`" if p.test else "" for p in papers],
        "note": [cell(p.why.partition("; ")[2] if p.status == "planned" else p.why) for p in papers],
    }
    filled = {name: values for name, values in columns.items() if any(values)}
    return table(list(filled), [list(row) for row in zip(*filled.values(), strict=True)])


def methods_page(papers: Sequence[Paper]) -> str:
    """Every registered method, by family, from its Spec."""
    methods = all_methods()
    out = ["# Methods", "", GENERATED, ""]
    out += [
        f"{count(len(methods), 'method')}. Each can stand in a stack by itself, `int8`, with parameters, "
        "`int8:group=64`, or beside others, `lm-infinite + int8`; [the support matrix](support.md) "
        "says which go together.",
        "",
        "A method claims seams. Any number of methods may share `select` and `observe`; "
        "every other seam has one owner in a stack.",
        "",
    ]
    out += table(["seam", "what it decides"], [[f"`{seam}`", cell(help)] for seam, help in SEAMS.items()])
    for family in sorted({m.spec.family for m in methods}):
        out += ["", f"## {family.capitalize()}"]
        for method in methods:
            if method.spec.family == family:
                out += ["", *method_section(method, papers)]
    return text(out)


def method_section(method: type[Method], papers: Sequence[Paper]) -> list[str]:
    """What one Spec says."""
    spec = method.spec
    out = [f"### {spec.name}", "", plain(spec.summary), "", "```text", *spec.formula.strip().splitlines(), "```", ""]
    rows = [
        [f"`{p['name']}`", cell(p["type"]), f"`{format_value(p['default']) or ' '}`", cell(p["help"])]
        for p in parameters(method)
    ]
    out += [*table(["parameter", "type", "default", "meaning"], rows), ""] if rows else ["It has no parameters.", ""]
    neutral = "no setting" if spec.neutral is None else f"`{method(**spec.neutral)}`"
    facts = [
        ("Seams", ", ".join(f"`{seam}`" for seam in spec.seams) or "none"),
        ("Exact", plain(spec.exact_when)),
        ("Equals the plain model at", neutral),
        ("Tokens held", "bounded, however long the input" if spec.bounded else "may grow with the input"),
        ("Refuses", plain(spec.refuses)),
        ("Simplified", plain(spec.simplified)),
        ("Source", f"<{spec.source}>" if spec.source.startswith("http") else plain(spec.source or "none given")),
        ("Test", f"`{spec.test}`" if spec.test else "none"),
    ]
    out += [f"- {name}: {value}" for name, value in facts]
    titles = [f"#{p.id} {plain(p.title)}" for p in papers if p.id in spec.papers]
    return [*out, "- Papers:" if titles else "- Papers: none on the map", *[f"  - {title}" for title in titles]]


def support_page() -> str:
    """Which two methods may stand in one stack, with the reasons where they may not."""
    methods = [method() for method in all_methods()]
    reasons = {
        (i, j): refusals([methods[i]] if i == j else [methods[i], methods[j]], None)
        for i in range(len(methods))
        for j in range(i, len(methods))
    }
    out = ["# What goes with what", "", GENERATED, ""]
    out += [
        "Every pair of methods at its default parameters, before any model is named; a model can add reasons "
        "of its own, which `lengthwise.stack(...).on(model)` reports before anything runs. "
        "On the diagonal a method stands alone. `no` is explained below the matrix.",
        "",
    ]
    header = ["", *[str(i + 1) for i in range(len(methods))]]
    rows = [
        [f"{i + 1} [{m.spec.name}](methods.md#{m.spec.name})"]
        + ["no" if reasons[min(i, j), max(i, j)] else "ok" for j in range(len(methods))]
        for i, m in enumerate(methods)
    ]
    out += table(header, rows)
    pairs = sum(i != j for i, j in reasons)
    refused = sum(i != j and bool(why) for (i, j), why in reasons.items())
    out += ["", f"Of {count(pairs, 'pair')}, {pairs - refused} run and {refused} are refused."]
    if any(reasons.values()):
        out += ["", "## Why not"]
    for i, method in enumerate(methods):
        lines = [
            f"- {'alone' if i == j else 'with `' + other.spec.name + '`'}: {plain('; '.join(why))}"
            for j, other in enumerate(methods)
            if (why := reasons[min(i, j), max(i, j)])
        ]
        if lines:
            out += ["", f"### {method.spec.name}", "", *lines]
    return text(out)


def tasks_page(papers: Sequence[Paper]) -> str:
    """Every registered task, from its spec."""
    specs = [cls.spec for cls in all_tasks().values()]
    titles = {p.id: p.title for p in papers}
    out = ["# Tasks", "", GENERATED, ""]
    out += [
        f"{count(len(specs), 'task')} for `lengthwise compare`; `lengthwise tasks NAME --sample` prints a sample. "
        "Diffusion is how hard it is to find what is asked for, scope how much of the text is needed (paper 215). "
        "`depth` says that what is asked for can be put at a depth; `fixed` that samples have the length they have; "
        "`file` that the task reads a benchmark's published file, which you have to fetch.",
        "",
    ]
    rows = []
    for spec in specs:
        kind = ", ".join(k for k, on in (("depth", spec.deep), ("fixed", spec.fixed), ("file", spec.needs_file)) if on)
        place = f"{spec.diffusion} / {spec.scope}"
        numbers = ", ".join(map(str, spec.papers))
        rows.append([f"[{spec.name}](#{spec.name})", cell(spec.summary), place, kind, numbers])
    out += table(["task", "asks for", "diffusion / scope", "kind", "papers"], rows)
    for cls in all_tasks().values():
        spec = cls.spec
        out += ["", f"## {spec.name}", "", plain(cls.__doc__ or spec.summary), ""]
        settings = [
            [f"`{p['name']}`", cell(p["type"]), f"`{format_value(p['default']) or ' '}`", cell(p["help"])]
            for p in parameters(cls)
        ]
        out += [*table(["setting", "type", "default", "meaning"], settings), ""] if settings else []
        out += [
            f"- Metric: {spec.metric}; guessing scores {spec.chance:.3g}",
            f"- Simplified: {plain(spec.simplified)}",
            f"- Source: {plain(spec.source or 'none given')}",
            f"- Test: `{spec.test}`",
            *(f"- Paper {i}: {plain(titles[i])}" for i in spec.papers),
        ]
    return text(out)


def strategies_page(papers: Sequence[Paper]) -> str:
    """Every registered strategy of thinking, from its spec, and which two go together."""
    kinds = list(thinking.all_strategies().values())
    out = ["# Strategies of thinking", "", GENERATED, ""]
    out += [
        f"{count(len(kinds), 'strategy', 'strategies')} for `lengthwise think --strategy`. Each can stand by itself, "
        "`short-m@k:m=3,k=8`, or beside others, `short-m@k:m=3,k=8 + budget:2048`. A strategy owns parts of thinking:",
        "",
    ]
    out += table(["part", "what it decides"], [[f"`{part}`", cell(help)] for part, help in PARTS.items()])
    out += ["", *table(["strategy", "what it does", "parts", "needs"], [strategy_row(kind) for kind in kinds])]
    for kind in kinds:
        out += ["", *strategy_section(kind, papers)]
    made = [kind() for kind in kinds]
    why = [
        f"- `{a.spec.name}` with `{b.spec.name}`: {plain('; '.join(reasons))}"
        for i, a in enumerate(made)
        for b in made[i + 1 :]
        if (reasons := thinking.refusals([a, b], None))
    ]
    pairs = len(made) * (len(made) - 1) // 2
    out += ["", "## What does not go together", ""]
    out += [f"Of {count(pairs, 'pair')}, {pairs - len(why)} run and {len(why)} are refused.", "", *why]
    return text(out)


def strategy_row(kind: type[Strategy]) -> list[str]:
    spec = kind.spec
    needs = [*spec.needs, *(["thinking section"] if spec.needs_tags else [])]
    return [link(spec.name), cell(spec.summary), ", ".join(spec.parts), ", ".join(needs)]


def strategy_section(kind: type[Strategy], papers: Sequence[Paper]) -> list[str]:
    """What one strategy's spec says."""
    spec = kind.spec
    out = [f"## {spec.name}", "", plain(spec.summary), "", "```text", *spec.formula.strip().splitlines(), "```", ""]
    rows = [
        [f"`{p['name']}`", cell(p["type"]), f"`{format_value(p['default']) or ' '}`", cell(p["help"])]
        for p in parameters(kind)
    ]
    out += [*table(["parameter", "type", "default", "meaning"], rows), ""] if rows else ["It has no parameters.", ""]
    out += [f"- A bare value, `{spec.name}:VALUE`, sets `{spec.main}`"] if spec.main else []
    out += [
        f"- Simplified: {plain(spec.simplified)}",
        f"- Source: {plain(spec.source or 'none given')}",
        f"- Test: `{spec.test}`",
    ]
    return [*out, *(f"- Paper {p.id}: {plain(p.title)}" for p in papers if p.id in spec.papers)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]


def link(name: str, page: str = "") -> str:
    """A link to the section called `name`, whose anchor has letters, digits and '-' alone."""
    return f"[{name}]({page}#{name.replace('@', '')})"


def plain(words: str) -> str:
    """Text on one line that Markdown shows as it is; `code` in it stays code."""
    parts = " ".join(words.split()).split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def cell(words: str) -> str:
    """Plain text inside a table."""
    return plain(words).replace("|", "\\|")


def count(number: int, noun: str, many: str = "") -> str:
    return f"{number} {noun if number == 1 else many or noun + 's'}"


def text(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def pages() -> dict[str, str]:
    """File name -> content of every generated page."""
    papers = all_papers()
    return {
        "papers.md": papers_page(papers),
        "methods.md": methods_page(papers),
        "support.md": support_page(),
        "strategies.md": strategies_page(papers),
        "tasks.md": tasks_page(papers),
    }


def stale(folder: Path) -> list[str]:
    """Names of the pages in `folder` that differ from what the code says."""
    return [
        name
        for name, content in pages().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != content
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the pages that follow from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 when a page is stale")
    parser.add_argument("--folder", type=Path, default=DOCS, help="where the pages are")
    options = parser.parse_args(arguments)
    if options.check:
        old = stale(options.folder)
        for name in old:
            print(f"{options.folder / name} is stale: run `make docs`", file=sys.stderr)
        return 1 if old else 0
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, content in pages().items():
        (options.folder / name).write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
