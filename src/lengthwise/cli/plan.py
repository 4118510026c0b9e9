"""`lengthwise plan`: what a length would cost, before it is read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from lengthwise.cli._output import bullets, console, facts, flops, note, print_json, seconds, size, table
from lengthwise.errors import BadInput

if TYPE_CHECKING:
    from lengthwise.plan.plan import Plan

EPILOG = """Examples:

  lengthwise plan --length 128k

  lengthwise plan --model ./my-model --length 1m --memory 8GB

  lengthwise plan --length 32k --stack 'lm-infinite + int8' --stack infllm --json
"""
MODEL = typer.Option("smollm2", "--model", "-m", help="Packaged name, folder, GGUF file or hub id.")
LENGTH = typer.Option(..., "--length", "-n", help="Tokens to read: 5000, 128k (131,072), 1m (1,048,576).")
STACK = typer.Option(None, "--stack", "-s", help="A stack to judge; may be repeated. Default: a choice of them.")
MEMORY = typer.Option(None, "--memory", help="What may be used, as in 8GB or 8GiB. Default: what is available now.")
DTYPE = typer.Option(None, "--dtype", help="float32, bfloat16 or float16. Default: as the checkpoint was saved.")
JSON = typer.Option(False, "--json", help="Print JSON (docs/json.md).")


def plan(
    model: str = MODEL,
    length: str = LENGTH,
    stack: list[str] | None = STACK,
    memory: str | None = MEMORY,
    dtype: str | None = DTYPE,
    as_json: bool = JSON,
) -> None:
    """Say what reading a length would take, and which stacks fit, without reading a single weight.

    Seconds are lower estimates from this machine's measured speed (about three seconds, once).
    """
    tokens = read_length(length)
    from lengthwise.models import cache_dir
    from lengthwise.plan.machine import parse_bytes
    from lengthwise.plan.plan import plan as make_plan
    from lengthwise.plan.roofline import FILE

    room = parse_bytes(memory) if memory is not None else None
    if not (cache_dir() / FILE).is_file():
        note("measuring this machine, once; this takes a few seconds")
    result = make_plan(model, tokens, stack or None, room, dtype=dtype)
    if as_json:
        print_json(result.to_json())
    else:
        _show(result)


def read_length(text: str) -> int:
    """A token count of the command line. Raises BadInput."""
    from lengthwise.core.spec import parse_count

    try:
        tokens = parse_count(text)
    except ValueError as error:
        raise BadInput(f"'{text}' is not a number of tokens (5000, 128k, 1m)") from error
    if not 1 <= tokens <= sys.maxsize >> 22:
        raise BadInput(f"{text} tokens cannot be planned for: give 1 or more, up to 1,000,000m")
    return tokens


def _show(plan: Plan) -> None:
    out = console()
    out.print(f"{plan.length:,} tokens with {plan.model} ({plan.dtype}, {plan.device})\n")
    times = plan.length / plan.window if plan.window else 0.0
    longer = f"; the input is {times:.3g} times as long" if times > 1 else ""
    origin = "as given" if plan.memory_given else "available now"
    rows = [
        ("trained window", f"{plan.window:,} tokens{longer}" if plan.window else "not known"),
        ("memory", f"{size(plan.memory)} {origin}" if plan.memory else "not known"),
        ("weights", f"{size(plan.weight_bytes)} ({plan.parameters / 1e6:,.0f} M parameters)"),
        ("KV cache", f"{size(plan.kv_bytes_per_token)} a token, {size(plan.kv_bytes)} in all"),
    ]
    if plan.prefill_flops is not None and plan.decode_flops is not None and plan.decode_bytes is not None:
        rows += [
            ("reading", f"{flops(plan.prefill_flops)}, at least {seconds(plan.prefill_seconds)} here"),
            (
                "each new token",
                f"{flops(plan.decode_flops)}, {size(plan.decode_bytes)} read, "
                f"at least {seconds(plan.decode_seconds)} here",
            ),
            ("attention I/O", f"at least {size(plan.attention_io_bytes)} past a cache of {size(plan.fast_memory)}"),
        ]
    out.print(facts(rows))
    out.print("\nThese are the plain model's figures. Under a stack:\n")
    rows_of = [
        [
            s.stack,
            s.verdict,
            size(s.kv_bytes) if s.peak_bytes else "",
            size(s.disk_bytes) if s.disk_bytes else "",
            size(s.peak_bytes) if s.peak_bytes else "",
            _at_most(s.prefill_seconds, s.seconds_known) if s.peak_bytes else "",
            _at_most(s.decode_seconds, s.seconds_known) if s.peak_bytes else "",
        ]
        for s in plan.stacks
    ]
    columns = ["stack", "verdict", "KV", "disk", "peak", "reading", "a token"]
    out.print(table(columns, rows_of, right=columns[2:]))
    reasons = [f"{s.stack}: {reason}" for s in plan.stacks for reason in s.reasons if not _is_peak(reason)]
    if any(_is_peak(reason) for s in plan.stacks for reason in s.reasons):
        reasons.append(f"does not fit: the peak (weights, KV, activations) is above {size(plan.memory)}")
    if reasons:
        out.print()
        out.print(bullets(reasons))
    out.print("\n'fits' speaks of memory, disk and positions, not of what a method forgets.")
    if any(not s.seconds_known for s in plan.stacks):
        out.print("'<': the stack chooses which keys it sees; the time is that of seeing all it holds.")
    for line in plan.notes:
        out.print(line)


def _is_peak(reason: str) -> bool:
    """Whether the table's peak column says it already."""
    return reason.startswith("needs") and "of memory" in reason


def _at_most(value: float | None, known: bool) -> str:
    return seconds(value) if known or value is None else f"< {seconds(value)}"
