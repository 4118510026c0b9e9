"""The attention kernels against the definition: every instruction set of this machine, poisoned buffers, bad lists."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lengthwise.core.frames import FAR
from lengthwise.errors import BadInput
from lengthwise.kernels import build, library
from lengthwise.kernels.attend import BlockLists, Coded, attend, cpu, flex, naive

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# out and logsumexp, absolute and relative: rounding of the result, and of the weights in bfloat16
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 1e-3), torch.float16: (2e-3, 1e-4)}
needs_kernels = pytest.mark.skipif(not library.available(), reason=library.describe())


@pytest.fixture(params=build.ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param not in library.available():
        pytest.skip(f"{request.param} cannot run here")
    monkeypatch.setenv("LENGTHWISE_ISA", request.param)
    return request.param


@dataclass
class Case:
    """Arguments of one call, from a seed. Lanes are views into larger buffers of NaN."""

    heads: int = 6
    kv_heads: int = 2
    rows: int = 100
    slots: int = 200
    dim: int = 32
    value_dim: int | None = None
    dtype: torch.dtype = torch.float32
    frames: tuple[tuple[int, int], ...] = ((0, FAR),)
    rules: tuple[tuple[int, int], ...] = ()
    groups: int = 0  # heads of the lists; 0: no lists
    query_block: int = 64
    share: float = 0.6
    gaps: bool = False
    coded: bool = False
    softcap: float | None = None
    spread: float = 1.0
    seed: int = 0
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        value_dim = self.value_dim or self.dim
        blocks = -(-self.slots // 64)
        lists = None
        if self.groups:
            shape = self.groups, -(-self.rows // self.query_block), blocks
            lists = shuffled(BlockLists.of(torch.rand(shape, generator=g) < self.share, self.query_block), g)
        k_positions = torch.arange(self.slots)
        if self.gaps:  # evicted: positions with holes, the queries among the last keys and beyond
            k_positions = torch.randperm(2 * self.slots + 1, generator=g)[: self.slots].sort().values
        last = int(k_positions[-1]) if self.slots else 0
        q_positions = torch.arange(self.rows) + max(0, last + 1 - self.rows + 5 * self.gaps)
        self.options = {
            "q_positions": q_positions,
            "k_positions": k_positions,
            "lists": lists,
            "frames": self.frames,
            "rules": self.rules,
            "scale": self.dim**-0.5,
            "softcap": self.softcap,
        }
        sees = self.sees()
        q = torch.randn(len(self.frames), self.heads, self.rows, self.dim, generator=g)
        self.q = [poisoned(x * self.spread, self.dtype, token_major=True) for x in q]
        self.k: list[Any] = []
        for seen in sees:
            k = torch.randn(self.kv_heads, self.slots, self.dim, generator=g)
            self.k.append(self.lane(k, seen))
        self.v: Any = self.lane(
            torch.randn(self.kv_heads, self.slots, value_dim, generator=g), torch.stack(sees).any(0)
        )

    def lane(self, x: Tensor, seen: Tensor) -> Any:
        if not self.coded:
            return poisoned(x.masked_fill(~seen[..., None], float("nan")), self.dtype)
        groups = self.dim // 16
        grouped = x.unflatten(-1, (groups, -1))
        low, step = grouped.amin(-1), (grouped.amax(-1) - grouped.amin(-1)) / 255
        codes = ((grouped - low[..., None]) / step.clamp(min=1e-6)[..., None]).round().flatten(-2)
        low = low.masked_fill(~seen[..., None], float("nan"))
        view = torch.full((x.shape[1] + 3, x.shape[0], x.shape[2]), 255, dtype=torch.uint8)[2:-1].transpose(0, 1)
        view.copy_(codes)
        return Coded(view, poisoned(low, torch.float16), poisoned(step, torch.float16, token_major=True))

    def sees(self) -> list[Tensor]:
        """For each frame the slots [Hkv, S] that some query of the group sees."""
        found = []
        for low, high in self.frames:
            only = {**self.options, "frames": ((low, high),), "scale": 1.0}
            ones, eye = torch.ones(self.kv_heads, self.slots, 1), torch.eye(self.slots).expand(self.kv_heads, -1, -1)
            out, _, _ = naive.attend([torch.ones(self.heads, self.rows, 1)], [ones], eye, **only)
            found.append((out > 0).unflatten(0, (self.kv_heads, -1)).flatten(1, 2).any(1))
        return found


def shuffled(lists: BlockLists, g: torch.Generator) -> BlockLists:
    flat = torch.cat([lists.offsets[:, :-1].flatten(), lists.offsets[-1:, -1]])
    blocks = lists.blocks.clone()
    for a, b in zip(flat[:-1].tolist(), flat[1:].tolist()):
        blocks[a:b] = blocks[a:b][torch.randperm(b - a, generator=g)]
    return BlockLists(lists.offsets, blocks, lists.query_block)


def poisoned(x: Tensor, dtype: torch.dtype, token_major: bool = False) -> Tensor:
    """x as a view with odd strides into a buffer of NaN."""
    heads, slots, dim = x.shape
    shape = (slots + 3, heads + 1, dim + 1) if token_major else (heads + 1, slots + 3, dim + 5)
    buffer = torch.full(shape, float("nan"), dtype=dtype)
    view = (buffer.transpose(0, 1) if token_major else buffer)[:heads, 1 : slots + 1, 1 : dim + 1]
    return view.copy_(x)


def check(case: Case, run: Callable[..., naive.Result] = cpu.attend, **more: Any) -> None:
    out, lse, pairs = run(case.q, case.k, case.v, **case.options, **more)
    expected, expected_lse, expected_pairs = naive.attend([x.float() for x in case.q], case.k, case.v, **case.options)
    assert not expected.isnan().any()
    assert out.dtype == case.dtype
    assert lse.dtype == torch.float32
    assert pairs == expected_pairs
    near, near_lse = TOLERANCE[case.dtype]
    if case.coded and case.dtype == torch.bfloat16:
        near_lse = 3e-2  # the codes are read as bfloat16
    if expected_lse.nan_to_num(neginf=0).amax() > 100:
        near, near_lse = max(near, 1e-4), max(near_lse, 1e-4)  # a score of 1,000 is only known to 6e-5
    torch.testing.assert_close(out.float(), expected, atol=near, rtol=near)
    torch.testing.assert_close(lse, expected_lse, atol=near_lse, rtol=near_lse)


CASES = {
    "plain": {},
    "one query": {"rows": 1, "slots": 63},
    "63": {"rows": 63, "slots": 63},
    "65": {"rows": 65, "slots": 65, "kv_heads": 6},
    "1000": {"rows": 130, "slots": 1000, "kv_heads": 1},
    "no keys": {"rows": 5, "slots": 0},
    "before all keys": {"rows": 300, "slots": 200},
    "window": {"rules": ((50, 4),), "rows": 150},
    "two rules": {"rules": ((90, 0), (30, 70)), "rows": 150},
    "frames": {"frames": ((0, 33), (33, FAR))},
    "frames with a hole": {
        "frames": ((0, 20), (64, FAR), (20, 60)),
        "gaps": True,
        "rules": ((250, 9),),
    },
    "gaps": {"gaps": True, "rows": 70, "slots": 330},
    "lists shared": {"groups": 1, "rows": 200, "slots": 500},
    "lists by group": {"groups": 2, "rows": 200, "slots": 500},
    "lists by head": {"groups": 6, "rows": 200, "slots": 500, "frames": ((0, 100), (100, FAR))},
    "lists of 128": {"groups": 2, "rows": 300, "slots": 500, "query_block": 128},
    "empty lists": {"groups": 2, "rows": 200, "slots": 500, "share": 0.1},
    "softcap": {"softcap": 2.0, "rows": 70, "spread": 3.0},
    "large scores": {"spread": 60.0, "slots": 700},
    "values wider": {"dim": 48, "value_dim": 80},
    "odd dims": {"dim": 33, "value_dim": 7},
    "one channel": {"dim": 1, "value_dim": 1},
    "codes": {"coded": True, "rows": 70},
}


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", CASES)
def test_as_naive(name: str, dtype: torch.dtype, isa: str) -> None:
    check(Case(**CASES[name], dtype=dtype, seed=len(name)))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_head_dims(dim: int, dtype: torch.dtype, isa: str) -> None:
    check(Case(heads=3, kv_heads=1, rows=70, slots=140, dim=dim, dtype=dtype))
    check(Case(heads=2, kv_heads=2, rows=20, slots=70, dim=dim, coded=True, dtype=dtype))


@needs_kernels
def test_group_larger_than_a_unit(isa: str) -> None:
    """A group whose queries do not fit the cache together is worked on in parts, the last one smaller."""
    for dtype in DTYPES[:2]:
        check(Case(heads=26, kv_heads=2, rows=65, slots=130, dim=256, dtype=dtype))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=["float32", "bfloat16"])
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    case = Case(rows=300, slots=600, groups=2, rules=((400, 10),), dtype=dtype)
    first = cpu.attend(case.q, case.k, case.v, **case.options, threads=1)
    for threads in (2, 3, 5, 8):
        other = cpu.attend(case.q, case.k, case.v, **case.options, threads=threads)
        assert torch.equal(first[0], other[0])
        assert torch.equal(first[1], other[1])
        assert first[2] == other[2]


@needs_kernels
def test_growing_maximum_is_rescaled(isa: str) -> None:
    """Later keys score higher: by less than the slack of the lazy rescaling, and by far more."""
    for growth in (0.01, 0.2, 3.0):
        case = Case(heads=2, rows=10, slots=640, dim=16)
        case.q = [torch.ones(2, 10, 16)]
        case.k = [(torch.arange(640) * growth)[None, :, None].expand(2, 640, 16) / 16]
        check(case)


@needs_kernels
def test_a_seen_nan_stays(isa: str) -> None:
    case = Case(heads=2, kv_heads=1, rows=64, slots=64)
    case.k[0][0, 10, 3] = float("nan")
    out, lse, _ = cpu.attend(case.q, case.k, case.v, **case.options)
    assert not out[:, :10].isnan().any()
    assert not lse[:, :10].isnan().any()
    assert out[:, 10:].isnan().all()
    assert lse[:, 10:].isnan().all()


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bfloat16", "float16"])
def test_every_number_of_16_bits_is_read_and_written(dtype: torch.dtype, isa: str) -> None:
    """One key: the output is its value. All 65,536 of them, subnormals and infinities too."""
    v = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(256, 1, 256)
    q = k = torch.ones(256, 1, 1, dtype=dtype)
    zero = torch.zeros(1, dtype=torch.int64)
    out, _, _ = cpu.attend([q], [k], v, q_positions=zero, k_positions=zero, scale=1.0)
    finest = 2.0**-126 if dtype == torch.bfloat16 else 0.0  # the pair product counts a subnormal bfloat16 as 0
    torch.testing.assert_close(out.float(), v.float(), atol=finest, rtol=0, equal_nan=True)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads, ratio = draw(st.sampled_from([(1, 1), (1, 4), (2, 3), (3, 1)]))
    low = draw(st.integers(1, 200))
    return Case(
        heads=kv_heads * ratio,
        kv_heads=kv_heads,
        rows=draw(st.integers(1, 200)),
        slots=draw(st.integers(0, 400)),
        dim=draw(st.integers(1, 5)) * 16,
        dtype=draw(st.sampled_from(DTYPES)),
        frames=draw(st.sampled_from([((0, FAR),), ((0, low), (low, FAR)), ((low, FAR),), ((-5, low),)])),
        rules=draw(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 100)), max_size=2).map(tuple)),
        groups=draw(st.sampled_from([0, 1, kv_heads, kv_heads * ratio])),
        query_block=draw(st.sampled_from([64, 192])),
        share=draw(st.sampled_from([0.0, 0.2, 0.8, 1.0])),
        gaps=draw(st.booleans()),
        coded=draw(st.booleans()),
        softcap=draw(st.sampled_from([None, 5.0])),
        seed=draw(st.integers(0, 1000)),
    )


@needs_kernels
@given(case=cases(), which=st.integers(0, 100), threads=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_fuzz(case: Case, which: int, threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENGTHWISE_ISA", library.available()[which % len(library.available())])
        check(case, threads=threads)


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
            cpu.attend(case.q, case.k, case.v, **case.options)
    else:
        case.q, case.k, case.v = [x.nan_to_num() for x in case.q], [x.nan_to_num() for x in case.k], case.v.nan_to_num()
        check(case)


BAD: dict[str, Callable[[Case], None]] = {
    "for every frame": lambda c: c.q.append(c.q[0]),
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
        cpu.attend(case.q, case.k, case.v, **case.options)


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
        check(case, run=attend)


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
        pairs = flex.pairs_of_blocks(q_positions, k_positions, (low, high), case.rules, tile)
        args = q_positions, k_positions, allowed, pairs, (low, high), case.rules, case.heads, tile
        mask = flex.block_mask(*args)
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
    call = [lambda: cpu.attend(case.q, case.k, case.v, **case.options)]
    for _ in range(200):
        call[0]()
    before = resident()
    for _ in range(1000):
        call[0]()
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
