"""`lengthwise explain`: which method of a stack owns what, and why a stack would be refused."""

from __future__ import annotations

from typing import Any

import typer

from lengthwise.cli._output import bullets, console, print_json, table

EPILOG = """Examples:

  lengthwise explain 'lm-infinite + int8'

  lengthwise explain 'infllm:top=32' --model smollm2

  lengthwise explain 'yarn + lm-infinite' || echo refused
"""
STACK = typer.Argument(..., metavar="STACK", help="Methods joined by '+', as in 'lm-infinite + int8:group=32'.")
MODEL = typer.Option(None, "--model", "-m", help="Check it on this model: packaged name, folder, GGUF file or hub id.")
JSON = typer.Option(False, "--json", help="Print JSON (docs/json.md).")
VERSION = 1


def explain(stack: str = STACK, model: str | None = MODEL, as_json: bool = JSON) -> None:
    """Show which method owns which seam, in which order they are asked, and every reason against.

    Of a model only the config is read. The exit code is 0 when the stack can run, 2 when it is refused.
    """
    result = explained(stack, model)
    if as_json:
        print_json(result)
    else:
        _show(result)
    if result["refusals"]:
        raise typer.Exit(2)


def explained(stack: str, model: str | None) -> dict[str, Any]:
    """The documented JSON form."""
    from lengthwise.core.stack import explain as explain_stack

    if model is None:
        result = explain_stack(stack)
    else:
        from lengthwise.plan.describe import describe

        described = describe(model)
        result = explain_stack(stack, described.facts)
        result["refusals"] = [*described.reasons, *result["refusals"]]
    return {"version": VERSION, "model": model, **result}


def _show(result: dict[str, Any]) -> None:
    out = console()
    on = f" on {result['model']}" if result["model"] else ""
    out.print(f"{result['stack']}{on}\n")
    rows = [
        [str(i), step["seam"], ", ".join(step["methods"]), step["when"]] for i, step in enumerate(result["order"], 1)
    ]
    if rows:
        out.print(table(["", "seam", "owned by", "what happens"], rows))
    free = [seam for seam, owners in result["seams"].items() if not owners]
    if free:
        out.print(f"{chr(10) if rows else ''}As in the plain model: {', '.join(free)}.")
    if result["refusals"]:
        out.print("\nRefused:")
        out.print(bullets(result["refusals"]))
    else:
        out.print(f"\nIt can run{on or '; --model checks it on a model'}.")
