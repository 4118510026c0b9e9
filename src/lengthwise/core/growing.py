"""Tensors that grow in place: address space is reserved once, and memory is taken only as it is written.

An anonymous private mapping costs nothing until its pages are touched, so a reservation may be far larger than what
will be held: the tensor never moves while it grows, and there is never a second copy of it. Where the system counts
reservations (RLIMIT_AS, strict overcommit), and on other devices, a tensor grows by copying into a larger one.
"""

from __future__ import annotations

import math
import mmap
import sys
from pathlib import Path

import torch
from torch import Tensor

from lengthwise.errors import StoreError

_SMALL = 1 << 20  # bytes up to which a tensor is an ordinary one: whole pages would be a large part of it
_AHEAD = 1 << 20  # slots for which address space is reserved at least
_TAIL = 1 << 20  # bytes of an unused tail that are worth giving back
_STEP = 1024  # slots that are moved at once
_SPARE = 256  # slots that may stay unused after most were dropped


class Growing:
    """A tensor [outer, room, *inner] of which the first `n` slots of the second axis are in use.

    `tensor` is the whole of it; a view of it is good until the next `resize`, `reserve` or `keep`.
    """

    def __init__(self, outer: int, inner: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.tensor = torch.empty(outer, 0, *inner, dtype=dtype, device=device)
        self.n = 0
        self._most = 1 << 62
        self._slot_bytes = math.prod(inner) * dtype.itemsize
        self._mapping: mmap.mmap | None = None
        self._touched = 0  # slots that lie on pages that are, or are about to be, in memory

    def reserve(self, slots: int, most: int) -> None:
        """Make room for `slots`, without taking memory if that is possible; there will never be more than `most`.

        Raises StoreError when there is no memory for them.
        """
        self._most = most
        if slots > self.tensor.shape[1]:
            self._grow(slots)

    def resize(self, n: int) -> None:
        """Have `n` slots in use. When that leaves a large unused tail, its memory goes back to the system.

        Raises StoreError when there is no memory for them.
        """
        if n > self.tensor.shape[1]:
            self._grow(n)
        self.n = n
        tail = (self._touched - n) * self._slot_bytes * self.tensor.shape[0]
        if self._mapping is not None and tail > max(_TAIL, n // 2 * self._slot_bytes * self.tensor.shape[0]):
            for i in range(self.tensor.shape[0]):
                self._give_back(i, n)
            self._touched = n
        self._touched = max(self._touched, n)

    def keep(self, slots: Tensor) -> None:
        """Move `slots` (ascending, on the CPU) to the front, a few at a time, and drop the rest.

        [m]: the same for every outer slice; [outer, m]: each has its own.
        """
        count = slots.shape[-1]
        stays = torch.atleast_2d(slots == torch.arange(count)).all(0)
        same = int(stays.sum())  # the first ones: no slot moves to the right
        for a in range(same, count, _STEP):
            some = slots[..., a : a + _STEP].to(self.tensor.device)
            if some.dim() == 1:
                self.tensor[:, a : a + len(some)] = self.tensor.index_select(1, some)
            else:
                self.tensor[:, a : a + some.shape[1]] = by_head(self.tensor, some)
        self.resize(count)
        room = 2 * count + _SPARE
        if self._mapping is None and self.tensor.shape[1] > room:  # memory that is not paged cannot be given back
            self.tensor = self.tensor[:, : count + _SPARE].clone()

    def nbytes(self) -> int:
        """Bytes held: the pages that were touched, or the whole of a tensor that has no pages of its own."""
        if self._mapping is None:
            return self.tensor.numel() * self.tensor.element_size()
        return self.tensor.shape[0] * _pages(self._touched * self._slot_bytes)

    def _grow(self, slots: int) -> None:
        outer, room = self.tensor.shape[:2]
        ahead = _pages(max(slots, min(4 * slots + _AHEAD, self._most)))  # so that every outer slice begins on a page
        mapping = None
        if outer * slots * self._slot_bytes > _SMALL and self.tensor.device.type == "cpu":
            mapping = _address_space(outer * ahead * self._slot_bytes)
        if mapping is None:
            ahead = max(slots, min(max(64, int(1.5 * room)), self._most))
        shape = (outer, ahead, *self.tensor.shape[2:])
        try:
            if mapping is not None:
                grown = torch.frombuffer(mapping, dtype=self.tensor.dtype).view(shape)
            else:
                grown = torch.empty(shape, dtype=self.tensor.dtype, device=self.tensor.device)
        except (RuntimeError, MemoryError) as error:
            size = outer * ahead * self._slot_bytes
            raise StoreError(
                f"no memory for {slots:,} tokens of keys and values ({size:,} bytes more in one layer): "
                "shorten the input, or use a stack that holds less"
            ) from error
        for i in range(outer):
            grown[i, : self.n] = self.tensor[i, : self.n]
            self._give_back(i, 0)  # one slice at a time: there is never a second copy of the whole
        self.tensor, self._mapping, self._touched = grown, mapping, self.n

    def _give_back(self, index: int, n: int) -> None:
        """Give back what an outer slice holds behind its first `n` slots."""
        if self._mapping is None:
            return
        start, stop = _pages(n * self._slot_bytes), _pages(self._touched * self._slot_bytes)
        if stop > start:
            # elsewhere than on Linux DONTNEED is a hint that may be ignored
            advice = mmap.MADV_DONTNEED if sys.platform == "linux" else mmap.MADV_FREE
            base = index * self.tensor.shape[1] * self._slot_bytes
            self._mapping.madvise(advice, base + start, stop - start)


def by_head(x: Tensor, slots: Tensor) -> Tensor:
    """x [H, n, *inner] at slots [H, m], a row of slots for each head: [H, m, *inner]."""
    index = slots.reshape(*slots.shape, *([1] * (x.dim() - 2)))
    return x.gather(1, index.expand(*slots.shape, *x.shape[2:]))


def _pages(size: int) -> int:
    """`size` rounded up to whole pages."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _address_space(size: int) -> mmap.mmap | None:
    """A mapping of `size` bytes that takes no memory yet; None where a reservation counts as use, or is refused."""
    if sys.platform not in ("linux", "darwin"):
        return None
    import resource

    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY or _strict_overcommit():
        return None
    no_reserve = {"linux": 0x4000, "darwin": 0x40}[sys.platform]  # MAP_NORESERVE, which mmap names from 3.13 on
    try:
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    except (OSError, OverflowError):
        return None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # huge pages would round every slice up to 2 MiB, unseen by `nbytes`
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping


def _strict_overcommit() -> bool:
    """Whether Linux counts reservations against its memory."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return False
