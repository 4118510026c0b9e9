"""Updates of a model's weights: computed, saved, put into a model for a while, and taken out without a trace."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lengthwise.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

FORMAT = "lengthwise-delta"
VERSION = "1"

Part = Tensor | tuple[Tensor, Tensor]
"""An update of one weight: a tensor of its shape, or (up [out, rank], down [rank, in]), which stands for up @ down."""


@dataclass(frozen=True)
class Delta:
    """A direction in the space of weights: parameter name -> update. `about` says where it comes from."""

    parts: Mapping[str, Part]
    about: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> Tensor:
        """The update of one parameter, float32, in the parameter's shape."""
        part = self.parts[name]
        return part.float() if isinstance(part, Tensor) else part[0].float() @ part[1].float()

    def numbers(self) -> int:
        """How many numbers the update is made of."""
        return sum(t.numel() for part in self.parts.values() for t in ((part,) if isinstance(part, Tensor) else part))

    def misfits(self, model: nn.Module) -> list[str]:
        """Reasons why this update cannot be added to `model`; [] means it can."""
        own, reasons = dict(model.named_parameters()), []
        if not self.parts:
            reasons.append("the update is empty")
        for name, part in self.parts.items():
            shape = part.shape if isinstance(part, Tensor) else torch.Size([part[0].shape[0], part[1].shape[1]])
            if name not in own:
                reasons.append(f"the model has no weight '{name}'")
            elif own[name].shape != shape:
                reasons.append(f"'{name}' is {_shape(own[name])} in the model, {_shape(shape)} in the update")
            elif not own[name].is_floating_point():
                reasons.append(f"'{name}' is quantised: load the model in float32 or bfloat16")
        return reasons


@contextmanager
def replaced(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
    """Inside the block, parameters of `model` have these values, in their own dtype and on their own device.

    Afterwards every parameter holds the very tensor that it held before: bit by bit, in the same memory. Blocks nest;
    what was computed with other weights (a cache, a sampler that keeps one) belongs to its own block.
    """
    own = dict(model.named_parameters())
    before: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, value in weights:
                before[name] = own[name].data
                own[name].data = value.to(own[name].device, own[name].dtype)
        yield
    finally:
        for name, data in before.items():
            own[name].data = data


@contextmanager
def edited(model: nn.Module, delta: Delta, alpha: float = 1.0) -> Iterator[None]:
    """Inside the block, the model's weights are theta + alpha * delta; afterwards they are as before, bit by bit.

    `alpha` between 0 and 1 interpolates, beyond 1 it extrapolates. Raises BadInput when the update does not fit.
    """
    if reasons := delta.misfits(model):
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise BadInput(f"the update is not of this model: {reasons[0]}{more}")
    own = dict(model.named_parameters())
    moved = (
        (name, own[name].data.float() + alpha * delta.of(name).to(own[name].device)) for name in delta.parts if alpha
    )
    with replaced(model, moved):
        yield


def between(start: nn.Module, end: nn.Module, rank: int | None = None) -> Delta:
    """The update that leads from the weights of `start` to those of `end`, float32; weights that agree are left out.

    With `rank`, matrices are cut to their `rank` largest singular values where that is smaller; vectors are kept whole.
    Raises BadInput when the two are not of one architecture, and when they do not differ.
    """
    check_same(start, end)
    ends, parts = dict(end.named_parameters()), {}
    for name, first in start.named_parameters():
        step = ends[name].data.to(first.device).float() - first.data.float()
        if step.any():
            parts[name] = step if rank is None else cut(step, rank)
    if not parts:
        raise BadInput("the two models have the same weights: there is no direction between them")
    return Delta(parts, {"made": "difference of two checkpoints", "rank": str(rank or "full")})


def cut(step: Tensor, rank: int) -> Part:
    """The best update of `rank` (singular value decomposition), or the update itself where that is no larger."""
    if rank < 1:
        raise BadInput("the rank must be at least 1")
    if step.dim() != 2 or rank * sum(step.shape) >= step.numel():
        return step
    u, s, v = torch.linalg.svd(step, full_matrices=False)
    return (u[:, :rank] * s[:rank]).contiguous(), v[:rank].contiguous()


def check_same(first: nn.Module, other: nn.Module) -> None:
    """Raise BadInput unless both have the same parameters with the same shapes."""
    a, b = ({n: p.shape for n, p in m.named_parameters()} for m in (first, other))
    if missing := sorted(a.keys() ^ b.keys()):
        raise BadInput(f"the models are of different architectures: only one of them has '{missing[0]}'")
    for name, shape in a.items():
        if shape != b[name]:
            raise BadInput(
                f"the models differ in shape: '{name}' is {_shape(shape)} in one, {_shape(b[name])} in the other"
            )


def save(delta: Delta, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a delta as one safetensors file. `dtype` float32 keeps differences exactly; bfloat16 halves the file."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, part in delta.parts.items():
        kinds = {"full": part} if isinstance(part, Tensor) else {"up": part[0], "down": part[1]}
        tensors |= {f"{kind}:{name}": t.detach().to("cpu", dtype).contiguous() for kind, t in kinds.items()}
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(target), {"format": FORMAT, "version": VERSION, "about": json.dumps(dict(delta.about))})


def load(path: str | Path) -> Delta:
    """A delta that `save` wrote. Raises BadInput when the file is none."""
    from safetensors import SafetensorError, safe_open

    target = Path(path).expanduser()
    try:
        with safe_open(str(target), framework="pt") as file:
            facts: dict[str, Any] = file.metadata() or {}
            held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{target} is not a readable safetensors file: {error}") from error
    if facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise BadInput(f"{target} is no update of weights that lengthwise wrote (lengthwise weights --help)")
    parts: dict[str, Part] = {}
    for key in held:
        kind, _, name = key.partition(":")
        if kind == "full":
            parts[name] = held[key]
        elif kind == "up":
            parts[name] = held[key], held[f"down:{name}"]
    return Delta(parts, json.loads(facts.get("about", "{}")))


def _shape(of: Tensor | torch.Size) -> str:
    return "x".join(map(str, of.shape if isinstance(of, Tensor) else of))
