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
FORMAT = 2
BUDGET = 0.3  # seconds for one probe


@dataclass(frozen=True)
class Rates:
    """Measured ceilings in one dtype.

    `matmul` and `attention` (the kernel that runs here, causal) in FLOP/s; `weights` (a matrix times one vector, as in
    a decoding step) and `keys` (one query over a long cache) in bytes read a second.
    """

    matmul: float
    attention: float
    weights: float
    keys: float


@dataclass(frozen=True)
class Roofline:
    """The ceilings of one device. `bandwidth` is plain reading of memory, bytes/s; `machine` says what was measured.

    `threads` are those with which prefill and decode were fastest; None on a device without threads of ours.
    """

    device: str
    machine: str
    bandwidth: float
    float32: Rates
    bfloat16: Rates
    threads: tuple[int, int] | None = None

    def rates(self, dtype: str) -> Rates:
        """The rates for 'float32' or 'bfloat16' ('float16' is taken as bfloat16). Raises BadParameter."""
        if dtype not in {"float32", "bfloat16", "float16"}:
            raise BadParameter(f"there are no measured rates for dtype '{dtype}' (float32, bfloat16, float16)")
        return self.float32 if dtype == "float32" else self.bfloat16


def measure(device: str = "cpu") -> Roofline:
    """Measure the device now; medians over a few seconds. Raises BadParameter for a device that is not there."""
    import torch

    _check(device)
    big = torch.cuda.is_available() and torch.device(device).type == "cuda"
    threads = _threads() if torch.device(device).type == "cpu" else None
    block = torch.ones(2**28 if big else 2**26, dtype=torch.float32, device=device)  # 1 GiB or 256 MiB
    bandwidth = block.nbytes / _seconds(block.sum, device)
    del block
    return Roofline(
        device=device,
        machine=machine(device),
        bandwidth=bandwidth,
        float32=_rates(torch.float32, device, big),
        bfloat16=_rates(torch.bfloat16, device, big),
        threads=threads,
    )


def load_or_measure(device: str = "cpu") -> Roofline:
    """The measurement in the user's cache for this machine and device, else a new one, which is then kept.

    A cache that cannot be read or written costs a new measurement, nothing else.
    """
    _check(device)
    if (found := _kept(device)) is not None:
        return found
    result = measure(device)
    path = cache_dir() / FILE
    _write(path, {**_read(path), _key(device): asdict(result)})
    return result


def measured_threads(model: Any) -> tuple[int, int] | None:
    """The threads with which (prefill, decode) were fastest on this CPU; None where `lengthwise plan` never measured.

    None too for a `model` that is elsewhere than on the CPU.
    """
    found = _kept("cpu") if model.device.type == "cpu" else None
    return found.threads if found is not None else None


def machine(device: str = "cpu") -> str:
    """The processor, its threads in use and the torch version: measurements hold for these only."""
    import torch

    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    if torch.device(device).type != "cpu":
        return f"{platform.machine()} {device}, torch {torch.__version__}"
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return f"{_cpu_model()}, {threads} threads of {cores} cores, torch {torch.__version__}"


def _kept(device: str) -> Roofline | None:
    """The measurement in the user's cache, if there is one for this machine and device."""
    try:
        found = _read(cache_dir() / FILE)[_key(device)]
        rates = {dtype: Rates(**found[dtype]) for dtype in ("float32", "bfloat16")}
        return Roofline(**{**found, **rates, "threads": found["threads"] and tuple(found["threads"])})
    except (KeyError, TypeError):
        return None


def _threads() -> tuple[int, int]:
    """The numbers of threads, up to torch's, with which a matrix product and a matrix times a vector take least time.

    Fewer threads win where more are not at least a twentieth faster: they leave the rest of the machine alone.
    """
    import torch
    from torch.nn.functional import linear

    most = torch.get_num_threads()
    counts = sorted({*(2**i for i in range(most.bit_length())), most})
    square = torch.ones(1024, 1024, dtype=torch.bfloat16)
    weight = torch.ones(8192, 8192, dtype=torch.bfloat16)
    best = []
    try:
        for rows in (square, weight[:1]):
            taken = {}
            for count in counts:
                torch.set_num_threads(count)
                taken[count] = _seconds(partial(linear, rows, square if rows is square else weight), "cpu")
            enough = min(taken.values()) * 1.05
            best.append(next(count for count in counts if taken[count] <= enough))
    finally:
        torch.set_num_threads(most)
    return best[0], best[1]


def _rates(dtype: Any, device: str, big: bool) -> Rates:
    """Probe one dtype. Sizes: well past the caches, and small enough to take milliseconds."""
    import torch
    from torch.nn.functional import linear, scaled_dot_product_attention

    from lengthwise import kernels

    side, tokens, held = (8192, 4096, 131_072) if big else (1024, 1024, 16_384)
    square = torch.rand(side, side, device=device).to(dtype)
    matmul = 2 * side**3 / _seconds(lambda: linear(square, square), device)
    weight = torch.ones(8192, 16_384 if big else 8192, dtype=dtype, device=device)
    row = torch.ones(1, weight.shape[1], dtype=dtype, device=device)
    weights = weight.nbytes / _seconds(partial(linear, row, weight), device)
    del weight
    heads, dim = 8, 64
    block = torch.rand(1, heads, tokens, dim, device=device).to(dtype)
    cached = torch.rand(1, heads, held, dim, device=device).to(dtype)
    one, at = block[:, :, :1], torch.arange(tokens)
    attend: Callable[[], Any] = partial(scaled_dot_product_attention, block, block, block, is_causal=True)
    look: Callable[[], Any] = partial(scaled_dot_product_attention, one, cached, cached)
    if kernels.backend(device) == "cpu":
        attend = partial(
            kernels.attend, (block[0],), (block[0],), block[0], q_positions=at, k_positions=at, scale=dim**-0.5
        )
        look = partial(kernels.decode, one[0, :, 0], cached[0], cached[0], length=held, scale=dim**-0.5)
    attention = 2 * heads * tokens**2 * dim / _seconds(attend, device)
    keys = 2 * cached.nbytes / _seconds(look, device)
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
