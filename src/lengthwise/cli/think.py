"""`lengthwise think`: problems, a model or an endpoint, a strategy; answers, chains, and what they cost."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthwise.cli._bar import Bar
from lengthwise.cli._output import console, note, print_json, seconds, table
from lengthwise.cli._stopping import stopping
from lengthwise.errors import BadInput, LengthwiseError

if TYPE_CHECKING:
    from lengthwise.bench.store import Row
    from lengthwise.thinking import Sampler, Spent, Thought
    from lengthwise.thinking.many import Batch, Problem

OUT = "think.jsonl"
EPILOG = """Examples:

  lengthwise think "What is 3+4+5 mod 10?"

  lengthwise think "What is 3+4+5 mod 10?" --strategy "short-m@k:m=3,k=8 + budget:64"

  lengthwise think --file problems.jsonl --endpoint http://localhost:8000 --model qwen3

  lengthwise think --strategies
"""


class Stopped(LengthwiseError):
    """The run was interrupted; its rows are kept."""

    exit_code = 130


def think(
    problem: Annotated[
        str | None, typer.Argument(metavar="PROBLEM", help="The problem; - is standard input.", show_default=False)
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", metavar="F.jsonl", help='Lines of {"problem": …, "id"?: …, "answer"?: …}.'),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A packaged name, a folder, a GGUF file, a hub id (else pocket-reasoner); or the endpoint's model.",
        ),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="URL", help="Ask --model at an OpenAI-compatible server.")
    ] = None,
    strategy: Annotated[
        str, typer.Option("--strategy", "-S", help="Strategies joined by '+' (--strategies lists them).")
    ] = "plain",
    stack: Annotated[
        str, typer.Option("--stack", "-s", help="Methods of a local model (see: lengthwise methods).")
    ] = "dense",
    temperature: Annotated[float, typer.Option("--temperature", "-t", min=0.0, help="0: the likeliest token.")] = 0.6,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens of this total.")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes a run repeatable.")] = None,
    most_thinking: Annotated[int, typer.Option("--most-thinking", min=1, help="Most tokens a chain thinks.")] = 4096,
    most_answer: Annotated[int, typer.Option("--most-answer", min=1, help="Most tokens of a chain's answer.")] = 512,
    extract: Annotated[
        str, typer.Option("--extract", help="Where the answer is: auto, boxed, number, line or text.")
    ] = "auto",
    think_open: Annotated[
        str | None, typer.Option("--think-open", metavar="TAG", help="What opens a thinking section, if not found.")
    ] = None,
    think_close: Annotated[
        str | None, typer.Option("--think-close", metavar="TAG", help="What closes a thinking section.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="With --endpoint: whose tokens to count in.")
    ] = None,
    continuation: Annotated[
        str, typer.Option("--continuation", help="With --endpoint: how it goes on with a given text (docs/proxy.md).")
    ] = "none",
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="F.jsonl", help="With --file: rows go here (think.jsonl).")
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, help="Problems at a time.")] = 8,
    strategies: Annotated[bool, typer.Option("--strategies", help="List the strategies and their parameters.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")] = False,
) -> None:
    """Think about a problem, or a file of them, as long as a strategy says, and say what it cost.

    With --file, rows are appended as they come: the same command goes on where it was stopped.
    Exit code 1: a line of the file is broken, or a problem failed.
    """
    if strategies:
        _list(as_json)
        return
    from typing import get_args

    from lengthwise.thinking import Settings, registry
    from lengthwise.thinking.answers import Extract
    from lengthwise.thinking.many import read_problems
    from lengthwise.thinking.samplers import open_sampler, tags_of

    if (problem is None) == (file is None):
        raise BadInput("give a problem, or a file of them with --file")
    if out is not None and file is None:
        raise BadInput("--out goes with --file")
    if file is not None and Path(file).resolve() == Path(out or OUT).resolve():
        raise BadInput(f"{file} has the problems: rows go to another file, --out")
    if problem == "-":
        problem = sys.stdin.read()
    if problem is not None and not problem.strip():
        raise BadInput("the problem is empty")
    if extract not in get_args(Extract):
        raise BadInput(f"--extract is one of {', '.join(get_args(Extract))}, not '{extract}'")
    if not 0 < top_p <= 1:
        raise BadInput("--top-p is above 0 and at most 1")
    given = registry.parse(strategy)
    registry.check(given, None)  # before a model is loaded
    tags = tags_of(think_open, think_close)
    problems, broken = read_problems(file) if file is not None else ([], [])
    sampler = open_sampler(
        model,
        endpoint=endpoint,
        stack=stack,
        dtype=dtype,
        tags=tags,
        tokenizer=tokenizer,
        continuation=continuation,
        max_tokens=most_thinking + most_answer,
    )
    options: dict[str, Any] = {
        "settings": Settings(temperature=temperature, top_p=top_p, seed=seed),
        "most_thinking": most_thinking,
        "most_answer": most_answer,
        "extract": extract,
    }
    if problem is not None:
        _one(problem, sampler, given, options, stack, as_json)
    else:
        where = {"endpoint": endpoint} if endpoint else {"stack": stack}
        told = {"dtype": dtype, "think_open": think_open, "think_close": think_close, "tokenizer": tokenizer}
        where |= {name: value for name, value in told.items() if value}
        where |= {"continuation": continuation} if continuation != "none" else {}
        _many(problems, broken, str(file), sampler, given, options, where, out or OUT, concurrency, as_json)


def _one(problem: str, sampler: Sampler, strategies: Any, options: dict[str, Any], stack: str, as_json: bool) -> None:
    from lengthwise.thinking import think as think_about
    from lengthwise.thinking.samplers import prepare

    async def run() -> Thought:
        try:
            await prepare(sampler)
            return await think_about(problem, sampler, strategies, **options)
        finally:
            await sampler.close()

    thought = asyncio.run(run())
    if as_json:
        print_json(thought.to_json() | {"stack": stack})
        return
    from rich.text import Text

    out = console()
    out.print(Text(thought.answer or "(no answer was found)", style="bold"))
    rows = [
        [
            str(number),
            f"{chain.thinking_tokens:,}",
            f"{chain.answer_tokens:,}",
            chain.reason,
            f"{chain.weight:.3g}" if chain.weight else "",
            " ".join(chain.answer.split())[:60],
        ]
        for number, chain in enumerate(thought.chains, 1)
    ]
    columns = ["chain", "thinking", "answering", "thinking ended", "vote", "answer"]
    out.print()
    out.print(table(columns, rows, right=["chain", "thinking", "answering", "vote"], widths={"answer": 34}))
    out.print("\nLedger")
    reader = "" if stack == "dense" else f", which reads by {stack}"
    for line in [f"{thought.strategy} on {thought.model}{reader}", *_ledger(thought.spent), *thought.notes]:
        out.print(f"  {line}")
    if thought.confidence is not None:
        out.print(f"  confidence {thought.confidence:.0%}")


def _ledger(spent: Spent) -> list[str]:
    """For people: one fact a line."""
    chains = "1 chain" if spent.chains == 1 else f"{spent.chains:,} chains"
    cancelled = f"; {spent.cancelled_tokens:,} of them in {spent.cancelled_chains:,} that were cancelled"
    return [
        f"wrote {spent.thinking_tokens:,} tokens of thinking and {spent.answer_tokens:,} of answers in {chains}"
        + (cancelled if spent.cancelled_chains else ""),
        *([f"wrote {spent.other_tokens:,} tokens beside the chains"] if spent.other_tokens else []),
        f"waited for {spent.waiting_tokens:,} tokens one after another, {seconds(spent.seconds)}",
        f"read {spent.prompt_tokens:,} tokens of prompts, put {spent.put_tokens:,} into chains",
    ]


def _many(
    problems: list[Problem],
    broken: list[tuple[int, str]],
    file: str,
    sampler: Sampler,
    strategies: Any,
    options: dict[str, Any],
    where: dict[str, str],
    out: str,
    concurrency: int,
    as_json: bool,
) -> None:
    from lengthwise.thinking.many import think_all
    from lengthwise.thinking.samplers import prepare

    for line, why in broken:
        note(f"{file}:{line} is left out: {why}")

    with _Bar(len(problems)) as bar, stopping("after the problems under way") as stop:

        async def run() -> Batch:
            try:
                await prepare(sampler)
                return await think_all(
                    problems,
                    sampler,
                    strategies,
                    out=out,
                    concurrency=concurrency,
                    where=where,
                    progress=bar,
                    stop=stop,
                    **options,
                )
            finally:
                await sampler.close()

        begun = time.perf_counter()
        batch = asyncio.run(run())
        took = time.perf_counter() - begun
    for remark in getattr(sampler, "notes", []):
        note(remark)
    right, known = batch.accuracy
    done = len(batch.rows) - len(batch.failed)
    if as_json:
        print_json(
            {
                "version": 1,
                "results": out,
                "problems": len(problems),
                "done": done,
                "failed": [{"id": row["id"], "line": row["line"], "error": row["error"]} for row in batch.failed],
                "not_tried": batch.left,
                "resumed": batch.resumed,
                "broken": [{"line": line, "why": why} for line, why in broken],
                "right": right,
                "known": known,
                "spent": batch.spent.to_json(),
            }
        )
    else:
        _summary(batch, done, len(problems), took, out, stop())
    if stop() and batch.left:
        raise Stopped(f"interrupted; {done:,} of {len(problems):,} problems are in {out}: the same command goes on")
    if broken or batch.failed or batch.left:
        raise typer.Exit(1)


def _summary(batch: Batch, done: int, problems: int, took: float, out: str, stopped: bool) -> None:
    lines = console()
    right, known = batch.accuracy
    if known:
        from lengthwise.bench.summary import quality

        share = quality([1.0] * right + [0.0] * (known - right))
        lines.print(f"{right:,} of {known:,} right: {right / known:.1%} (95 %: {share.low:.1%} to {share.high:.1%})")
    resumed = f", {batch.resumed:,} of them before" if batch.resumed else ""
    lines.print(f"{done:,} of {problems:,} problems done{resumed}")
    if done:
        mean = batch.spent.thinking_tokens / done
        lines.print(f"{mean:,.0f} tokens of thinking a problem, {batch.spent.waiting_tokens / done:,.0f} waited for")
    lines.print("\nLedger of all problems together")
    for line in [*_ledger(batch.spent), f"this run took {seconds(took)}: problems are worked on at the same time"]:
        lines.print(f"  {line}")
    for row in batch.failed:
        note(f"failed: {row['id']}: {row['error']}")
    if batch.left:
        why = "" if stopped else ": too many failed in a row; the same command begins with these"
        note(f"{batch.left:,} were not tried{why}")
    note(f"rows: {out}")


def _list(as_json: bool) -> None:
    """All strategies, with their parameters."""
    from dataclasses import asdict

    from lengthwise.core.spec import format_value, parameters
    from lengthwise.thinking import all_strategies

    kinds = all_strategies()
    if as_json:
        print_json([{**asdict(k.spec), "parameters": parameters(k)} for k in kinds.values()])
        return
    from rich.padding import Padding
    from rich.text import Text

    out = console()
    for name, kind in kinds.items():
        papers = "".join(f" #{p}" for p in kind.spec.papers)
        out.print(Text.assemble((name, "bold"), f"  {kind.spec.summary}", (papers, "dim")))
        for p in parameters(kind):
            text = f"{p['name']}={format_value(p['default'])}  {p['help']}"
            out.print(Padding(Text(text), (0, 0, 0, 4)))
    out.print(f"\n{len(kinds)} strategies. 'a:key=value + b:value' joins them; 'plain' is one chain, as it comes.")


class _Bar(Bar):
    """Problems done, the share that was right, and the time left."""

    def __init__(self, problems: int) -> None:
        super().__init__(problems, "thinking")
        self.right = self.known = 0

    def __call__(self, row: Row, left: int) -> None:
        if row["right"] is not None:
            self.known, self.right = self.known + 1, self.right + row["right"]
        share = f"{self.right:,} of {self.known:,} right; " if self.known else ""
        said = row["error"] or row["answer"]
        self.show(left, f"{share}{row['id']}: {' '.join(said.split())[:40]}")
