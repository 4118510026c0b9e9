"""Where the cold part of a lane lies: RAM, or a memory-mapped file. Token-major, so growing never moves a token."""

from __future__ import annotations

import math
import mmap
import shutil
import tempfile
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Arena(Protocol):
    """Growing tensors that share their first axis, the tokens."""

    on_disk: bool

    def append(self, parts: tuple[Tensor, ...]) -> None:
        """Add tokens: tensors [m, ...], the same number at every call."""

    def read(self, where: slice | Tensor) -> tuple[Tensor, ...]:
        """The tokens at a slice or at ascending indices [m]."""

    def keep(self, slots: Tensor) -> None:
        """Drop every token but those at `slots` [m], ascending."""

    def nbytes(self) -> int:
        """Bytes allocated."""


class Ram:
    """In memory, by default the host's, doubling when full."""

    on_disk = False

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._parts: list[Tensor] = []
        self._n = 0

    def append(self, parts: tuple[Tensor, ...]) -> None:
        """Add tokens."""
        if not self._parts:
            self._parts = [torch.empty(0, *p.shape[1:], dtype=p.dtype, device=self._device) for p in parts]
        end = self._n + parts[0].shape[0]
        for i, part in enumerate(parts):
            held = self._parts[i]
            if end > held.shape[0]:
                grown = torch.empty(
                    max(end, int(1.5 * held.shape[0])), *held.shape[1:], dtype=held.dtype, device=self._device
                )
                grown[: self._n] = held[: self._n]
                self._parts[i] = held = grown
            held[self._n : end] = part.to(held.device)
        self._n = end

    def read(self, where: slice | Tensor) -> tuple[Tensor, ...]:
        """The tokens at `where`."""
        return tuple(p[where if isinstance(where, slice) else where.to(p.device)] for p in self._parts)

    def keep(self, slots: Tensor) -> None:
        """Drop the rest."""
        for part in self._parts:
            part[: len(slots)] = part[slots.to(part.device)]
        self._n = len(slots)

    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(p.numel() * p.element_size() for p in self._parts)


class Disk:
    """In memory-mapped files of a private folder that goes away with the arena.

    After each use the pages are given back to the system (MADV_DONTNEED): they stay in the file and, while memory
    lasts, in the system's page cache, but do not count as this process's memory.
    """

    on_disk = True

    def __init__(self, folder: str | None = None) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="lengthwise-kv-", dir=folder)
        weakref.finalize(self, self._home.cleanup)
        self._files: list[tuple[Path, tuple[int, ...], torch.dtype]] = []
        self._n = 0

    def append(self, parts: tuple[Tensor, ...]) -> None:
        """Write tokens at the end of the files."""
        if not self._files:
            self._files = [(Path(self._home.name) / str(i), tuple(p.shape[1:]), p.dtype) for i, p in enumerate(parts)]
        for (path, _, _), part in zip(self._files, parts, strict=True):
            with path.open("ab") as file:
                file.write(_as_bytes(part))
        self._n += parts[0].shape[0]

    def read(self, where: slice | Tensor) -> tuple[Tensor, ...]:
        """Copies of the tokens at `where`."""
        return tuple(self._read_one(path, shape, dtype, where) for path, shape, dtype in self._files)

    def keep(self, slots: Tensor) -> None:
        """Rewrite the files with the tokens at `slots`."""
        kept = self.read(slots)
        for (path, _, _), part in zip(self._files, kept, strict=True):
            path.write_bytes(_as_bytes(part))
        self._n = len(slots)

    def nbytes(self) -> int:
        """Bytes of the files, counted, not asked of the disk: a run asks after every pass of every layer."""
        return self._n * sum(_row_bytes(shape, dtype) for _, shape, dtype in self._files)

    def _read_one(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, where: slice | Tensor) -> Tensor:
        nothing = torch.empty(0, *shape, dtype=dtype)
        if self._n == 0:
            return nothing
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            table = np.ndarray((self._n, _row_bytes(shape, dtype)), dtype=np.uint8, buffer=view)
            picked = np.array(table[where if isinstance(where, slice) else where.numpy()])
            del table
            if hasattr(mmap, "MADV_DONTNEED"):
                view.madvise(mmap.MADV_DONTNEED)
        if len(picked) == 0:  # no bytes to view as another type
            return nothing
        return torch.from_numpy(picked).view(dtype).view(picked.shape[0], *shape)


class Lru:
    """Keeps the most recently used pages of another arena in memory. A page is `page` consecutive tokens."""

    def __init__(self, inner: Arena, page: int, pages: int) -> None:
        self.inner, self.page, self.pages = inner, page, pages
        self.on_disk = inner.on_disk
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
    """Bytes of one token of a file."""
    return math.prod(shape) * dtype.itemsize


def _as_bytes(part: Tensor) -> bytes:
    return part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def free_disk(folder: str | None = None) -> int:
    """Bytes free where a Disk arena would write."""
    return shutil.disk_usage(folder or tempfile.gettempdir()).free
