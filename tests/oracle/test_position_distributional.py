"""The choice by rotary angle distributions, counted angle by angle, and the disturbance that the paper reports."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers as tf

import lengthwise
import tiny
from lengthwise.core import compat
from lengthwise.errors import BadParameter
from lengthwise.position.distributional import Distributional, disturbance
from reference import Reference


def histogram(theta: float, length: int, bins: int) -> list[float]:
    counts = [6.103515625e-05] * bins  # the smallest normal half float
    for n in range(length):
        counts[min(int(math.fmod(n * theta, 2 * math.pi) / (2 * math.pi) * bins), bins - 1)] += 1
    return [c / length for c in counts]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def choice(base: float, dim: int, window: int, factor: float, bins: int) -> list[float]:
    """1 or the factor, for each frequency: by what it is divided."""
    out, length = [], int(window * factor)
    for i in range(dim // 2):
        theta = base ** (-2 * i / dim)
        trained = histogram(theta, window, bins)
        stays, divided = (divergence(trained, histogram(t, length, bins)) for t in (theta, theta / factor))
        out.append(factor if divided < stays else 1.0)
    return out


def config(base: float, dim: int, window: int) -> Any:
    return tf.LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=window,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )


@pytest.mark.parametrize(("base", "dim", "window"), [(1e4, 32, 512), (5e5, 16, 1000), (1e4, 64, 257)])
@pytest.mark.parametrize(("factor", "bins"), [(1.0, 360), (2.0, 360), (3.5, 41)])
def test_frequencies(base: float, dim: int, window: int, factor: float, bins: int) -> None:
    facts = compat.facts_of_config(config(base, dim, window))
    plain = base ** (-torch.arange(0, dim, 2).float() / dim)
    got, scaling = Distributional(factor=factor, bins=bins).frequencies(facts, plain, 0)
    assert scaling == 1.0
    ratio = [float(a / b) for a, b in zip(plain, got, strict=True)]
    assert ratio == pytest.approx(choice(base, dim, window, factor, bins), rel=1e-5)


@pytest.mark.parametrize(("factor", "published"), [(2.0, 0.72), (4.0, 0.32)])
def test_the_published_disturbance_of_llama_2(factor: float, published: float) -> None:
    """Llama 2, 4,096 tokens trained: 72 % less disturbance than interpolation at 8k, 32 % at 16k."""
    stays, divided = disturbance(1e4, 128, 4096, factor)
    best = sum(min(a, b) for a, b in zip(stays, divided, strict=True))
    assert 1 - best / sum(divided) == pytest.approx(published, abs=0.005)
    assert best < sum(stays)


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
def test_logits(name: str) -> None:
    model, ids = tiny.model(name), tiny.tokens(151)[0]
    reference = Reference(model)
    divisors = choice(10_000.0, reference.dim, tiny.WINDOW, 3.0, 360)
    assert {1.0, 3.0} == set(divisors)
    reference.theta = reference.theta / torch.tensor(divisors, dtype=torch.float64)
    expected = reference.read(ids)
    with lengthwise.stack("distributional:factor=3").on(model) as run, torch.no_grad():
        cache = run.cache()
        got = torch.cat([model(p[None], past_key_values=cache).logits[0] for p in ids.split([80, 70, 1])])
    torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"factor": 0.5}, {"bins": 1}])
def test_refusals(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        Distributional(**wrong)
