"""The element-wise parts of a Llama layer, each in one pass over memory, rounded where the stock operators round.

Where a gradient is wanted, dtypes are mixed, off the CPU, or without a compiled kernel, the stock operators run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels import library
from lengthwise.kernels.fused import cpu, naive

__all__ = ["add_rms_norm", "rms_norm", "rotary", "silu_mul"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SMALL = 1 << 16  # elements up to which the two stock operators of silu_mul are as fast as one pass


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, threads: int | None = None) -> Tensor:
    """RMSNorm (arXiv 1910.07467) of x [..., H] as Llama does it: x / sqrt(mean(x^2) + eps), rounded, times weight [H].

    Raises BadInput for shapes that do not fit.
    """
    _check(weight.shape == x.shape[-1:], "rms_norm", x, weight)
    if not _compiled(x, weight):
        return naive.rms_norm(x, weight, eps)
    return cpu.rms_norm(x, None, weight, eps, threads)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, threads: int | None = None
) -> tuple[Tensor, Tensor]:
    """(rms_norm(residual + x), residual + x): the end of one sub-layer and the start of the next."""
    _check(weight.shape == x.shape[-1:], "add_rms_norm", x, weight)
    _check(residual.shape == x.shape, "add_rms_norm", x, residual)
    if not _compiled(x, residual, weight):
        total = residual + x
        return naive.rms_norm(total, weight, eps), total
    normed, total = cpu.rms_norm(x, residual, weight, eps, threads)
    return normed, total


def rotary(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    out: tuple[Tensor, Tensor] | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotary embedding (arXiv 2104.09864) in the layout of two halves: x cos + (-x2, x1) sin, as Llama computes it.

    q [Hq, C, D] and k [Hkv, C, D], head and token strides free, with cos and sin [C, D]; or all of them with a batch in
    front, where that of cos and sin may be 1. The results go to `out` (the inputs themselves, slots of a lane) or to
    new tensors. Raises BadInput for shapes that do not fit.
    """
    _check(q.ndim in (3, 4) and q.shape[-1] % 2 == 0 and k.ndim == q.ndim, "rotary", q, k)
    _check(k.shape[:-3] == q.shape[:-3] and k.shape[-2:] == q.shape[-2:], "rotary", q, k)
    for x in (cos, sin):
        _check(x.ndim == q.ndim - 1 and x.shape[-2:] == q.shape[-2:], "rotary", q, x)
        _check(x.ndim == 2 or x.shape[0] in (1, q.shape[0]), "rotary", q, x)
    if out is not None:
        _check(out[0].shape == q.shape and out[1].shape == k.shape, "rotary", *out)
    if not _compiled(q, k, cos, sin, *(out or ())):
        rotated = naive.rotary(q, k, cos.unsqueeze(-3), sin.unsqueeze(-3))
        return rotated if out is None else (out[0].copy_(rotated[0]), out[1].copy_(rotated[1]))
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype), torch.empty(k.shape, dtype=k.dtype)
    if q.ndim == 3:
        cpu.rotary(q, k, cos, sin, out, threads)
        return out
    for b in range(q.shape[0]):
        angles = cos[b % len(cos)], sin[b % len(sin)]
        cpu.rotary(q[b], k[b], *angles, (out[0][b], out[1][b]), threads)
    return out


def silu_mul(gate: Tensor, up: Tensor, *, threads: int | None = None) -> Tensor:
    """silu(gate) * up of two [..., n], as in Llama's MLP (SwiGLU, arXiv 2002.05202); BadInput if they differ."""
    _check(gate.shape == up.shape, "silu_mul", gate, up)
    if gate.numel() <= _SMALL or not _compiled(gate, up):
        return naive.silu_mul(gate, up)
    return cpu.silu_mul(gate, up, threads)


def _compiled(*tensors: Tensor) -> bool:
    """Whether the compiled kernels take these: of one dtype that they know, and no gradient is to be recorded."""
    dtype, recorded = tensors[0].dtype, torch.is_grad_enabled()
    for x in tensors:
        if x.dtype != dtype or (recorded and x.requires_grad):
            return False
    return dtype in _DTYPES and library.backend(tensors[0].device) == "cpu"


def _check(fits: bool, name: str, a: Tensor, b: Tensor) -> None:
    if not fits:
        described = " and ".join(library.describe_tensor(x) for x in (a, b))
        raise BadInput(f"{name} got tensors that do not fit each other: {described}")
