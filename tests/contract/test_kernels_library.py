"""Building, finding and choosing the compiled kernels; and doing without them."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lengthwise.errors import BadInput
from lengthwise.kernels import build, library

needs_kernels = pytest.mark.skipif(not library.available(), reason=library.describe())
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A build of its own: the real CPU check and one small op, in a folder of the test."""
    sources = tmp_path / "csrc"
    sources.mkdir()
    for name in ("isas.cpp", "args.h"):
        (sources / name).write_text((build.SOURCES / name).read_text())
    (sources / "five.cpp").write_text('#include "args.h"\nLW_EXPORT(five)(const void*) { return 5; }\n')
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "OBJECT", tmp_path / "_lib" / "lengthwise_kernels.so")
    monkeypatch.setattr(build, "MANIFEST", tmp_path / "_lib" / "manifest.json")
    table = {"portable": (), "neon": ("-mno-such-flag",)}
    monkeypatch.setattr(build, "FLAGS", dict.fromkeys(build.FLAGS, table))
    for name in ("LENGTHWISE_KERNELS", "LENGTHWISE_ISA"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def forget() -> None:
    for cached in (library._library, library.available, library._function):
        cached.cache_clear()


@needs_compiler
def test_builds_what_the_compiler_knows_and_only_when_something_changed(house: Path) -> None:
    result = build.build()
    assert (result.isas, result.ops) == (["portable"], ["five"])
    assert any("does not know the instruction set neon" in note for note in result.notes)
    made = build.OBJECT.stat().st_mtime_ns
    assert build.build() == result
    assert build.OBJECT.stat().st_mtime_ns == made
    assert library.available() == ["portable"]
    assert library.chosen() == "portable"
    with pytest.raises(BadInput, match="failed with code 5"):
        library.function("five")(_Args())
    (house / "csrc" / "six.cpp").write_text('#include "args.h"\nLW_EXPORT(six)(const void*) { return 0; }\n')
    assert build.build().ops == ["five", "six"]
    assert build.OBJECT.stat().st_mtime_ns != made
    build.OBJECT.unlink()
    build.build()
    assert build.OBJECT.exists()


@needs_compiler
def test_a_source_that_does_not_compile_leaves_no_object_and_says_why(house: Path) -> None:
    build.build()
    (house / "csrc" / "five.cpp").write_text("this is not C++\n")
    result = build.build()
    assert result.isas == []
    assert "five.cpp:1" in result.notes[0]
    assert not build.OBJECT.exists()
    assert library.available() == []
    assert "five.cpp:1" in library.describe()


def test_without_a_compiler_torch_alone_runs_and_says_so(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "never compiled" in library.describe()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.build().isas == []
    assert library.chosen() is None
    assert library.backend("cpu") == "naive"
    assert "no C++ compiler was found" in library.describe()
    assert "python -m lengthwise.kernels.build" in library.describe()
    with pytest.raises(BadInput, match=r"no compiled kernel 'attend'.*no C\+\+ compiler"):
        library.function("attend")
    monkeypatch.setenv("LENGTHWISE_KERNELS", "cpu")
    with pytest.raises(BadInput, match="no C\\+\\+ compiler"):
        library.backend("cpu")
    monkeypatch.setenv("LENGTHWISE_ISA", "avx2")
    with pytest.raises(BadInput, match="not compiled for it"):
        library.chosen()


def test_an_object_that_does_not_load_is_as_none(house: Path) -> None:
    build.OBJECT.parent.mkdir()
    build.OBJECT.write_bytes(b"not an object")
    assert library.available() == []
    assert "does not load" in library.describe()


@needs_kernels
def test_the_fastest_is_chosen_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LENGTHWISE_ISA", raising=False)
    have = library.available()
    assert have[0] == "portable"
    assert library.chosen() == have[-1]
    assert library.describe().startswith(f"compiled kernels: {have[-1]} ")
    for isa in have:
        monkeypatch.setenv("LENGTHWISE_ISA", isa)
        assert library.chosen() == isa
    monkeypatch.setenv("LENGTHWISE_ISA", "sse9")
    with pytest.raises(BadInput, match=r"not an instruction set.*avx512bf16"):
        library.chosen()
    for isa in set(build.ISAS) - set(have):
        monkeypatch.setenv("LENGTHWISE_ISA", isa)
        with pytest.raises(BadInput, match=rf"{isa}: .*(cannot run|not compiled)"):
            library.chosen()
        with pytest.raises(BadInput, match=f"no kernel 'attend' for {isa}"):
            library.function("attend", isa)


@needs_kernels
def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LENGTHWISE_KERNELS", raising=False)
    assert (library.backend("cpu"), library.backend("cuda"), library.backend("mps")) == ("cpu", "flex", "naive")
    monkeypatch.setenv("LENGTHWISE_KERNELS", "naive")
    assert library.backend("cuda") == "naive"
    monkeypatch.setenv("LENGTHWISE_KERNELS", "cpu")
    with pytest.raises(BadInput, match="cannot run on cuda"):
        library.backend("cuda")
    monkeypatch.setenv("LENGTHWISE_KERNELS", "triton")
    with pytest.raises(BadInput, match=r"not a backend.*naive, cpu, flex"):
        library.backend("cpu")


@needs_kernels
def test_every_function_is_there_for_every_instruction_set() -> None:
    assert "attend" in build.built().ops
    for op in build.built().ops:
        functions = re.findall(r"LW_EXPORT\((\w+)\)", (build.SOURCES / f"{op}.cpp").read_text())
        assert functions
        for name in functions:
            for isa in library.available():
                assert callable(library.function(name, isa))
    with pytest.raises(BadInput, match="lack 'no_such_op'"):
        library.function("no_such_op")


@needs_kernels
def test_another_args_struct_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadInput, match=r"other sources.*python -m lengthwise.kernels.build"):
        library.function("attend")(_Args())


def test_lanes_are_described_as_they_lie() -> None:
    x = torch.zeros(5, 7, 8).transpose(0, 1)[1:, 2:, 1:]
    lane = library.lane(x)
    assert (lane.data, lane.head, lane.token, lane.dtype) == (x.data_ptr(), 8, 56, 0)
    codes = library.Coded(torch.zeros(2, 3, 8, dtype=torch.uint8), *torch.zeros(2, 2, 3, 4).half())
    lane = library.lane(codes)
    assert (lane.dtype, lane.group, lane.low_head, lane.step_token) == (3, 2, 12, 4)
    for bad in (torch.zeros(2, 3), torch.zeros(2, 3, 4).transpose(1, 2), torch.zeros(2, 3, 4).double()):
        with pytest.raises(BadInput, match="a kernel reads"):
            library.lane(bad)


@needs_kernels
@pytest.mark.skipif(
    not list((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")), reason="torch brings no libgomp"
)
def test_one_openmp_for_torch_and_the_kernels() -> None:
    """Two would mean two pools of threads that do not know of each other."""
    code = (
        "import torch; from lengthwise.kernels import library; library.available();"
        "print({l.split()[-1] for l in open('/proc/self/maps') if 'libgomp' in l or 'libomp' in l})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.count("omp") == done.stdout.count("torch/lib/libgomp") == 1


class _Args(ctypes.Structure):
    _fields_ = (("size", ctypes.c_int64),)
