"""What this machine can do, measured once: multiplications a second and bytes a second, for each kind of operator."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lengthwise.errors import BadParameter
from lengthwise.models import cache_dir

FILE = "roofline.json"
FORMAT = 1
BUDGET = 0.3  # seconds for one probe


@dataclass(frozen=True)
class Rates:
    """Measured ceilings in one dtype.

    `matmul` and `attention` (SDPA over a square block) in FLOP/s; `weights` (a matrix times one vector, as in a
    decoding step) and `keys` (SDPA of one query over a long cache) in bytes read a second.
    """

    matmul: float
    attention: float
    weights: float
    keys: float


@dataclass(frozen=True)
class Roofline:
    """The ceilings of one device. `bandwidth` is plain reading of memory, bytes/s; `machine` says what was measured."""

    device: str
    machine: str
    bandwidth: float
    float32: Rates
    bfloat16: Rates

    def rates(self, dtype: str) -> Rates:
        """The rates for 'float32' or 'bfloat16' ('float16' is taken as bfloat16). Raises BadParameter."""
        if dtype not in {"float32", "bfloat16", "float16"}:
            raise BadParameter(f"there are no measured rates for dtype '{dtype}' (float32, bfloat16, float16)")
        return self.float32 if dtype == "float32" else self.bfloat16


def measure(device: str = "cpu") -> Roofline:
    """Measure the device now; medians over about three seconds. Raises BadParameter for a device that is not there."""
    import torch

    _check(device)
    big = torch.cuda.is_available() and torch.device(device).type == "cuda"
    block = torch.ones(2**28 if big else 2**26, dtype=torch.float32, device=device)  # 1 GiB or 256 MiB
    bandwidth = block.nbytes / _seconds(block.sum, device)
    del block
    return Roofline(
        device=device,
        machine=machine(device),
        bandwidth=bandwidth,
        float32=_rates(torch.float32, device, big),
        bfloat16=_rates(torch.bfloat16, device, big),
    )


def load_or_measure(device: str = "cpu") -> Roofline:
    """The measurement in the user's cache for this machine and device, else a new one, which is then kept.

    A cache that cannot be read or written costs a new measurement, nothing else.
    """
    _check(device)
    path, key = cache_dir() / FILE, _key(device)
    known = _read(path)
    try:
        found = known[key]
        return Roofline(**{**found, "float32": Rates(**found["float32"]), "bfloat16": Rates(**found["bfloat16"])})
    except (KeyError, TypeError):
        pass
    result = measure(device)
    _write(path, {**known, key: asdict(result)})
    return result


def machine(device: str = "cpu") -> str:
    """The processor, its threads in use and the torch version: measurements hold for these only."""
    import torch

    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    if torch.device(device).type != "cpu":
        return f"{platform.machine()} {device}, torch {torch.__version__}"
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return f"{_cpu_model()}, {threads} threads of {cores} cores, torch {torch.__version__}"


def _rates(dtype: Any, device: str, big: bool) -> Rates:
    """Probe one dtype. Sizes: well past the caches, and small enough to take milliseconds."""
    import torch
    from torch.nn.functional import linear, scaled_dot_product_attention

    side, tokens, held = (8192, 4096, 131_072) if big else (1024, 1024, 16_384)
    square = torch.rand(side, side, device=device).to(dtype)
    matmul = 2 * side**3 / _seconds(lambda: linear(square, square), device)
    weight = torch.ones(8192, 16_384 if big else 8192, dtype=dtype, device=device)
    row = torch.ones(1, weight.shape[1], dtype=dtype, device=device)
    weights = weight.nbytes / _seconds(partial(linear, row, weight), device)
    del weight
    heads, dim = 8, 64
    block = torch.rand(1, heads, tokens, dim, device=device).to(dtype)
    attention = (
        4 * heads * tokens**2 * dim / _seconds(lambda: scaled_dot_product_attention(block, block, block), device)
    )
    cached = torch.rand(1, heads, held, dim, device=device).to(dtype)
    one = block[:, :, :1]
    keys = 2 * cached.nbytes / _seconds(lambda: scaled_dot_product_attention(one, cached, cached), device)
    return Rates(matmul=matmul, attention=attention, weights=weights, keys=keys)


def _seconds(probe: Callable[[], Any], device: str) -> float:
    """Median seconds of one call, after one call to warm up, over at least three calls and about BUDGET seconds."""
    import torch

    wait: Callable[[], Any] = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    times: list[float] = []
    with torch.inference_mode():
        probe()
        wait()
        end = time.perf_counter() + BUDGET
        while len(times) < 3 or (time.perf_counter() < end and len(times) < 1000):
            start = time.perf_counter()
            probe()
            wait()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _check(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadParameter(f"device '{device}' cannot be used here") from error


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "unknown CPU"


def _key(device: str) -> str:
    return hashlib.sha256(f"{FORMAT} {device} {machine(device)}".encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        os.replace(file.name, path)
    except OSError:
        pass
