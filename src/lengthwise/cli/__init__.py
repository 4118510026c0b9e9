"""The command line: `lengthwise COMMAND`, one file a command. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from lengthwise import __version__
from lengthwise.cli import _errors, weights
from lengthwise.cli.ask import ask
from lengthwise.cli.compare import compare
from lengthwise.cli.doctor import doctor
from lengthwise.cli.download import download
from lengthwise.cli.edit import edit
from lengthwise.cli.explain import explain
from lengthwise.cli.export import export
from lengthwise.cli.methods import methods
from lengthwise.cli.metrics import metrics
from lengthwise.cli.papers import papers
from lengthwise.cli.plan import plan
from lengthwise.cli.proxy import proxy
from lengthwise.cli.report import report
from lengthwise.cli.tasks import tasks
from lengthwise.cli.think import think
from lengthwise.cli.trace import trace

PROGRAM = "lengthwise"

app = typer.Typer(
    name=PROGRAM,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Read, think and write at lengths a language model was not built for, and see what each length cost."""


def _epilog(command: Callable[..., Any]) -> str | None:
    """The EPILOG of the command's module, an example a line; brackets must not be read as markup."""
    text = getattr(sys.modules[command.__module__], "EPILOG", "")
    title, *lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    return "\n".join([title, *(f"$ {line}" for line in lines)]).replace("[", "\\[") or None


def _register(*commands: Callable[..., Any]) -> None:
    """Add commands in the order of the help page."""
    for command in commands:
        app.command(command.__name__, epilog=_epilog(command))(command)


_register(
    ask,
    think,
    trace,
    proxy,
    edit,
    compare,
    tasks,
    report,
    metrics,
    export,
    plan,
    explain,
    methods,
    papers,
    download,
    doctor,
)

app.add_typer(weights.app, name="weights", epilog=_epilog(weights.merge))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 a check failed or a bug, 2 cannot be done, 130 interrupted.

    Every error is one line on stderr; LENGTHWISE_DEBUG=1 shows the traceback too.
    """
    if f"_{PROGRAM.upper()}_COMPLETE" in os.environ:  # the shell asks for completions
        app(prog_name=PROGRAM)
    _errors.encode_anything()
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    code = 0
    try:
        command = typer.main.get_command(app)
        with command.make_context(PROGRAM, given) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as done:
        code = done.exit_code
    except BaseException as error:  # one line for everything, a bug included
        code = _errors.report(error)
    return _errors.close(code)
