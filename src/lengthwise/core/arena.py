"""Where the cold part of a lane lies: RAM, or a file. Token-major, so growing never moves a token."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lengthwise.core.growing import Growing
from lengthwise.core.pagefile import EXTENT, PageFile

_STEP = 1024  # tokens that `Disk.keep` moves at once
_GAP = 1 << 14  # bytes that are read and thrown away rather than skipped by another call


class Arena(Protocol):
    """Growing tensors that share their first axis, the tokens."""

    on_disk: bool

    def append(self, parts: tuple[Tensor, ...]) -> None:
        """Add tokens: tensors [m, ...], the same number at every call."""

    def read(self, where: slice | Tensor) -> tuple[Tensor, ...]:
        """The tokens at a slice or at ascending indices [m]; of a slice, perhaps views until the next `append`."""

    def keep(self, slots: Tensor) -> None:
        """Drop every token but those at `slots` [m], ascending, without a second copy of them."""

    def nbytes(self) -> int:
        """Bytes held."""


class Ram:
    """In memory, by default the host's."""

    on_disk = False

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._parts: list[Growing] = []

    def append(self, parts: tuple[Tensor, ...]) -> None:
        """Add tokens."""
        if not self._parts:
            self._parts = [Growing(1, tuple(p.shape[1:]), p.dtype, self._device) for p in parts]
        for held, part in zip(self._parts, parts, strict=True):
            start = held.n
            held.resize(start + part.shape[0])
            held.tensor[0, start : held.n] = part.to(self._device)

    def read(self, where: slice | Tensor) -> tuple[Tensor, ...]:
        """The tokens at `where`."""
        index = where if isinstance(where, slice) else where.to(self._device)
        return tuple(p.tensor[0, : p.n][index] for p in self._parts)

    def keep(self, slots: Tensor) -> None:
        """Drop the rest."""
        for part in self._parts:
            part.keep(slots)

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(p.nbytes() for p in self._parts)


class Disk:
    """In extents of a nameless file in `folder`, a record of all parts for each token.

    What was read or written stays, while memory lasts, in the system's page cache, but does not count as this
    process's memory.
    """

    on_disk = True

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._file: PageFile | None = None
        self._extents: list[int] = []
        self._parts: list[tuple[tuple[int, ...], torch.dtype]] = []
        self._row = 0  # bytes of a token
        self._n = 0

    def append(self, parts: tuple[Tensor, ...]) -> None:
        """Write tokens at the end of the file. Raises StoreError, and holds what it held, when there is no room."""
        if self._file is None:
            self._file = PageFile.of(self._folder)
            weakref.finalize(self, self._file.give_back, self._extents)
            self._parts = [(tuple(p.shape[1:]), p.dtype) for p in parts]
            self._row = sum(_row_bytes(*part) for part in self._parts)
        self._write(self._n, _as_records(parts))
        self._n += parts[0].shape[0]

    def read(self, where: slice | Tensor) -> tuple[Tensor, ...]:
        """Copies of the tokens at `where`. Raises StoreError when they cannot be read."""
        if isinstance(where, slice):
            a, b, _ = where.indices(self._n)
            return self._split(self._records(a, max(a, b)))
        if len(where) == 0:
            return self._split(self._records(0, 0))
        jumps = (where.diff() * self._row > _GAP).nonzero()[:, 0] + 1
        runs = [(run, int(run[0])) for run in torch.tensor_split(where, jumps)]
        rows = [self._records(first, int(run[-1]) + 1)[(run - first).numpy()] for run, first in runs]
        return self._split(np.concatenate(rows))

    def keep(self, slots: Tensor) -> None:
        """Move the tokens at `slots` to the front of the file, and give back the extents behind them."""
        same = int((slots == torch.arange(len(slots))).sum())  # the first ones: no token moves to the right
        for a in range(same, len(slots), _STEP):
            self._write(a, _as_records(self.read(slots[a : a + _STEP])))
        self._n = len(slots)
        if self._file is not None:
            used = -(-self._n * self._row // EXTENT)
            spare = self._extents[used:]
            del self._extents[used:]
            self._file.give_back(spare)

    def nbytes(self) -> int:
        """Bytes of the tokens in the file, counted, not asked of the disk: a run asks after every pass."""
        return self._n * self._row

    def _records(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Tokens [start, stop) as records [stop - start, row]."""
        records = np.empty((stop - start, self._row), dtype=np.uint8)
        if self._file is not None:
            self._file.read(self._extents, start * self._row, records)
        return records

    def _write(self, start: int, records: NDArray[np.uint8]) -> None:
        assert self._file is not None
        while len(self._extents) * EXTENT < start * self._row + records.size:
            self._extents.append(self._file.take())
        self._file.write(self._extents, start * self._row, records)

    def _split(self, records: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        """Records as the parts that they were made of."""
        ends = np.cumsum([_row_bytes(*part) for part in self._parts])
        columns = np.split(records, ends[:-1], axis=1) if self._parts else []
        return tuple(
            torch.from_numpy(np.ascontiguousarray(column)).view(-1).view(dtype).view(len(records), *shape)
            for column, (shape, dtype) in zip(columns, self._parts)
        )


class Lru:
    """Keeps the most recently used pages of a Disk in memory. A page is `page` consecutive tokens."""

    on_disk = True

    def __init__(self, inner: Disk, page: int, pages: int) -> None:
        self.inner, self.page, self.pages = inner, page, pages
        self.hits = self.misses = 0
        self._cached: OrderedDict[int, tuple[Tensor, ...]] = OrderedDict()
        self._n = 0

    def append(self, parts: tuple[Tensor, ...]) -> None:
        """Add tokens; a cached page that was not full is dropped."""
        self._cached.pop(self._n // self.page, None)
        self.inner.append(parts)
        self._n += parts[0].shape[0]

    def read(self, where: slice | Tensor) -> tuple[Tensor, ...]:
        """Through the cache when the tokens lie on few enough pages, else straight from the arena."""
        slots = torch.arange(where.start, where.stop) if isinstance(where, slice) else where
        wanted = torch.unique(slots // self.page).tolist()
        if not wanted or len(wanted) > self.pages:
            return self.inner.read(where)
        missing = [p for p in wanted if p not in self._cached]
        self.hits += len(wanted) - len(missing)
        self.misses += len(missing)
        for p in missing:
            self._cached[p] = self.inner.read(slice(p * self.page, min(self._n, (p + 1) * self.page)))
        for p in wanted:
            self._cached.move_to_end(p)
        rows = torch.searchsorted(torch.tensor(wanted), slots // self.page) * self.page + slots % self.page
        out = tuple(torch.cat([self._cached[p][i] for p in wanted])[rows] for i in range(len(self._cached[wanted[0]])))
        while len(self._cached) > self.pages:
            self._cached.popitem(last=False)
        return out

    def keep(self, slots: Tensor) -> None:
        """Drop the rest, and all cached pages."""
        self._cached.clear()
        self.inner.keep(slots)
        self._n = len(slots)

    def nbytes(self) -> int:
        """Bytes of the arena behind the cache."""
        return self.inner.nbytes()

    def cached_bytes(self) -> int:
        """Bytes of the pages in memory."""
        return sum(t.numel() * t.element_size() for page in self._cached.values() for t in page)


def _row_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of one token of a part."""
    return math.prod(shape) * dtype.itemsize


def _as_records(parts: tuple[Tensor, ...]) -> NDArray[np.uint8]:
    """Parts [m, ...] as bytes [m, row], one part beside the other."""
    flat = [p.detach().cpu().flatten(1).contiguous().view(torch.uint8) for p in parts]
    return (flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)).numpy()


def free_disk(folder: str | None = None) -> int:
    """Bytes free where a Disk arena would write. Raises OSError when it could not write there."""
    folder = folder or tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
    return free
