"""CLEX: the solution of its equation by small Euler steps in float64, and dynamics that learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import Tensor

import lengthwise
import tiny
from lengthwise.core import compat
from lengthwise.core.stack import refusals
from lengthwise.errors import BadInput
from lengthwise.position._clex import Dynamics, _turned, fit, load
from lengthwise.position.clex import Clex
from reference import Reference

BASE, DIM = 10_000.0, 12  # the tiny models' rotary layout


def fitted(scale: float = 0.02, base: float = BASE, dim: int = DIM) -> Dynamics:
    """Dynamics with random parameters."""
    dynamics = Dynamics(base, dim).requires_grad_(False)
    draw = torch.Generator().manual_seed(4)
    for p in dynamics.parameters():
        p.copy_(torch.randn(p.shape, generator=draw) * scale)
    return dynamics


def solution(t: float, up: Any, down: Any, steps: int = 24_000) -> Any:
    """exp z(t) of the published equation, in Euler steps whose error is extrapolated away."""

    def euler(count: int) -> Any:
        i = np.arange(DIM // 2)
        z, h = -2 * i / DIM * math.log(BASE), (t - 1) / count
        for step in range(count):
            alpha = 2 * (1 + step * h) - 1
            ntk = (BASE * alpha ** (DIM / (DIM - 2))) ** (-2 * i / DIM)
            slope = ntk * (-2 * i / (DIM - 2)) * 2 / alpha  # of ntk, over t
            z = z + h * (np.tanh((z + np.log(ntk)) @ up) @ down + slope / ntk)
        return z

    return np.exp(2 * euler(steps // 2) - euler(steps // 4))


def untrained(t: int) -> Tensor:
    return (BASE * (2 * t - 1) ** (DIM / (DIM - 2))) ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)


def read(text: str, model: Any, ids: Tensor, chunks: list[int]) -> Tensor:
    with lengthwise.stack(text).on(model) as run, torch.no_grad():
        cache = run.cache()
        return torch.cat([model(part[None], past_key_values=cache).logits[0] for part in ids.split(chunks)])


@pytest.mark.parametrize("t", [1.0, 1.03, 2.0, 3.7])
def test_the_solver(t: float) -> None:
    dynamics = fitted()
    expected = solution(t, dynamics.up.double().numpy(), dynamics.down.double().numpy())
    got = dynamics.frequencies(t).double().numpy()
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    if t > 1.5:  # the network matters
        assert abs(got / untrained(1).numpy() - 1).max() > 0.05
        assert abs(got / Dynamics(BASE, DIM).frequencies(t).detach().numpy() - 1).max() > 0.005


@pytest.mark.parametrize("t", [1, 2, 5, 16])
def test_untrained_dynamics_are_those_of_ntk(t: int) -> None:
    got = Dynamics(BASE, DIM).frequencies(float(t)).detach().double()
    torch.testing.assert_close(got, untrained(t), rtol=2e-5, atol=0)


@pytest.mark.parametrize(("name", "trained"), [("llama", True), ("llama-mha", False)])
def test_logits(name: str, trained: bool, tmp_path: Path) -> None:
    """A text of 1,100 tokens fills three windows of 512."""
    model, ids, text = tiny.model(name), tiny.tokens(1100)[0], "clex:length=1100"
    reference = Reference(model)
    reference.theta = untrained(3)
    if trained:
        dynamics = fitted()
        dynamics.save(tmp_path / "p.safetensors")
        text += f",params={tmp_path / 'p.safetensors'}"
        reference.theta = torch.from_numpy(solution(3.0, dynamics.up.double().numpy(), dynamics.down.double().numpy()))
    expected = reference.read_all(ids, 550)
    for chunks in ([1100], [500, 599, 1]):
        torch.testing.assert_close(read(text, model, ids, chunks).double(), expected, atol=2e-3, rtol=1e-3)


def test_frequencies_follow_the_length() -> None:
    """Token by token over the borders of windows: all keys turn by the t of the present length, `most` at most."""
    config = tiny.CONFIGS["llama"]()
    config.num_hidden_layers, config.max_position_embeddings = 1, 32
    torch.manual_seed(5)
    model, ids = tf.LlamaForCausalLM(config).eval(), tiny.tokens(105)[0]
    got = read("clex:most=3", model, ids, [30, *[1] * 75])
    for n in range(31, 106):
        reference = Reference(model)
        reference.theta = untrained(min(-(-n // 32), 3))
        torch.testing.assert_close(got[n - 1].double(), reference.read(ids[:n])[-1], atol=2e-4, rtol=1e-4)


def test_logn() -> None:
    ids = tiny.tokens(601)[0]
    reference = Reference(tiny.model("llama"), factor=lambda m: max(1.0, math.log(m + 1, tiny.WINDOW)))
    reference.theta = untrained(2)
    got = read("clex:logn=true,length=601", tiny.model("llama"), ids, [300, 301])
    torch.testing.assert_close(got.double(), reference.read_all(ids, 301), atol=3e-4, rtol=1e-4)


def test_fitting_lowers_the_loss_and_leaves_the_model_alone() -> None:
    config = tiny.CONFIGS["llama"]()
    config.max_position_embeddings = 64
    torch.manual_seed(7)
    model = tf.LlamaForCausalLM(config).eval()
    model.lm_head.weight.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    rotary, needs = model.model.rotary_emb, [p.requires_grad for p in model.parameters()]
    ids = tiny.tokens(200)[0]
    heard: list[int] = []
    dynamics = fit(model, ids, most=3, steps=40, rate=2e-3, progress=lambda step, steps, loss: heard.append(step))
    assert heard == list(range(1, 41))
    loss = {}
    for name, of in (("untrained", Dynamics(BASE, DIM)), ("fitted", dynamics)):
        with torch.no_grad(), _turned(model.model, of.frequencies(3.0)):
            loss[name] = float(model(ids[None, :192], use_cache=False, labels=ids[None, :192]).loss)
    assert loss["fitted"] < loss["untrained"] - 0.02, loss
    assert model.model.rotary_emb is rotary
    assert [p.requires_grad for p in model.parameters()] == needs
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    again = fit(model, ids, most=3, steps=40, rate=2e-3)
    assert all(torch.equal(a, b) for a, b in zip(dynamics.parameters(), again.parameters(), strict=True))
    assert torch.equal(dynamics.frequencies(1.0), Dynamics(BASE, DIM).frequencies(1.0).detach())


@pytest.mark.parametrize("architecture", ["llama", "cohere", "gpt-neox"])
def test_fitting_turns_in_the_layout_of_the_model(architecture: str) -> None:
    model, ids = tiny.model(architecture), tiny.tokens(63)
    facts = compat.model_facts(model)
    anatomy, _ = compat.examine(model)
    assert anatomy is not None
    expected = read("ntk:factor=3", model, ids[0], [63])
    ntk = facts.rope_theta * 3 ** (facts.rotary_dim / (facts.rotary_dim - 2))
    theta = ntk ** (-torch.arange(0, facts.rotary_dim, 2).float() / facts.rotary_dim)
    theta.requires_grad_(True)
    with _turned(anatomy.decoder, theta):
        logits = model(ids, use_cache=False).logits[0]
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
    logits.sum().backward()
    assert theta.grad is not None
    assert bool((theta.grad != 0).all())
    model.zero_grad()


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    fitted().save(path)
    torch.testing.assert_close(load(path).frequencies(2.5), fitted().frequencies(2.5), rtol=0, atol=0)
    facts = compat.model_facts(tiny.model("llama"))
    assert not refusals([Clex(params=str(path))], facts)
    other = compat.model_facts(tiny.model("gpt-neox"))
    assert "fitted to 12 rotary dimensions" in refusals([Clex(params=str(path))], other)[0]
    assert "write one with" in refusals([Clex(params=str(tmp_path / "none"))], facts)[0]
    (tmp_path / "bad").write_bytes(b"not safetensors at all")
    with pytest.raises(BadInput, match="not a file of fitted"):
        load(tmp_path / "bad")
    with pytest.raises(BadInput, match="does not fill"):
        fit(tiny.model("llama"), tiny.tokens(1000)[0], most=2)
    with pytest.raises(BadInput, match="from 2 windows on"):
        fit(tiny.model("llama"), tiny.tokens(1000)[0], most=1)
