"""The backends of attention beside each other, what they refuse, and the compiled object itself."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_case import CASES, Case, check, needs_kernels
from lengthwise.core.frames import FAR
from lengthwise.errors import BadInput
from lengthwise.kernels import build, library
from lengthwise.kernels.attend import BlockLists, Coded, attend, cpu, flex, naive


@needs_kernels
@given(
    blocks=st.lists(st.integers(-3, 6) | st.sampled_from([2**31 - 1, -(2**31)]), max_size=12),
    offsets=st.lists(st.integers(-2, 13) | st.sampled_from([2**62, -(2**62)]), min_size=3, max_size=3),
    tidy=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_lists_that_do_not_fit_are_errors(blocks: list[int], offsets: list[int], tidy: bool) -> None:
    """The kernel refuses exactly the lists that the oracle refuses, and never reads by them."""
    if tidy:
        offsets = [0, min(abs(offsets[1]), len(blocks)), len(blocks)]
    lists = BlockLists(torch.tensor([offsets]), torch.tensor(blocks, dtype=torch.int32))
    case = Case(rows=100, slots=200)
    case.options["lists"] = lists
    try:
        lists.mask(4)
    except BadInput:
        with pytest.raises(BadInput, match=r"block id|offsets"):
            cpu.attend(case.request())
    else:
        case.q, case.k, case.v = [x.nan_to_num() for x in case.q], [x.nan_to_num() for x in case.k], case.v.nan_to_num()
        check(case)


BAD: dict[str, Callable[[Case], None]] = {
    "for every frame": lambda c: c.q.append(c.q[0]),
    "v .Hkv, S, Dv.": lambda c: c.q.__setitem__(0, c.q[0][0]),
    "Hq, C, D": lambda c: c.k.__setitem__(0, c.k[0][..., 1:]),
    "do not divide": lambda c: c.q.__setitem__(0, c.q[0][:5]),
    "q_positions must be int64": lambda c: c.options.update(q_positions=c.options["q_positions"].int()),
    "k_positions must be int64": lambda c: c.options.update(k_positions=c.options["k_positions"][1:]),
    "must ascend": lambda c: c.options.update(k_positions=c.options["k_positions"].flip(0)),
    "overlap": lambda c: (c.q.append(c.q[0]), c.k.append(c.k[0]), c.options.update(frames=((0, 9), (8, FAR)))),
    "must be positive": lambda c: c.options.update(scale=0.0),
    "lists of": lambda c: c.options.update(lists=BlockLists.of(torch.ones(4, 2, 4, dtype=torch.bool))),
    "contiguous in D": lambda c: setattr(c, "v", c.v.transpose(1, 2).contiguous().transpose(1, 2)),
    "mix of dtypes": lambda c: setattr(c, "v", c.v.bfloat16()),
    "reads float32": lambda c: setattr(c, "v", c.v.double()),
    "threads": lambda c: c.options.update(threads=0),
}


@needs_kernels
@pytest.mark.parametrize("reason", BAD)
def test_bad_input_is_one_clear_error(reason: str) -> None:
    case = Case()
    BAD[reason](case)
    with pytest.raises(BadInput, match=reason):
        attend(case.q, case.k, case.v, **case.options)


@needs_kernels
def test_what_the_kernel_does_not_take_is_an_error() -> None:
    case = Case(heads=1, kv_heads=1, dim=257)
    with pytest.raises(BadInput, match="head dimensions up to 256"):
        cpu.attend(case.request())


def test_lists_and_codes_are_checked_when_made() -> None:
    offsets, blocks = torch.tensor([[0, 1]]), torch.tensor([0], dtype=torch.int32)
    for bad in (
        (offsets.int(), blocks, 64),
        (offsets, blocks.long(), 64),
        (offsets, blocks, 96),
        (offsets[0], blocks, 64),
    ):
        with pytest.raises(BadInput):
            BlockLists(*bad)
    codes, low = torch.zeros(1, 4, 6, dtype=torch.uint8), torch.zeros(1, 4, 2, dtype=torch.float16)
    for parts in (
        (codes, low[:, 1:], low),
        (codes, low, low[..., 1:]),
        (codes.int(), low, low),
        (codes, low.float(), low),
    ):
        with pytest.raises(BadInput):
            Coded(*parts)
    with pytest.raises(BadInput, match="cannot have 4 groups"):
        Coded(codes, low.repeat(1, 1, 2), low.repeat(1, 1, 2))


def test_backends_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(frames=((0, 50), (50, FAR)), groups=2)
    for name in ["naive", *(["cpu"] if library.available() else [])]:
        monkeypatch.setenv("LENGTHWISE_KERNELS", name)
        check(case, run=lambda _: attend(case.q, case.k, case.v, **case.options))


FLEX = ["plain", "before all keys", "two rules", "frames with a hole", "lists by head", "lists of 128",
        "empty lists", "softcap", "codes", "no keys"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", FLEX)
def test_flex_as_naive(name: str) -> None:
    check(Case(**CASES[name], seed=3), run=flex.attend)


@pytest.mark.parametrize("name", ["two rules", "gaps", "lists by head", "frames with a hole"])
def test_flex_reads_the_blocks_that_are_needed(name: str) -> None:
    """Eager flex_attention looks at the mask alone; compiled, it skips blocks: these must be exactly the empty ones."""
    case = Case(**CASES[name])
    q_positions, k_positions = case.options["q_positions"], case.options["k_positions"]
    tile, blocks = case.query_block, -(-case.slots // 64)
    allowed = torch.ones(1, -(-case.rows // tile), blocks, dtype=torch.bool)
    if case.options["lists"] is not None:
        allowed = case.options["lists"].mask(blocks)
    for low, high in case.frames:
        distance = q_positions[:, None] - k_positions
        sees = naive.listed(case.options["lists"], case.heads, 0, case.rows, case.slots) & (distance >= max(low, 0))
        sees = sees & (distance < high)
        for window, sinks in case.rules:
            sees = sees & ((distance < window) | (k_positions < sinks))
        padded = torch.nn.functional.pad(sees, (0, -case.slots % 64, 0, -case.rows % tile))
        counts = padded.view(case.heads, -1, tile, blocks, 64).sum((2, 4))
        pairs = flex.pairs_of_blocks(case.request(), (low, high), tile)
        mask = flex.block_mask(case.request(), (low, high), allowed, pairs, tile)
        assert torch.equal(mask.to_dense()[0].bool(), counts > 0)
        assert torch.equal(mask.full_kv_num_blocks[0], (counts == tile * 64).sum(-1).int())


@pytest.fixture(scope="module")
def emulated_tiles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ctypes.Structure], None]:
    """The kernel's tile path (AMX), with the tile instructions replaced by functions."""
    cxx = build.compiler()
    if cxx is None or "avx512bf16" not in library.available():
        pytest.skip("the tile path is emulated on a CPU with avx512bf16 and a compiler")
    target = tmp_path_factory.mktemp("tiles") / "tiles.so"
    flags = [*build.COMMON, *build.FLAGS["x86_64"]["avx512bf16"], "-O2", "-fopenmp", "-shared", "-DLW_EMULATE_TILES"]
    subprocess.run([cxx, *flags, "-DLW_ISA=tiles", str(build.SOURCES / "attend.cpp"), "-o", str(target)], check=True)
    return library.bind(ctypes.CDLL(str(target)).lw_attend_tiles, "attend")


@pytest.mark.parametrize("name", CASES)
def test_tile_path_as_naive(
    name: str, emulated_tiles: Callable[[ctypes.Structure], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "function", lambda op: emulated_tiles)
    check(Case(**CASES[name], dtype=torch.bfloat16, seed=len(name)))


@pytest.mark.parametrize("dim", [16, 64, 80, 96, 256])
def test_tile_path_head_dims(
    dim: int, emulated_tiles: Callable[[ctypes.Structure], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "function", lambda op: emulated_tiles)
    check(Case(heads=2, kv_heads=1, rows=70, slots=140, dim=dim, dtype=torch.bfloat16))


@needs_kernels
def test_no_memory_is_kept() -> None:
    case = Case(rows=10, slots=70, groups=1)
    for _ in range(200):
        cpu.attend(case.request())
    before = resident()
    for _ in range(1000):
        cpu.attend(case.request())
    assert resident() - before < 2 << 20


def resident() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("resident memory is read from /proc")
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) << 10


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@needs_kernels
def test_objects_share_no_functions(tmp_path: Path) -> None:
    """A weak symbol is one function for all objects: it might be the one for a CPU that is not this one."""
    cxx = build.compiler()
    if cxx is None:
        pytest.skip("needs a compiler")
    target = tmp_path / "attend.o"
    subprocess.run(
        [
            cxx,
            *build.COMMON,
            "-O0",
            "-fopenmp",
            "-DLW_ISA=portable",
            "-c",
            str(build.SOURCES / "attend.cpp"),
            "-o",
            str(target),
        ],
        check=True,
    )
    symbols = subprocess.run(["nm", str(target)], capture_output=True, text=True, check=True).stdout
    assert "lw_attend_portable" in symbols
    assert [line for line in symbols.splitlines() if " W " in line] == []
