"""What the mass of key blocks asks for, checked once for every backend."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lengthwise.errors import BadInput
from lengthwise.kernels.attend.request import ascending


@dataclass(frozen=True)
class Request:
    """The arguments of `block_mass`."""

    q: Tensor
    k: Tensor
    q_positions: Tensor
    k_positions: Tensor
    scale: float
    softcap: float | None

    @property
    def kv_heads(self) -> int:
        """Key heads."""
        return self.k.shape[0]

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.q.shape[0] // self.kv_heads

    def __post_init__(self) -> None:
        q, k = self.q, self.k
        fits = q.ndim == k.ndim == 3 and q.shape[2] == k.shape[2] and q.dtype == k.dtype
        if not fits or 0 in (len(q), len(k)) or len(q) % len(k):
            raise BadInput(f"queries {list(q.shape)} in {q.dtype} do not fit keys {list(k.shape)} in {k.dtype}")
        ascending("q", self.q_positions, q.shape[1])
        ascending("k", self.k_positions, k.shape[1])

    def folded(self) -> tuple[Tensor, Tensor]:
        """Queries [Hkv, C * group, D] and their positions: those of a group one behind the other, to share keys."""
        folded = self.q.unflatten(0, (self.kv_heads, self.group)).transpose(1, 2).flatten(1, 2)
        return folded, self.q_positions.repeat_interleave(self.group)
