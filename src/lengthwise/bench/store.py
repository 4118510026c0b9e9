"""Rows of results: one line of JSON a sample, appended as soon as it is there, never rewritten."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lengthwise.errors import BadInput

VERSION = 1
COSTS = (
    "prefill_seconds",
    "decode_seconds",
    "cpu_seconds",
    "tokens_read",
    "tokens_written",
    "pairs",
    "dense_pairs",
    "peak_kv_bytes",
    "disk_bytes",
    "peak_rss",
)
"""Fields of a row's `ledger`, as in `core.ledger`; all of one sample, but for peak_rss, which is the process's."""

Row = dict[str, Any]
"""A row: version, key, status ('done', 'failed' or 'refused'), error, stack, task, length, depth (or None), trial,
seed, metric, score, scores, answer, expected, reference, prompt_head, prompt_tail, prompt_tokens, max_new_tokens,
evidence, ledger, notes, model, model_hash, tokenizer, template, haystack, versions, machine, date."""


class Store:
    """An append-only file of rows. A torn last line, as a kill leaves it, is cut off when the file is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            self._recover()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def _recover(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        self.rows = list(parse_rows(data[:whole].decode(), self.path))
        if whole < len(data):
            begins = b'{"version"'
            if data[whole:][: len(begins)] != begins[: len(data) - whole]:
                raise BadInput(f"{self.path} ends in what is not a row of results: name another file")
            os.truncate(self.path, whole)

    def append(self, row: Row) -> None:
        """Write one row through to the disk. A write that fails (a full disk) leaves no half of a row behind."""
        at = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # closing tries to write the rest once more
                self._file.close()
            os.truncate(self.path, at)
            self._file = self.path.open("ab")
            raise
        self.rows.append(row)

    def done(self) -> set[str]:
        """Keys of the samples that need not be run again: done, or refused for good."""
        return {row["key"] for row in self.rows if row["status"] != "failed"}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def parse_rows(text: str, where: Path) -> Iterator[Row]:
    """The rows of a results file. Raises BadInput that names the first line that is none."""
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        try:
            row = json.loads(line)
            if row["version"] != VERSION:
                raise BadInput(f"{where}:{number} is of version {row['version']}, this is {VERSION}")
            yield row
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{where}:{number} is not a row of results") from error


def read_rows(path: Path) -> list[Row]:
    """All rows of a file; the last one of a key counts (a failed sample may have been run again)."""
    if not path.is_file():
        raise BadInput(f"there are no results at {path}")
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return list({row["key"]: row for row in parse_rows(whole, path)}.values())
