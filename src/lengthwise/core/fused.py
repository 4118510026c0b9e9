"""Fused norms, rotary embedding and MLP for the Llama, Qwen and Mistral families, and linear layers for one token.

They compute what the stock operators do, up to the rounding of the model's dtype, in one pass over memory each. They
are swapped in while a run is attached and serve its forward passes only: other passes, other devices and passes with
gradients go through the stock forward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lengthwise import kernels

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_MODULES = {f"transformers.models.{name}.modeling_{name}" for name in FAMILIES}
ROTARY = "apply_rotary_pos_emb"
FEW = 8  # tokens below which the stock rotary embedding is no slower
Inside = Callable[[], bool]  # whether the forward pass in progress is one of ours


def usable(x: Tensor) -> bool:
    """Whether the compiled kernels can take `x`."""
    return x.is_cpu and not torch.is_grad_enabled() and kernels.backend(x.device) == "cpu"


def swap(model: nn.Module, inside: Inside) -> list[nn.Module]:
    """Give norms, MLPs and, for single tokens, linear layers another forward: returns what got one, for `restore`."""
    swapped = []
    for module in model.modules():
        kind = type(module)
        if "forward" in vars(module):
            continue
        if kind is nn.Linear:
            module.forward = partial(_linear, module, inside)
        elif kind.__module__ not in _MODULES:
            continue
        elif kind.__name__.endswith("RMSNorm"):
            module.forward = partial(_norm, module, inside)
        elif kind.__name__.endswith("MLP") and getattr(module.config, "hidden_act", None) == "silu":
            module.forward = partial(_mlp, module, inside)
        else:
            continue
        swapped.append(module)
    return swapped


def restore(swapped: list[nn.Module]) -> None:
    """Give the modules their own forward again."""
    for module in swapped:
        del module.forward


def turns_halves(apply: Any) -> bool:
    """Whether an `apply_rotary_pos_emb` is one of these families', which the fused rotary embedding stands for."""
    return getattr(apply, "__module__", None) in _MODULES


def _linear(module: Any, inside: Inside, x: Tensor) -> Tensor:
    if x.numel() != x.shape[-1] or not inside():
        return nn.Linear.forward(module, x)
    return kernels.linear(x, module.weight, module.bias)


def _norm(module: Any, inside: Inside, x: Tensor) -> Tensor:
    if not inside() or not usable(x):
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    return kernels.rms_norm(x, module.weight, module.variance_epsilon)


def _mlp(module: Any, inside: Inside, x: Tensor) -> Tensor:
    if not inside() or not usable(x):
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    return module.down_proj(kernels.silu_mul(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-any-return]


class RotarySwitch:
    """Stands for `apply_rotary_pos_emb` of a modeling module while models of it are attached.

    A pass whose stack owns positions (`raw()`) gets queries and keys as they are: the stack rotates them later.
    """

    def __init__(self, module: ModuleType, inside: Inside, raw: Inside) -> None:
        self.original, self.inside, self.raw, self.users = getattr(module, ROTARY), inside, raw, 0

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """q [B, Hq, C, D] and k [B, Hkv, C, D], rotated or not; cos and sin [B, C, D]."""
        if self.raw():
            return q, k
        if args or kwargs or q.shape[-2] < FEW or not self.inside() or not usable(q):
            return self.original(q, k, cos, sin, *args, **kwargs)  # type: ignore[no-any-return]
        return kernels.rotary(q, k, cos, sin)


_switches: dict[str, RotarySwitch] = {}


def take_rotary(module: ModuleType, inside: Inside, raw: Inside) -> None:
    """Put a RotarySwitch into a modeling module of these families, or count one more user of the one that is there."""
    if module.__name__ not in _MODULES:
        return
    if module.__name__ not in _switches:
        _switches[module.__name__] = RotarySwitch(module, inside, raw)
        setattr(module, ROTARY, _switches[module.__name__])
    _switches[module.__name__].users += 1


def give_rotary_back(module: ModuleType) -> None:
    """One user less; after the last the module is as it was."""
    switch = _switches.get(module.__name__)
    if switch is None:
        return
    switch.users -= 1
    if not switch.users:
        setattr(module, ROTARY, switch.original)
        del _switches[module.__name__]


def original_rotary(module: ModuleType) -> Any:
    """The module's own `apply_rotary_pos_emb`, replaced or not; None where it has none."""
    switch = _switches.get(module.__name__)
    return switch.original if switch else getattr(module, ROTARY, None)
