"""The progress bar of commands that go through many rows."""

from __future__ import annotations

import sys
from typing import Self

from lengthwise.cli._output import console


class Bar:
    """On a terminal's stderr: what is done of `total`, the time left, and a text."""

    def __init__(self, total: int, text: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.description}"),
            console=console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self.total = total
        self.task = self.bar.add_task(text, total=total)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def show(self, left: int, text: str) -> None:
        """`left` are still to come."""
        self.bar.update(self.task, completed=self.total - left, description=text)
