"""CLEX: rotary frequencies that follow the length by learned dynamics (Chen et al. 2023, arXiv 2310.16450)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.spec import Method, Spec, param
from lengthwise.errors import BadInput
from lengthwise.position._clex import Dynamics, load
from lengthwise.position._scaling import Rescaled, logn


@dataclass(frozen=True)
class Clex(Rescaled):
    """The log-frequencies are the solution, at t windows, of a neural ordinary differential equation.

    t is the number of trained windows that the sequence fills, rounded up, and `most` at most. Without `params` the
    dynamics are untrained: those of NTK-aware scaling by 2t - 1. Keys are stored un-rotated and rotated for the
    present t as they are read; `length` fixes t instead. `scripts/fit_clex.py` fits the dynamics to a model and a text.
    """

    params: str | None = param(None, "file of fitted parameters; none: untrained")
    most: int = param(16, "largest number of windows t")
    length: int | None = param(None, "total tokens to scale for, if known; none: the tokens so far")
    logn: bool = param(False, "multiply queries beyond the trained window by ln(m+1)/ln(L)")

    spec: ClassVar[Spec] = Spec(
        name="clex",
        family="position",
        summary="continuous length extrapolation: learned dynamics move the frequencies with the length",
        formula="dz/dt = W2 tanh(W1 (z + ln NTK_t)) + d ln NTK_t / dt, z(1) = ln theta, theta(t) = exp z(t); "
        "NTK_t: NTK-aware frequencies for 2t - 1; t = ceil(length / L)",
        seams=("position",),
        papers=(173,),
        source="arXiv 2310.16450, section 3; network, NTK term and t of the released code",
        exact_when="the input fits the trained window",
        refuses="models that already scale their rotary frequencies; parameters that were fitted to another layout",
        simplified="the dynamics alone are fitted, on t windows of text, with the model frozen, where the paper trains "
        "both on one window whose positions are scattered over t; solver steps of 0.05 where the released code takes "
        "0.01; logits are scaled by the position of each query, not by the length",
        neutral={},
        test="tests/oracle/test_position_clex.py",
    )

    def validate(self) -> None:
        """At least one window."""
        self.require(self.most >= 1, "most must be at least 1")
        self.require(self.length is None or self.length >= 1, "length must be at least 1")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """The parameters must be there, and of the model's rotary layout."""
        reasons = super().check(model, others)
        if self.params is None:
            return reasons
        try:
            dynamics = _loaded(self.params, _stamp(self.params))
        except BadInput as error:
            return [*reasons, str(error)]
        fitted = dynamics.dim, dynamics.base
        if model is not None and not reasons and fitted != (model.rotary_dim, model.rope_theta):
            reasons.append(
                f"{self.params} was fitted to {dynamics.dim} rotary dimensions with base {dynamics.base:g}, "
                f"and {model.model_type} has {model.rotary_dim} with base {model.rope_theta:g}"
            )
        return reasons

    def follows_length(self) -> bool:
        """The frequencies move unless the length is fixed."""
        return self.length is None

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float]:
        """The solution at t."""
        t = min(math.ceil((self.length or length) / facts.window), self.most)
        if t <= 1:
            return inv_freq, 1.0
        solved = _solved(self.params, _stamp(self.params), facts.rope_theta, facts.rotary_dim, t)
        return solved.to(inv_freq), 1.0

    def query_factor(self, facts: ModelFacts, positions: Tensor, layer: int) -> Tensor | None:
        """The log-n factor [C], if asked for."""
        return logn(facts, positions) if self.logn else None


def _stamp(path: str | None) -> int:
    """When the file was last changed, so that what is remembered of it is not stale."""
    return Path(path).stat().st_mtime_ns if path is not None and Path(path).exists() else 0


@functools.lru_cache(maxsize=8)
def _loaded(path: str, stamp: int) -> Dynamics:
    return load(path)


@functools.lru_cache(maxsize=64)
@torch.no_grad()
def _solved(path: str | None, stamp: int, base: float, dim: int, t: int) -> Tensor:
    return (Dynamics(base, dim) if path is None else _loaded(path, stamp)).frequencies(float(t))
