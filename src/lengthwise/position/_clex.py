"""The dynamics of CLEX: log-frequencies that move with the length scale t, and how they are fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lengthwise.core import compat
from lengthwise.errors import BadInput

STEP = 0.05  # of the solver, in units of t
SHAPES = ("up", "down")


class Dynamics(nn.Module):
    """dz/dt = down(tanh(up(z + ln NTK_t))) + d ln NTK_t / dt for the log-frequencies z of `dim` rotary dimensions.

    NTK_t are the frequencies of NTK-aware scaling by 2t - 1. `up` [dim/2, dim] and `down` [dim, dim/2] are learned;
    `down` starts at zero, so untrained dynamics are those of NTK.
    """

    def __init__(self, base: float, dim: int) -> None:
        super().__init__()
        self.base, self.dim = base, dim
        bound = 1 / math.sqrt(dim)
        self.up = nn.Parameter(torch.empty(dim // 2, dim).uniform_(-bound, bound))
        self.down = nn.Parameter(torch.zeros(dim, dim // 2))
        self.index = torch.arange(0, dim, 2, dtype=torch.float32)

    def forward(self, t: float, z: Tensor) -> Tensor:
        """The velocity [dim/2] of log-frequencies z [dim/2] at t."""
        alpha = 2 * t - 1
        slope = self.index / (self.dim - 2)
        ntk = -self.index / self.dim * math.log(self.base) - slope * math.log(alpha)
        moved: Tensor = torch.tanh((z + ntk) @ self.up) @ self.down - 2 * slope / alpha
        return moved

    def frequencies(self, t: float) -> Tensor:
        """Inverse frequencies [dim/2] at t >= 1, by Runge-Kutta steps of fourth order from t = 1."""
        z: Tensor = -self.index / self.dim * math.log(self.base)
        steps = math.ceil(round((t - 1) / STEP, 6))
        h = (t - 1) / max(1, steps)
        for i in range(steps):
            at = 1 + i * h
            a = self(at, z)
            b = self(at + h / 2, z + h / 2 * a)
            c = self(at + h / 2, z + h / 2 * b)
            d = self(at + h, z + h * c)
            z = z + h / 6 * (a + 2 * b + 2 * c + d)
        return z.exp()

    def save(self, path: str | Path) -> None:
        """Write the learned parameters to a safetensors file."""
        tensors = {name: getattr(self, name).detach().contiguous() for name in SHAPES}
        save_file(tensors, str(path), metadata={"base": repr(self.base), "dim": str(self.dim)})


def load(path: str | Path) -> Dynamics:
    """The dynamics that `save` wrote. Raises BadInput for a file that is missing or is something else."""
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in SHAPES}
            dynamics = Dynamics(float(about["base"]), int(about["dim"]))
            dynamics.load_state_dict(found)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path} is not a file of fitted CLEX parameters: write one with scripts/fit_clex.py") from error
    return dynamics.requires_grad_(False)


def fit(
    model: Any,
    ids: Tensor,
    *,
    most: int = 4,
    steps: int = 60,
    rate: float = 1e-4,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Dynamics:
    """Learn the dynamics of `model` from a text, the model itself frozen.

    Every step reads one stretch of t windows of ids [n], t drawn from 2..`most`, at the frequencies for t. `rate` is
    Adam's, and falls to zero; `progress` hears (step, steps, loss in nats). Raises BadInput when the
    text is shorter than `most` windows or the model has no plain rotary embedding.
    """
    facts = compat.model_facts(model)
    anatomy, reasons = compat.examine(model)
    if anatomy is None or facts.rope_type != "default":
        raise BadInput("; ".join(reasons) or f"{facts.model_type} already scales its rotary frequencies")
    if most < 2:
        raise BadInput(f"most={most}: frequencies are learned from 2 windows on")
    if len(ids) < facts.window * most:
        raise BadInput(f"a text of {len(ids):,} tokens does not fill {most} windows of {facts.window:,}: give more")
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(), _frozen(model):
        torch.manual_seed(seed)
        dynamics = Dynamics(facts.rope_theta, facts.rotary_dim)
        optimizer = torch.optim.Adam(dynamics.parameters(), lr=rate)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            t = int(torch.randint(2, most + 1, (1,), generator=draw))
            start = int(torch.randint(0, len(ids) - facts.window * t + 1, (1,), generator=draw))
            text = ids[None, start : start + facts.window * t]
            with _turned(anatomy.decoder, dynamics.frequencies(float(t))):
                loss = model(text, use_cache=False, labels=text).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress(step + 1, steps, float(loss.detach()))
    return dynamics.requires_grad_(False)


class _Turn(nn.Module):
    """A rotary module with given frequencies, through which gradients pass; in the layout of the one it replaces."""

    def __init__(self, original: nn.Module, frequencies: Tensor) -> None:
        super().__init__()
        self.frequencies = frequencies
        cos, _ = original(torch.zeros(1), torch.tensor([[1]]))
        half = cos.shape[-1] // 2
        self.halves = torch.equal(cos[..., :half], cos[..., half:])  # else pairs lie side by side

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].float() * self.frequencies
        angles = torch.cat([angles, angles], -1) if self.halves else angles.repeat_interleave(2, -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


@contextmanager
def _turned(decoder: Any, frequencies: Tensor) -> Iterator[None]:
    """The decoder with other rotary frequencies, for a forward pass and its gradients."""
    original = decoder.rotary_emb
    decoder.rotary_emb = _Turn(original, frequencies)
    try:
        yield
    finally:
        decoder.rotary_emb = original


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """The model without gradients for its own parameters."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    for p, _ in before:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, needed in before:
            p.requires_grad_(needed)
