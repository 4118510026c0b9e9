"""Giraffe's power and truncated bases: one frequency at a time, and a Llama in float64 that turns by them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from lengthwise.core.facts import ModelFacts
from lengthwise.core.grammar import parse
from lengthwise.core.seams import Positions
from reference import Reference

IDS = tiny.tokens(151)[0]
SHAPES = [(1e4, 128, 2048), (5e5, 128, 8192), (1e4, 16, 512), (1e6, 64, 32768)]


def facts(base: float, dim: int, window: int) -> ModelFacts:
    return ModelFacts("llama", ("full",), 2, 2, dim, 2 * dim, window, "default", base, dim)


def ours(text: str, base: float, dim: int, window: int) -> list[float]:
    (method,) = parse(text)
    assert isinstance(method, Positions)
    plain = torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)])
    changed = method.frequencies(facts(base, dim, window), plain, 0)
    assert changed is not None
    assert changed[1] == 1.0
    return [float(x) for x in changed[0]]


def power(i: int, base: float, dim: int, k: float) -> float:
    return float(base ** (-2 * i / dim) * (1 - 2 * i / dim) ** k)


def truncated(i: int, base: float, dim: int, length: int) -> float:
    """A turn takes 2 pi / theta tokens: at most `length`, to stay; at most 8 times as many, to turn once in 16."""
    theta = base ** (-2 * i / dim)
    turn = 2 * math.pi / theta
    if turn <= length:
        return theta
    return 2 * math.pi / (16 * length) if turn <= 8 * length else 0.0


@pytest.mark.parametrize(("base", "dim", "window"), SHAPES)
@pytest.mark.parametrize("k", [0.0, 0.1, 0.5, 2.0])
def test_power(base: float, dim: int, window: int, k: float) -> None:
    expected = [power(i, base, dim, k) for i in range(dim // 2)]
    assert ours(f"power:power={k}", base, dim, window) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(("base", "dim", "window"), SHAPES)
@pytest.mark.parametrize("length", [None, 64, 100_000])
def test_truncated(base: float, dim: int, window: int, length: int | None) -> None:
    expected = [truncated(i, base, dim, length or window) for i in range(dim // 2)]
    got = ours("truncated" if length is None else f"truncated:length={length}", base, dim, window)
    assert got == pytest.approx(expected, rel=2e-6, abs=0)
    if (base, dim, length) == (1e4, 128, None):  # Llama: of 64 frequencies, 41 turn in 2,048 tokens, 9 stand still
        assert (sum(x >= 2 * math.pi / 2048 for x in got), sum(x == 0 for x in got)) == (41, 9)


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize("text", ["power", "power:power=2", "truncated", "truncated:length=60"])
def test_logits(name: str, text: str) -> None:
    model = tiny.model(name)
    reference = Reference(model)
    config = model.config
    base = config.rope_parameters["rope_theta"]
    if text.startswith("power"):
        k = 2.0 if "=" in text else 0.5
        theta = [power(i, base, reference.dim, k) for i in range(reference.dim // 2)]
    else:
        length = 60 if "=" in text else config.max_position_embeddings
        theta = [truncated(i, base, reference.dim, length) for i in range(reference.dim // 2)]
    reference.theta = torch.tensor(theta, dtype=torch.float64)
    expected = reference.read(IDS)
    for chunks, block in (([151], 1024), ([63, 80, *[1] * 8], 17)):
        with lengthwise.stack(text).on(model) as run, torch.no_grad():
            run.block, cache = block, run.cache()
            parts: list[Tensor] = [model(p[None], past_key_values=cache).logits[0] for p in IDS.split(chunks)]
        torch.testing.assert_close(torch.cat(parts).double(), expected, atol=2e-4, rtol=1e-4)
