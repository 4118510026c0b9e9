"""`lengthwise trace`: where the tokens of chains went, step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lengthwise.thinking._pir import Judge
    from lengthwise.thinking._rows import Source
    from lengthwise.thinking.trace import Trace

EPILOG = """Examples:

  lengthwise think --file problems.jsonl -m pocket-reasoner --out chains.jsonl

  lengthwise trace chains.jsonl -m pocket-reasoner --html chains.html

  lengthwise trace chains.jsonl -m pocket-reasoner --prune 0.5 --out pruned.jsonl

  lengthwise trace chain.txt --problem "What is 17*23?" --answer 391
"""


def trace(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Rows of think --out, or a text with its thinking.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Judges which steps mattered, and counts tokens.")
    ] = None,
    problem: Annotated[str, typer.Option("--problem", help="What was asked, where FILE does not say.")] = "",
    answer: Annotated[str, typer.Option("--answer", help="The right answer, where FILE does not say.")] = "",
    prune: Annotated[
        float, typer.Option("--prune", metavar="RATIO", help="Prune this share of the functional steps (PIR).")
    ] = 0.0,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Write the pruned chains here, as JSON lines.")] = None,
    html: Annotated[str | None, typer.Option("--html", help="Write a page with every step here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")] = False,
) -> None:
    """Take chains apart: progress, verification, correction, repetition, and what came after the answer was there.

    With a model: a step's importance is how much less sure of the answer the model is without it (PIR).
    The answer is known from the first step on after which the model gives it a probability of a half.
    That takes a pass of the model for each step.
    """
    from lengthwise.cli._output import note, print_json
    from lengthwise.errors import BadInput, BadParameter
    from lengthwise.thinking._rows import read_chains
    from lengthwise.thinking._trace_html import page

    if not 0 <= prune <= 1:
        raise BadParameter(f"the ratio to prune is {prune}, not in 0 to 1")
    if prune and model is None:
        raise BadInput("--prune goes by importance, which needs a model: --model")
    if out is not None and not prune:
        raise BadInput("--out is for pruned chains: --prune RATIO")
    paths = [Path(path).expanduser().resolve() for path in (file, out, html) if path is not None]
    if len(set(paths)) < len(paths):
        raise BadInput("FILE, --out and --html must be different files")
    chains, broken = read_chains(file)
    for line, why in broken:
        note(f"{file}, line {line}: {why}")
    if problem and all(c.messages for c in chains):
        note(f"--problem is not used: {file} says what was asked")
    if answer and all(c.right is not None for c in chains):
        note(f"--answer is not used: {file} says what is right")
    judge = _judge(model) if model is not None else None
    traces = [_trace(chain, judge, problem, answer, prune) for chain in chains]
    if html is not None:
        _write(html, page(traces, f"Where the tokens of {Path(file).name} went"))
    if out is not None:
        _write(out, "".join(_pruned(c, t) for c, t in zip(chains, traces)))
    if as_json:
        print_json(
            {
                "version": 1,
                "file": file,
                "model": model,
                "broken": [{"line": line, "error": why} for line, why in broken],
                **_totals(traces),
                "chains": [t.to_json() for t in traces],
            }
        )
    else:
        _show(traces, prune)
    if broken:
        raise typer.Exit(1)


def _judge(model: str) -> Judge:
    from lengthwise import models
    from lengthwise.cli._output import note
    from lengthwise.thinking._pir import Judge

    loaded, tokenizer = models.load(model, progress=note)
    return Judge(loaded, tokenizer)


def _trace(chain: Source, judge: Judge | None, problem: str, answer: str, ratio: float) -> Trace:
    from lengthwise.thinking.trace import trace as take_apart

    wanted = chain.answer if chain.right is not None else answer or chain.answer  # the file's goes first
    traced = take_apart(chain.thinking, wanted, None if judge is None else judge.spans)
    traced.id = chain.id
    messages = chain.messages or ([{"role": "user", "content": problem}] if problem else None)
    if judge is not None and messages is None:
        traced.notes.append("no importance: the file does not say what was asked; --problem does")
    elif judge is not None and messages is not None:
        judge.judge(traced, messages, chain.text, ratio)
    return traced


def _totals(traces: list[Trace]) -> dict[str, Any]:
    """Sums over all chains; what was after the answer only of those in which it was found."""
    from lengthwise.thinking.trace import KINDS

    tokens = sum(t.tokens for t in traces)
    return {
        "count": len(traces),
        "unit": traces[0].unit,
        "tokens": tokens,
        "by_kind": {kind: sum(t.by_kind()[kind] for t in traces) for kind in KINDS},
        "repeated": sum(s.tokens for t in traces for s in t.steps if s.repeated),
        "answered": sum(t.answered is not None for t in traces),
        "after_answer": sum(t.after(t.answered) or 0 for t in traces),
        "sure": sum(t.sure is not None for t in traces),
        "after_sure": sum(t.after(t.sure) or 0 for t in traces),
        "pruned": sum(s.tokens for t in traces for s in t.steps if s.pruned),
    }


def _show(traces: list[Trace], ratio: float) -> None:
    from lengthwise.cli._output import console, note, table
    from lengthwise.thinking.trace import KINDS, SURE

    screen, totals = console(), _totals(traces)
    unit, all_tokens = totals["unit"], totals["tokens"]

    def share(count: int) -> str:
        return f"{count / all_tokens:.1%}" if all_tokens else "-"

    if len(traces) == 1:
        judged = any(s.importance is not None for s in traces[0].steps)
        names = ["step", "kind", unit, *(["importance", "known"] if judged else []), "text"]
        rows = []
        for index, step in enumerate(traces[0].steps):
            marks = "=" * (index == traces[0].answered) + "x" * step.pruned
            numbers = [] if step.importance is None else [f"{step.importance:+.3f}", f"{step.known:.2f}"]
            text = " ".join(step.text.split())
            text = text if len(text) <= 60 else text[:59] + "…"
            rows.append([f"{index + 1}{marks}", step.kind, f"{step.tokens:,}", *numbers, text])
        screen.print(table(names, rows, right=["step", unit, "importance", "known"]))
        screen.print()
    means = [[i.importance for t in traces for i in t.steps if i.kind == k and i.importance is not None] for k in KINDS]
    known = any(means)
    rows = [
        [kind, f"{count:,}", share(count), *([f"{sum(m) / len(m):+.3f}" if m else "-"] if known else []), meaning]
        for (kind, meaning), count, m in zip(KINDS.items(), totals["by_kind"].values(), means)
    ]
    names = ["kind", unit, "share", *(["importance"] if known else []), "what it does"]
    screen.print(table(names, rows, right=[unit, "share", "importance"]))
    chains = "1 chain" if len(traces) == 1 else f"{len(traces):,} chains"
    screen.print(f"\n{chains}, {all_tokens:,} {unit}; {share(totals['repeated'])} said again what was there")
    screen.print(
        f"the answer is written in {totals['answered']:,}, and {totals['after_answer']:,} {unit} come after it"
    )
    if known:
        screen.print(
            f"the model is sure of it (p >= {SURE}) early in {totals['sure']:,}: "
            f"{totals['after_sure']:,} {unit} come after that ({share(totals['after_sure'])})"
        )
    if ratio:
        changes = [t.change for t in traces if t.change is not None]
        mean = f", log perplexity of the answer {sum(changes) / len(changes):+.3f}" if changes else ""
        screen.print(f"pruned: {totals['pruned']:,} {unit} ({share(totals['pruned'])}){mean}")
    seen = dict.fromkeys(n for t in traces for n in t.notes)
    for text in seen:
        count = sum(text in t.notes for t in traces)
        note(f"{'1 chain' if count == 1 else f'{count:,} chains'}: {text}")
    if unit == "words":
        note("words and marks were counted; --model counts tokens and says which steps mattered")


def _pruned(chain: Source, traced: Trace) -> str:
    asked = {} if chain.messages is None else {"messages": [dict(m) for m in chain.messages]}
    row = {"id": chain.id, **asked, "thinking": traced.kept(), "text": chain.text, "answer": traced.answer}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _write(path: str, text: str) -> None:
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
