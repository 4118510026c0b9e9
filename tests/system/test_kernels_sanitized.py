"""The kernels under address and undefined-behaviour sanitizers: no access outside what it was given."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lengthwise import kernels
from lengthwise.kernels import BlockLists, Coded, build, library

CASES = 120
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ISAS = ("portable", "avx2", "avx512", "avx512bf16")


def runtime(cxx: str, name: str) -> str | None:
    path = subprocess.run([cxx, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
    return path if Path(path).is_absolute() else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "isa"),
    [("attend", "tiles")]
    + [(op, isa) for op in ("attend", "decode", "summary", "fused", "linear", "mass") for isa in ISAS],
)
def test_sanitized(op: str, isa: str, tmp_path: Path) -> None:
    cxx = build.compiler()
    needed = "avx512bf16" if isa == "tiles" else isa
    if cxx is None or needed not in library.available():
        pytest.skip(f"needs a compiler and {needed}")
    libraries = [runtime(cxx, name) for name in ("libasan.so", "libubsan.so")]
    if None in libraries:
        pytest.skip(f"{cxx} has no sanitizers")
    target = tmp_path / "kernels.so"
    flags = [*build.COMMON, *build.FLAGS["x86_64"][needed], "-O1", "-g", "-shared", "-fopenmp"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-DLW_ISA={isa}"]
    flags += ["-DLW_EMULATE_TILES"] if isa == "tiles" else []
    subprocess.run([cxx, *flags, str(build.SOURCES / f"{op}.cpp"), "-o", str(target)], check=True)
    env = {
        **os.environ,
        "LD_PRELOAD": " ".join(str(x) for x in libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's and torch's own
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, __file__, str(target), op, isa], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == f"{CASES} cases"


class Draw:
    """Random choices and tensors of exactly the size that they need, each an allocation of its own."""

    def __init__(self, seed: int) -> None:
        self.g = torch.Generator().manual_seed(seed)

    def pick(self, *choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (1,), generator=self.g))]

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.g).to(dtype)

    def coded(self, heads: int, slots: int, dim: int) -> Coded:
        groups = dim // 16 if dim % 16 == 0 else 1
        codes = torch.randint(0, 255, (heads, slots, dim), dtype=torch.uint8, generator=self.g)
        low, step = (torch.rand(heads, slots, groups, generator=self.g).half() for _ in range(2))
        return Coded(codes, low, step / 100)

    def flags(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.g) < 0.7


def attend(d: Draw) -> None:
    kv, ratio, frames = d.pick(1, 2), d.pick(1, 3), d.pick(1, 2)
    rows, slots = d.pick(1, 15, 64, 65, 130), d.pick(0, 1, 63, 64, 65, 200)
    dim, value_dim = d.pick(1, 16, 31, 64, 80, 256), d.pick(1, 16, 48, 64, 255)
    dtype = d.pick(*DTYPES)
    lane = d.coded if d.pick(False, False, True) else partial(d.tensor, dtype=dtype)
    lists = None
    if groups := d.pick(0, 1, kv, kv * ratio):
        lists = BlockLists.of(d.flags(groups, -(-rows // 64), -(-slots // 64)))
        if d.pick(False, True) and slots:
            lists = lists.with_columns(d.flags(groups, -(-rows // 64), slots))
    kernels.attend(
        [d.tensor(kv * ratio, rows, dim, dtype=dtype) for _ in range(frames)],
        [lane(kv, slots, dim) for _ in range(frames)],
        lane(kv, slots, value_dim),
        q_positions=torch.arange(rows) + d.pick(0, slots),
        k_positions=torch.arange(slots),
        lists=lists,
        frames=((0, 40), (40, 1 << 62))[:frames],
        rules=((70, 4),)[: d.pick(0, 1)],
        scale=0.3,
        softcap=d.pick(None, 4.0),
        threads=d.pick(1, 2),
    )


def decode(d: Draw) -> None:
    kv, ratio, slots = d.pick(1, 2), d.pick(1, 3), d.pick(1, 63, 64, 65, 200, 700)
    dim, value_dim = d.pick(1, 16, 31, 64, 80, 256), d.pick(1, 16, 48, 64, 255)
    dtype = d.pick(*DTYPES)
    lane = d.coded if d.pick(False, False, True) else partial(d.tensor, dtype=dtype)
    blocks, pages = -(-slots // 64), None
    if groups := d.pick(0, 1, kv):
        pages = torch.stack([torch.randperm(blocks, generator=d.g) for _ in range(groups)]).int()
        pages[:, d.pick(blocks // 2, blocks) :] = -1
    kernels.decode(
        d.tensor(kv * ratio, dim, dtype=dtype),
        lane(kv, slots, dim),
        lane(kv, slots, value_dim),
        pages=pages,
        length=slots,
        scale=0.3,
        softcap=d.pick(None, 4.0),
        seen=d.pick(None, d.flags(slots), d.flags(kv, slots)),
        threads=d.pick(1, 2),
    )


def summary(d: Draw) -> None:
    kv, ratio, rows, slots = d.pick(1, 2), d.pick(1, 3), d.pick(1, 15, 64, 65, 130), d.pick(1, 63, 64, 65, 200, 700)
    dim, dtype = d.pick(1, 16, 31, 64, 80, 256), d.pick(*DTYPES)
    found = kernels.summarize(d.tensor(kv, slots, dim, dtype=dtype), length=slots, threads=d.pick(1, 2))
    blocks = -(-slots // 64)
    kernels.top_blocks(
        d.tensor(kv * ratio, rows, dim, dtype=dtype),
        found,
        count=d.pick(0, 1, 3, blocks),
        limits=torch.randint(0, blocks + 1, (-(-rows // 64),), generator=d.g),
        kind=d.pick("mean", "bounds"),
        share=d.pick("group", "head"),
        always=d.pick((0, 0), (1, 1), (0, 2)),
        threads=d.pick(1, 2),
    )


def fused(d: Draw) -> None:
    rows, size, dtype, threads = d.pick(1, 7, 130), d.pick(2, 30, 64, 576), d.pick(*DTYPES), d.pick(1, 2)
    x, residual, weight = (d.tensor(*s, dtype=dtype) for s in ((rows, size), (rows, size), (size,)))
    kernels.rms_norm(x, weight, 1e-5, threads=threads)
    kernels.add_rms_norm(x, residual, weight, 1e-5, threads=threads)
    q, k = d.tensor(3, rows, size, dtype=dtype), d.tensor(1, rows, size, dtype=dtype)
    kernels.rotary(q, k, x, residual, threads=threads)
    long = (1 << 16) // size + rows
    kernels.silu_mul(*(d.tensor(long, size, dtype=dtype) for _ in range(2)), threads=threads)


def linear(d: Draw) -> None:
    rows, columns, dtype = d.pick(1, 7, 130, 2000), d.pick(1, 30, 64, 576, 5000), d.pick(*DTYPES)
    x, weight = d.tensor(columns, dtype=dtype), d.tensor(rows, columns, dtype=dtype)
    kernels.linear(x, weight, d.pick(None, d.tensor(rows, dtype=dtype)), threads=d.pick(1, 2))


def mass(d: Draw) -> None:
    kv, ratio, rows, slots = d.pick(1, 2), d.pick(1, 3), d.pick(1, 15, 64, 65, 130), d.pick(0, 1, 63, 64, 65, 200, 700)
    dim, dtype = d.pick(1, 16, 31, 64, 80, 256), d.pick(*DTYPES)
    kernels.block_mass(
        d.tensor(kv * ratio, rows, dim, dtype=dtype),
        d.tensor(kv, slots, dim, dtype=dtype),
        q_positions=torch.arange(rows) + d.pick(0, slots),
        k_positions=torch.arange(slots),
        scale=0.3,
        softcap=d.pick(None, 4.0),
        threads=d.pick(1, 2),
    )


def main(path: str, op: str, isa: str) -> None:
    """Runs in a process of its own."""
    loaded = ctypes.CDLL(path)
    called = set()

    def function(name: str) -> Any:
        called.add(name)
        return library.bind(getattr(loaded, f"lw_{name}_{isa}"), name)

    library.function = function
    for seed in range(CASES):
        {"attend": attend, "decode": decode, "summary": summary, "fused": fused, "linear": linear, "mass": mass}[op](
            Draw(seed)
        )
    assert called, "no compiled kernel was called"
    print(f"{CASES} cases")


if __name__ == "__main__":
    main(*sys.argv[1:])
