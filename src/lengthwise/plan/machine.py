"""How much memory there is, here and now."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from lengthwise.errors import BadParameter

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
CGROUPS = (  # (limit, used) of version 2 and of version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def parse_bytes(text: str) -> int:
    """Read a size: `8GB` (8 * 10^9), `8GiB` (8 * 2^30), `8g`, `500MB`, or a plain number of bytes."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if not found or found[2] not in UNITS or not (size := int(float(found[1]) * UNITS[found[2]])):
        raise BadParameter(f"'{text}' is not a size in bytes (8GB, 8GiB, 500MB)")
    return size


def total_memory() -> int:
    """Bytes of RAM that this process may use at most: the machine's, or its container's limit."""
    limits = [limit for limit, _ in _cgroup()]
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=0)


def available_memory(device: str = "cpu") -> int:
    """Bytes that can be taken now without swapping; of a CUDA device, its free memory. 0: unknown."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = [max(0, limit - used) for limit, used in _cgroup()]
    known = _meminfo().get("MemAvailable")
    if known is None:
        try:
            known = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            known = total_memory()  # where nobody says what is free
    return min([known, *free])


def fast_memory() -> int:
    """Bytes of the cache that one core has to itself (its second level); 1 MiB where nobody says."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        if (size := os.sysconf("SC_LEVEL2_CACHE_SIZE")) > 0:
            return size
    return 1 << 20


def _meminfo() -> dict[str, int]:
    """Bytes by name, of Linux; {} elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    rows = (line.replace(":", "").split() for line in lines)
    return {row[0]: int(row[1]) * (1024 if row[2:] == ["kB"] else 1) for row in rows if len(row) > 1}


def _cgroup() -> list[tuple[int, int]]:
    """(limit, used) of the container, if it has a limit. Page cache that can be dropped does not count as used."""
    found = []
    for limit_file, used_file in CGROUPS:
        try:
            limit, used = (Path(f).read_text(encoding="ascii").strip() for f in (limit_file, used_file))
            if limit.isdecimal() and int(limit) < 1 << 60:
                found.append((int(limit), max(0, int(used) - _inactive(Path(used_file).parent))))
        except (OSError, ValueError):
            continue
    return found


def _inactive(folder: Path) -> int:
    """Bytes of the container's page cache that go first."""
    try:
        rows = (line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        values = {row[0]: int(row[1]) for row in rows if len(row) == 2}
    except (OSError, ValueError):
        return 0
    return values.get("inactive_file", values.get("total_inactive_file", 0))
