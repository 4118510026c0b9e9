"""Finds and loads the compiled kernels, and chooses among instruction sets and backends.

`LENGTHWISE_KERNELS=naive|cpu|flex` forces a backend, `LENGTHWISE_ISA=portable|avx2|avx512|avx512bf16|amx|neon` an
instruction set; one that cannot run here is an error that says so. The C side is `csrc/args.h`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lengthwise.errors import BadInput

BACKENDS = ("naive", "cpu", "flex")
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_CODES = 3
_ERRORS = {
    -1: "was compiled from other sources than this Python code: run python -m lengthwise.kernels.build",
    -2: "does not read this mix of dtypes",
    -3: "was given a block id outside the keys",
    -4: "was given a block id twice in one list",
    -5: "was given offsets that do not ascend from 0 to the number of block ids",
    -6: "could not get memory for its scratch space: read in smaller chunks or with fewer threads",
    -7: "was given a size that it does not take",
}


@dataclass(frozen=True)
class Coded:
    """Keys or values as integer codes, x = low + step * code, read by the kernels as they are.

    `codes` uint8 [H, S, D], `low` and `step` float16 [H, S, D / group]. Head and token strides are free.
    """

    codes: Tensor
    low: Tensor
    step: Tensor

    def __post_init__(self) -> None:
        sizes = [tuple(x.shape[:-1]) for x in (self.codes, self.low, self.step)]
        groups = self.low.shape[-1]
        if len(set(sizes)) > 1 or self.codes.ndim != 3 or self.step.shape[-1] != groups:
            raise BadInput(f"coded keys need codes, low and step of the same heads and tokens, not {sizes}")
        if groups == 0 or self.codes.shape[-1] % groups:
            raise BadInput(f"coded keys of {self.codes.shape[-1]} channels cannot have {groups} groups")
        if self.codes.dtype != torch.uint8 or {self.low.dtype, self.step.dtype} != {torch.float16}:
            raise BadInput("coded keys are uint8 codes with low and step in float16")

    @property
    def shape(self) -> torch.Size:
        """[H, S, D]."""
        return self.codes.shape

    def decode(self) -> Tensor:
        """The values [H, S, D] in float32."""
        groups = self.low.shape[-1]
        grouped = self.codes.float().unflatten(-1, (groups, -1))
        values: Tensor = grouped * self.step.float()[..., None] + self.low.float()[..., None]
        return values.flatten(-2)


class Lane(ctypes.Structure):
    """`LwLane`: a tensor [H, S, D] with free head and token strides, in elements."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("data", "low", "step")),
        *((f"{x}{axis}", ctypes.c_int64) for x in ("", "low_", "step_") for axis in ("head", "token")),
        ("dtype", ctypes.c_int32),
        ("group", ctypes.c_int32),
    )


def lane(x: Tensor | Coded) -> Lane:
    """The C description of a lane [H, S, D], which must outlive it.

    Raises BadInput where the last dimension is not contiguous, or the dtype or device is not one the kernels read.
    """
    parts = (x.codes, x.low, x.step) if isinstance(x, Coded) else (x,)
    for part in parts:
        if not part.is_cpu or part.ndim != 3 or (part.shape[-1] > 1 and part.stride(-1) != 1):
            raise BadInput(f"a kernel reads [H, S, D] on the CPU, contiguous in D, not {describe_tensor(part)}")
    if isinstance(x, Coded):
        strides = [s for part in parts for s in part.stride()[:2]]
        group = x.codes.shape[-1] // x.low.shape[-1]
        return Lane(*(part.data_ptr() for part in parts), *strides, _CODES, group)
    if x.dtype not in _DTYPES:
        raise BadInput(f"a kernel reads float32, bfloat16 and float16, not {describe_tensor(x)}")
    return Lane(x.data_ptr(), head=x.stride(0), token=x.stride(1), dtype=_DTYPES[x.dtype])


def describe_tensor(x: Tensor) -> str:
    """A tensor in a few words, for messages."""
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} with strides {list(x.stride())} on {x.device}"


def dtype_code(dtype: torch.dtype) -> int:
    """The C side's number of a dtype; BadInput for one that it does not know."""
    if dtype not in _DTYPES:
        raise BadInput(f"a kernel reads and writes float32, bfloat16 and float16, not {dtype}")
    return _DTYPES[dtype]


def threads(wanted: int | None) -> int:
    """The number of threads to ask for: torch's own unless told."""
    count = torch.get_num_threads() if wanted is None else wanted
    if count < 1:
        raise BadInput(f"threads must be at least 1, not {count}")
    return count


@cache
def _library() -> ctypes.CDLL | None:
    from lengthwise.kernels.build import OBJECT  # not above: `python -m` would then find the module loaded already

    if not OBJECT.exists():
        return None
    # torch's OpenMP first, so that ours resolves to it and both share one pool of threads
    for openmp in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        ctypes.CDLL(str(openmp), mode=ctypes.RTLD_GLOBAL)
    try:
        library = ctypes.CDLL(str(OBJECT))
    except OSError:  # built for another system, or its OpenMP is missing: `describe` says so
        return None
    library.lw_isas.restype = ctypes.c_uint32
    return library


@cache
def available() -> list[str]:
    """The instruction sets that are compiled and that this CPU runs, slowest first; [] without a compiled object."""
    from lengthwise.kernels.build import ISAS, built

    library = _library()
    if library is None:
        return []
    runs, compiled = library.lw_isas(), built().isas
    return [isa for i, isa in enumerate(ISAS) if runs >> i & 1 and isa in compiled]


@cache
def setting(name: str) -> str | None:
    """An environment variable as it was when first asked for: kernels ask some thousand times a token."""
    return os.environ.get(name)


def chosen() -> str | None:
    """The instruction set in use: `LENGTHWISE_ISA`, or the fastest; None without a compiled object.

    Raises BadInput for one that is not known, not compiled, or that this CPU lacks.
    """
    have, forced = available(), setting("LENGTHWISE_ISA")
    if not forced:
        return have[-1] if have else None
    if forced in have:
        return forced
    from lengthwise.kernels.build import ISAS, built  # not above: an import costs much, and every call asks

    if forced not in ISAS:
        raise BadInput(f"LENGTHWISE_ISA={forced} is not an instruction set: use one of {', '.join(ISAS)}")
    why = "this CPU cannot run it" if forced in built().isas else "the kernels were not compiled for it"
    raise BadInput(f"LENGTHWISE_ISA={forced}: {why}; here: {', '.join(have) or 'none'}")


def backend(device: torch.device | str = "cpu") -> str:
    """The backend for tensors of `device`: naive (torch alone), cpu (compiled) or flex (torch's flex_attention).

    Raises BadInput where `LENGTHWISE_KERNELS` names one that is not known or cannot run.
    """
    forced, kind = setting("LENGTHWISE_KERNELS"), (torch.device(device) if isinstance(device, str) else device).type
    if not forced:
        return "flex" if kind == "cuda" else "cpu" if kind == "cpu" and chosen() else "naive"
    if forced not in BACKENDS:
        raise BadInput(f"LENGTHWISE_KERNELS={forced} is not a backend: use one of {', '.join(BACKENDS)}")
    if forced == "cpu" and (kind != "cpu" or not chosen()):
        raise BadInput(f"LENGTHWISE_KERNELS=cpu cannot run on {kind}: {describe()}")
    return forced


def function(op: str, isa: str | None = None) -> Callable[[ctypes.Structure], None]:
    """The compiled `op` for one instruction set (the chosen one), as a function of its Args structure.

    The first field of Args, `size`, is filled in here. Raises BadInput where there is no such function, and for every
    error that the C side reports.
    """
    isa = isa or chosen()
    library = _library()
    if library is None or isa is None:
        raise BadInput(f"no compiled kernel '{op}': {describe()}")
    if isa not in available():
        raise BadInput(f"no kernel '{op}' for {isa} here; there are {', '.join(available())}")
    return _function(op, isa)


@cache
def _function(op: str, isa: str) -> Callable[[ctypes.Structure], None]:
    try:
        entry: Any = getattr(_library(), f"lw_{op}_{isa}")
    except AttributeError:
        raise BadInput(f"the compiled kernels lack '{op}': run python -m lengthwise.kernels.build") from None
    return bind(entry, op)


def bind(entry: Any, op: str) -> Callable[[ctypes.Structure], None]:
    """A C function of an Args structure as a Python one that raises BadInput for its error codes."""
    entry.restype = ctypes.c_int32

    def call(args: ctypes.Structure) -> None:
        args.size = ctypes.sizeof(args)
        code = entry(ctypes.byref(args))
        if code:
            raise BadInput(f"the kernel '{op}' {_ERRORS.get(code, f'failed with code {code}')}")

    return call


def describe() -> str:
    """One line for `lengthwise doctor`: which instruction set runs, or why none does and what to do."""
    from lengthwise.kernels.build import OBJECT, built

    have = available()
    if have:
        return f"compiled kernels: {chosen()} (this CPU and build also run {', '.join(have[:-1]) or 'nothing else'})"
    notes = built().notes
    if OBJECT.exists():
        why = "the compiled object does not load on this system"
    else:
        why = notes[0] if notes else "the kernels were never compiled"
    return f"no compiled kernels, torch alone ({why}); with a C++17 compiler: python -m lengthwise.kernels.build"
