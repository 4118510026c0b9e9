"""The attention kernel under address and undefined-behaviour sanitizers: no access outside what it was given."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lengthwise.kernels import build, library

CASES = 120


def runtime(cxx: str, name: str) -> str | None:
    path = subprocess.run([cxx, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
    return path if Path(path).is_absolute() else None


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512bf16", "tiles"])
def test_attend_sanitized(isa: str, tmp_path: Path) -> None:
    cxx = build.compiler()
    needed = "avx512bf16" if isa == "tiles" else isa
    if cxx is None or needed not in library.available():
        pytest.skip(f"needs a compiler and {needed}")
    libraries = [runtime(cxx, name) for name in ("libasan.so", "libubsan.so")]
    if None in libraries:
        pytest.skip(f"{cxx} has no sanitizers")
    target = tmp_path / "attend.so"
    flags = [*build.COMMON, *build.FLAGS["x86_64"][needed], "-O1", "-g", "-shared", "-fopenmp"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-DLW_ISA={isa}"]
    flags += ["-DLW_EMULATE_TILES"] if isa == "tiles" else []
    subprocess.run([cxx, *flags, str(build.SOURCES / "attend.cpp"), "-o", str(target)], check=True)
    env = {
        **os.environ,
        "LD_PRELOAD": " ".join(str(x) for x in libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's and torch's own
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, __file__, str(target), isa], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == f"{CASES} cases"


def main(path: str, isa: str) -> None:
    """Runs in a process of its own: random calls on tensors of exactly the size that they need."""
    import torch

    from lengthwise.kernels.attend import BlockLists, Coded, cpu

    call = library.bind(getattr(ctypes.CDLL(path), f"lw_attend_{isa}"), "attend")
    library.function = lambda op: call  # type: ignore[assignment]
    for seed in range(CASES):
        g = torch.Generator().manual_seed(seed)

        def pick(*choices: int) -> int:
            return choices[int(torch.randint(len(choices), (1,), generator=g))]  # noqa: B023

        kv, ratio, frames = pick(1, 2), pick(1, 3), pick(1, 2)
        rows, slots = pick(1, 15, 64, 65, 130), pick(0, 1, 63, 64, 65, 200)
        dim, value_dim = pick(1, 16, 31, 64, 80, 256), pick(1, 16, 48, 64, 255)
        dtype = (torch.float32, torch.bfloat16, torch.float16)[pick(0, 1, 2)]
        q = torch.randn(frames, kv * ratio, rows, dim, generator=g).to(dtype)
        # one allocation for each tensor, so that a read past its end is caught
        if pick(0, 0, 1):
            k = [coded(kv, slots, dim, g) for _ in range(frames)]
            v: object = coded(kv, slots, value_dim, g)
            assert isinstance(v, Coded)
        else:
            k = [torch.randn(kv, slots, dim, generator=g).to(dtype) for _ in range(frames)]
            v = torch.randn(kv, slots, value_dim, generator=g).to(dtype)
        lists = None
        if groups := pick(0, 1, kv, kv * ratio):
            lists = BlockLists.of(torch.rand(groups, -(-rows // 64), -(-slots // 64), generator=g) < 0.7)
        cpu.attend(
            [x.clone() for x in q],
            k,
            v,  # type: ignore[arg-type]
            q_positions=torch.arange(rows) + pick(0, slots),
            k_positions=torch.arange(slots),
            lists=lists,
            frames=((0, 40), (40, 1 << 62))[:frames],
            rules=((70, 4),)[: pick(0, 1)],
            scale=0.3,
            softcap=(None, 4.0)[pick(0, 1)],
            threads=pick(1, 2),
        )
    print(f"{CASES} cases")


def coded(heads: int, slots: int, dim: int, g: object) -> object:
    import torch

    from lengthwise.kernels.attend import Coded

    groups = dim // 16 if dim % 16 == 0 else 1
    codes = torch.randint(0, 255, (heads, slots, dim), dtype=torch.uint8, generator=g)  # type: ignore[call-overload]
    return Coded(codes, torch.rand(heads, slots, groups).half(), torch.rand(heads, slots, groups).half() / 100)


if __name__ == "__main__":
    main(*sys.argv[1:])
