"""Traces as one page: every chain with its steps coloured by kind, and bars of where the tokens went."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from lengthwise.thinking.trace import KINDS, Step, Trace

_COLOURS = {
    "progress": "#2f6fb3",
    "verification": "#b8860b",
    "alternative": "#7b4fa3",
    "correction": "#b23a3a",
    "repetition": "#777777",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
.bar { display: flex; height: 1rem; margin: .3rem 0; } .bar span { display: block; }
.chain { white-space: pre-wrap; border-top: 1px solid #ccc; padding: .6rem 0; }
.step { border-left: 4px solid; padding-left: .4rem; display: block; margin: .15rem 0; }
.pruned { text-decoration: line-through; opacity: .55; } .facts { color: #666; font-size: .85rem; }
.answer { outline: 2px solid #2a8f4a; } table { border-collapse: collapse; } td, th { padding: .1rem .8rem .1rem 0; }
@media (prefers-color-scheme: dark) { body { background: #181a1b; color: #ddd; } .facts { color: #aaa; } }
"""


def page(traces: Sequence[Trace], title: str) -> str:
    """One self-contained HTML page. All text of the chains is escaped."""
    total = sum(t.tokens for t in traces)
    unit = traces[0].unit if traces else "words"
    rows = [(kind, sum(t.by_kind()[kind] for t in traces)) for kind in KINDS]
    table = "".join(
        f'<tr><td style="color:{_COLOURS[kind]}">{kind}</td><td>{count:,}</td><td>{count / max(1, total):.1%}</td>'
        f"<td>{meaning}</td></tr>"
        for (kind, count), meaning in zip(rows, KINDS.values())
    )
    chains = "".join(_chain(t) for t in traces)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>{len(traces):,} chains, {total:,} {unit}. Framed: the step in which the answer "
        "first stands as a result. Struck out: what was pruned.</p>"
        f"<table><tr><th>kind</th><th>{unit}</th><th>share</th><th></th></tr>{table}</table>{chains}</html>\n"
    )


def _chain(traced: Trace) -> str:
    bar = "".join(
        f'<span style="width:{count / max(1, traced.tokens):.2%};background:{_COLOURS[kind]}" title="{kind}"></span>'
        for kind, count in traced.by_kind().items()
    )
    steps = "".join(_step(step, index == traced.answered) for index, step in enumerate(traced.steps))
    notes = "".join(f'<p class="facts">{escape(note)}</p>' for note in traced.notes)
    return (
        f"<h2>{escape(traced.id)}: {escape(traced.answer or 'no answer')}</h2>"
        f'<p class="facts">{traced.tokens:,} {traced.unit}</p><div class="bar">{bar}</div>{notes}'
        f'<div class="chain">{steps}</div>'
    )


def _step(step: Step, answers: bool) -> Markup:
    facts = [step.kind, f"{step.tokens:,}"]
    facts += [] if step.importance is None else [f"importance {step.importance:+.3f}"]
    facts += [] if step.known is None else [f"answer known {step.known:.2f}"]
    classes = "step" + " pruned" * step.pruned + " answer" * answers
    return Markup('<span class="{}" style="border-color:{}">{} <span class="facts">{}</span></span>').format(
        classes, _COLOURS[step.kind], step.text.strip(), " · ".join(facts)
    )
