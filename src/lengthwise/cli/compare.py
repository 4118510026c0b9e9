"""`lengthwise compare`: stacks on tasks at lengths, quality beside cost, in one run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthwise.cli._bar import Bar
from lengthwise.cli._output import console, note, print_json
from lengthwise.cli._stopping import stopping

if TYPE_CHECKING:
    from lengthwise.bench.engines import Engine, Work
    from lengthwise.bench.jobs import Settings
    from lengthwise.bench.runner import Runner
    from lengthwise.bench.store import Row

EPILOG = """Examples:

  lengthwise compare -s dense -s "yarn:factor={max(1, length/window)}" -t needle -l 512,1k,2k --report out

  lengthwise compare -m smollm2 -s dense -s infllm:rule=max -t needle -t ruler-vt -l 4k,16k --depth 0:1:5 --report out

  lengthwise compare --endpoint http://localhost:8000 --model qwen3 -t multi-query -l 8k,32k --report out

  lengthwise compare … --engine ray --workers 4
"""


def compare(
    task: Annotated[list[str], typer.Option("--task", "-t", help="A task, as needle:keys=8; give several.")],
    length: Annotated[str, typer.Option("--length", "-l", help="Lengths in tokens, prompt and answer: 1k,4k,16k.")],
    stack: Annotated[
        list[str],
        typer.Option(
            "--stack",
            "-s",
            help="A stack; give several. {…} is arithmetic on length and window, as yarn:factor={length/window}.",
        ),
    ] = ["dense"],  # noqa: B006 - typer reads it
    model: Annotated[
        str, typer.Option("--model", "-m", help="pocket-reader, smollm2, a folder, a GGUF file, a hub id.")
    ] = "pocket-reader",
    depth: Annotated[
        str, typer.Option("--depth", help="Where needles lie, 0 to 1: from:to:count, or a list as 0.1,0.9.")
    ] = "",
    trials: Annotated[int, typer.Option("--trials", "-n", min=1, help="Samples of every cell.")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="The first trial's seed; the next has the next.")] = 0,
    haystack: Annotated[str, typer.Option("--haystack", help="What fills texts: story, topics, noise, or a file.")] = (
        "story"
    ),
    template: Annotated[str, typer.Option("--template", help="auto, plain or chat.")] = "auto",
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Most tokens to write; else the task decides.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE", help="Rows go here (DIR/results.jsonl, or compare.jsonl)."),
    ] = None,
    report: Annotated[str | None, typer.Option("--report", metavar="DIR", help="Write DIR/index.html.")] = None,
    engine: Annotated[str, typer.Option("--engine", help="local, or ray for a cluster.")] = "local",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes of --engine ray.")] = 2,
    address: Annotated[
        str | None, typer.Option("--address", help="The Ray cluster to join; without it one starts here.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="Ask --model at an OpenAI-compatible server instead."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="With --endpoint: whose tokens to count lengths in.")
    ] = None,
    thinking: Annotated[
        int, typer.Option("--thinking", min=0, help="With --endpoint: tokens a reasoning model may think on top.")
    ] = 0,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")] = False,
) -> None:
    """Run tasks at lengths under stacks and put quality beside cost.

    Rows are appended as they come: the same command goes on where it was stopped.
    Exit code 1: a sample failed. 2: none could be run.
    """
    from lengthwise.bench.compare import compare as run
    from lengthwise.bench.jobs import Settings, grid, parse_depths, parse_lengths
    from lengthwise.bench.runner import Runner
    from lengthwise.bench.summary import summarise, totals
    from lengthwise.core.stack import stack as make_stack
    from lengthwise.errors import BadInput

    jobs = grid(
        [s.strip() for s in stack], task, parse_lengths(length), parse_depths(depth) if depth else [], trials, seed
    )
    settings = Settings(haystack, max_new_tokens)
    _check(stack, haystack, template, engine, endpoint, tokenizer)
    path = Path(out) if out else Path(report) / "results.jsonl" if report else Path("compare.jsonl")

    def subject() -> Any:
        if endpoint:
            from lengthwise.bench.endpoint import Endpoint

            return Endpoint(endpoint, model, tokenizer=tokenizer, thinking=thinking)
        from lengthwise.bench.local_model import LocalModel

        return LocalModel(model, template=template, dtype=dtype)  # type: ignore[arg-type]

    here = subject()
    runner = Runner(here, settings)
    for text in dict.fromkeys(map(runner.stack, jobs)):
        make_stack(text)
    engine_run, work = _engine(engine, workers, address, subject, runner)
    with _Bar(len(jobs)) as bar, stopping("after this sample") as stop:
        found = run(here, jobs, path, settings=settings, engine=engine_run, work=work, progress=bar, stop=stop)
    statuses = {row["status"] for row in found.rows}
    if "done" not in statuses:
        raise BadInput(f"nothing could be run: {found.rows[0]['error']}")
    if found.resumed and not as_json:
        note(f"{found.resumed:,} of {len(jobs):,} samples were in {path} already")
    if as_json:
        print_json({"version": 1, "results": str(path), "cells": [c.to_json() for c in summarise(found.rows)]})
    else:
        from lengthwise.bench.table import ResultTables

        console().print(ResultTables(totals(found.rows)))
        note(f"rows: {path}")
    if report:
        from lengthwise.bench.report import write_report

        page = Path(report) / "index.html"
        write_report(
            found.rows, page, title=f"{model}: {', '.join(dict.fromkeys(j.task for j in jobs))}", command=_command()
        )
        note(f"report: {page}")
    if "failed" in statuses:
        raise typer.Exit(1)


def _check(
    stack: list[str], haystack: str, template: str, engine: str, endpoint: str | None, tokenizer: str | None
) -> None:
    """Raise what is wrong with the arguments before a model is loaded."""
    import random

    from lengthwise.bench.filler import filler
    from lengthwise.bench.framing import TEMPLATES
    from lengthwise.core.stack import stack as make_stack
    from lengthwise.errors import BadInput

    for text in stack:
        if "{" not in text:
            make_stack(text)
    filler(haystack, random.Random(0))
    if template not in TEMPLATES:
        raise BadInput(f"the template is one of {', '.join(TEMPLATES)}, not '{template}'")
    if engine not in ("local", "ray"):
        raise BadInput(f"the engine is local or ray, not '{engine}'")
    if tokenizer and not endpoint:
        raise BadInput("--tokenizer goes with --endpoint; a local model has its own")
    if endpoint and [s.strip() for s in stack] != ["dense"]:
        raise BadInput("an endpoint is asked as it is: it takes no --stack")


def _engine(
    name: str, workers: int, address: str | None, subject: Callable[[], Any], runner: Runner
) -> tuple[Engine | None, Work | None]:
    """The engine, and what makes a worker in its processes; None: this one, with the model that is loaded already."""
    if name == "local":
        return None, None
    from lengthwise.bench.engines.ray import RayEngine

    return RayEngine(runner.failed, workers=workers, address=address), partial(_worker, subject, runner.settings)


def _worker(subject: Callable[[], Any], settings: Settings) -> Runner:
    from lengthwise.bench.runner import Runner

    return Runner(subject(), settings)


def _command() -> str:
    return "lengthwise " + shlex.join(sys.argv[1:])


class _Bar(Bar):
    """Samples done, what is being run, and the time left; time is taken to go with tokens."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples, "loading")

    def __call__(self, row: Row, left: int) -> None:
        what = f"{row['task']} at {row['length']:,} under {row['stack']}"
        self.show(left, f"{what}: {row.get('score', row['status'])}")
        if row["status"] != "done" and not sys.stderr.isatty():
            note(f"{row['status']}: {what}: {row['error']}")
