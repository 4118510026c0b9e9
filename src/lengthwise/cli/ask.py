"""`lengthwise ask`: answers from documents of any length, with evidence and the ledger."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from lengthwise.cli._stopping import stopping

if TYPE_CHECKING:
    from lengthwise._ask import Answer

EPILOG = """Examples:

  lengthwise ask report.pdf -q "Who signed the contract?"

  lengthwise ask a.md b.html -q "What changed in version 2?" --save reading

  cat log.txt | lengthwise ask - -q "Which host failed first?" --json

  lengthwise ask book.txt -q "Who is Ishmael?" --stack "infllm:rule=max + int8"

  lengthwise ask minutes.txt -q "How did the plan change, step by step?" --need whole

  lengthwise ask one.txt two.txt three.txt -q "Which one is about ships?" --stack set-prompt
"""


def ask(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE…", help="Text, Markdown, reStructuredText, HTML, Python or PDF files; - is standard input."
        ),
    ],
    question: Annotated[
        list[str], typer.Option("--question", "-q", help="The question; give several to read the text once for all.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="smollm2, a local folder, a GGUF file, or a hub id.")
    ] = "smollm2",
    stack: Annotated[
        str, typer.Option("--stack", "-s", help="Methods in the stack grammar, or auto (see: lengthwise methods).")
    ] = "auto",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens to write.")] = 64,
    save: Annotated[
        str | None,
        typer.Option(
            "--save",
            metavar="DIR",
            help="Keep what was read here; asking again, or after an interruption, goes on from it.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Memory to plan for, such as 2GB; by default what is free."),
    ] = None,
    need: Annotated[
        str,
        typer.Option(
            "--need",
            help="What --stack auto is to keep: facts (a few passages), or whole (the order, or much of the text).",
        ),
    ] = "facts",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")] = False,
) -> None:
    """Answer a question from files of any length, with the passages the model attended to and what it cost."""
    from lengthwise._ask import ask_all
    from lengthwise.plan.machine import parse_bytes

    with _progress() as progress, stopping("after this chunk") as stop:
        answers = ask_all(
            files,
            question,
            model=model,
            stack=stack,
            max_new_tokens=max_new_tokens,
            save=save,
            memory=parse_bytes(memory) if memory else None,
            need=need,  # type: ignore[arg-type]
            progress=progress.update,
            note=lambda text: print(text, file=sys.stderr),
            stop=stop,
        )
    if as_json:
        found = [a.to_json() for a in answers]
        print(json.dumps(found[0] if len(found) == 1 else found, ensure_ascii=False, indent=2))
        return
    for text, answer in zip(question, answers, strict=True):
        _print(text if len(answers) > 1 else None, answer)
    print("\nLedger")
    for line in answers[-1].ledger.lines():
        print(f"  {line}")


def _print(question: str | None, answer: Answer) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    if question:
        console.print(Text(f"\n{question}", style="dim"))
    console.print(Text(answer.answer or "(the model wrote nothing)", style="bold"))
    console.print("\nEvidence (share of the attention on the text)")
    for passage in answer.evidence:
        text = " ".join(passage.text.split())
        where = f"{passage.file}:{passage.start}-{passage.end}"
        console.print(Text.assemble(f"  {passage.weight:6.1%}  ", (where, "cyan")))
        console.print(Padding(Text(text), (0, 0, 0, 10)))


class _Bar:
    """One rich progress bar for each phase, on standard error: tokens, tokens/s, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description:17}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self.tasks: dict[str, int] = {}

    def update(self, what: str, done: int, total: int) -> None:
        """Progress of one phase."""
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total, speed="")
        task = self.bar.tasks[self.tasks[what]]
        speed = f"{task.speed:,.0f}/s" if task.speed else ""
        self.bar.update(task.id, completed=done, total=total, speed=speed)


@contextmanager
def _progress() -> Iterator[_Bar]:
    bar = _Bar()
    with bar.bar:
        yield bar
