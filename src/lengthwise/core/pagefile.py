"""A nameless file in extents, which the arenas of one folder share: one open file, however many lanes a run has.

The file has no name from the start, so the system takes it back however the process ends, and nobody can remove it.
It is read and written by calls, not through a mapping: a full disk or a failing read is an error here, not a signal.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import weakref
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import StoreError

EXTENT = 1 << 20  # bytes

_open: weakref.WeakValueDictionary[tuple[int, str], PageFile] = weakref.WeakValueDictionary()


class PageFile:
    """Extents of EXTENT bytes that are taken and given back; they are reused, and the file goes with its last user."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        try:
            self._file = tempfile.TemporaryFile(prefix="lengthwise-kv-", dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise StoreError(f"no files can be kept in {folder} ({error.strerror}): {_ELSEWHERE}") from error
        self._free: list[int] = []
        self._fresh = itertools.count()

    @staticmethod
    def of(folder: str | None) -> PageFile:
        """The file that this process keeps in `folder` (None: where temporary files go)."""
        key = os.getpid(), folder or tempfile.gettempdir()
        file = _open.get(key)
        if file is None:
            file = _open[key] = PageFile(key[1])
        return file

    def take(self) -> int:
        """The number of an extent that nobody uses."""
        try:
            return self._free.pop()
        except IndexError:
            return next(self._fresh)

    def give_back(self, extents: list[int]) -> None:
        """Let `extents` be used again; the list is emptied. One atomic step, for finalizers may run at any moment."""
        self._free.extend(extents)
        extents.clear()

    def write(self, extents: list[int], start: int, data: NDArray[np.uint8]) -> None:
        """Write `data` (contiguous) at byte `start` of what `extents` make in their order. Raises StoreError."""
        view = data.reshape(-1).data
        for at, a, b in _runs(extents, start, len(view)):
            while a < b:
                try:
                    done = os.pwritev(self._file.fileno(), [view[a:b]], at)
                except OSError as error:
                    raise StoreError(
                        f"keys and values cannot be written to {self.folder} ({error.strerror}): {_ELSEWHERE}"
                    ) from error
                a, at = a + done, at + done

    def read(self, extents: list[int], start: int, into: NDArray[np.uint8]) -> None:
        """Fill `into` (contiguous) from byte `start` on. Raises StoreError when that cannot be read whole."""
        view = into.reshape(-1).data
        for at, a, b in _runs(extents, start, len(view)):
            while a < b:
                try:
                    done = os.preadv(self._file.fileno(), [view[a:b]], at)
                except OSError as error:
                    raise self._unreadable(str(error.strerror)) from error
                if done == 0:
                    raise self._unreadable("the file was cut short")
                a, at = a + done, at + done

    def _unreadable(self, why: str) -> StoreError:
        _open.pop((os.getpid(), self.folder), None)  # new arenas begin a new file
        return StoreError(
            f"keys and values in {self.folder} cannot be read back ({why}): read the text again into a new cache"
        )


_ELSEWHERE = "free some space, or name another folder with folder=DIR"


def _runs(extents: list[int], start: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Bytes [start, start + size) as (offset in the file, first and last byte of the data)."""
    a = 0
    while a < size:
        number, within = divmod(start + a, EXTENT)
        b = min(size, a + EXTENT - within)
        yield extents[number] * EXTENT + within, a, b
        a = b
