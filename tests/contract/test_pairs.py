"""Every pair of methods either runs and holds its invariants, or is refused with a reason that names both."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tiny
from lengthwise.core import compat, registry
from lengthwise.core.attach import Run
from lengthwise.core.spec import Method
from lengthwise.core.stack import Stack, refusals

# Settings at which a method acts within 120 tokens of a tiny model; a method that is not named runs at its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "clex": {"length": 2048},
    "dual-chunk": {"window": 24, "local": 8},
    "dynamic-ntk": {"factor": 2.0, "length": 2048},
    "block-sparse": {"mass": 0.3, "sinks": 0, "window": 1, "top": 0},
    "hip": {"top": 4, "sinks": 0, "window": 1},
    "lserve": {"budget": 128, "reuse": 2},
    "masformer": {"full": 0, "window": 16},
    "minference": {"vertical": 4, "slash": 8},
    "quest": {"budget": 64, "dense_layers": 0},
    "h2o": {"budget": 100},
    "infllm": {"init": 4, "local": 16, "block": 8, "top": 2, "reps": 2, "chunk": 8, "cached": 4},
    "int4": {"residual": 16},
    "int8": {"residual": 16},
    "knorm": {"budget": 100, "skip": 0},
    "lazy-eviction": {"budget": 100, "window": 4, "alpha": 0.01},
    "lm-infinite": {"sinks": 4, "window": 16},
    "longheads": {"chunk": 8, "length": 32},
    "ntk-attention": {"prefix": 16},
    "offload": {"hot": 16, "pages": 1},
    "pyramidkv": {"budget": 100},
    "rerope": {"window": 16},
    "sea": {"top": 64},
    "self-extend": {"group": 4, "window": 16},
    "set-prompt": {"parts": "3-20-50-61/70-90-104"},
    "sirllm": {"sinks": 2, "entropy": 70, "recent": 40},
    "snapkv": {"budget": 100, "window": 8},
    "squeezed": {"clusters": 0.2, "observed": 8},
    "streaming-llm": {"sinks": 4, "window": 16},
    "think-k": {"recent": 16},
    "tokenselect": {"init": 4, "local": 16, "top": 8, "chunk": 8},
    "tova": {"budget": 100},
}
METHODS = [m for m in registry.all_methods() if m.spec.seams != ("prompt",)]
PAIRS = list(itertools.combinations([m.spec.name for m in METHODS], 2))
IDS = tiny.tokens(160)


def small(name: str) -> Method:
    return registry.get(name)(**SMALL.get(name, {}))


def read(methods: list[Method], model: PreTrainedModel, ids: Tensor = IDS) -> tuple[Tensor, Run]:
    """Prefill in chunks, then decode: logits of every decoded token."""
    with Stack(methods).on(model) as run, torch.no_grad():
        cache, steps = run.prefill(ids[:, :-9], chunk=40), []
        for i in range(ids.shape[1] - 10, ids.shape[1]):
            steps.append(model(ids[:, i : i + 1], past_key_values=cache).logits)
            bound = max(1, len(ids)) * run.stack.tokens_held(i + 1, run.facts)
            assert all(layer.held_tokens <= bound for layer in run.ledger.layers if layer.kind == "full")
    return torch.cat(steps, 1), run


@pytest.mark.parametrize("name", [m.spec.name for m in METHODS])
def test_alone(name: str, llama: PreTrainedModel) -> None:
    """At its small settings a method does something: SMALL must make it act."""
    method = small(name)
    logits, run = read([method], llama)
    again, _ = read([method], llama)
    assert torch.equal(logits, again)
    if not method.spec.seams:
        return
    assert run.ledger.acted[name] > 0, f"{name} did not act: give it smaller settings in SMALL"
    plain = tiny.plain_logits(llama, IDS)[:, -10:]
    off = (logits - plain).abs().max()
    assert off < 1e-4 if method.spec.exact_when == "always" else off > 1e-3


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_pair(one: str, two: str, architecture: str) -> None:
    model = tiny.model(architecture)
    methods = [small(one), small(two)]
    reasons = refusals(methods, compat.model_facts(model))
    if reasons:
        # a reason of one method about the model is that method's own; all others must name both methods
        own = {r for m in methods for r in refusals([m], compat.model_facts(model))}
        shared = [r for r in reasons if r not in own]
        assert all(one in r and two in r for r in shared)
        assert shared or own
        return
    logits, run = read(methods, model)
    assert torch.isfinite(logits).all()
    again, _ = read(methods, model)
    assert torch.equal(logits, again)
    swapped, _ = read(methods[::-1], model)
    assert torch.equal(logits, swapped)
    assert all(run.ledger.acted[m.spec.name] > 0 for m in methods if m.spec.seams)
    if two == "dense" or one == "dense":
        alone, _ = read([m for m in methods if m.spec.name != "dense"], model)
        assert torch.equal(logits, alone)


EXACT = [m.spec.name for m in METHODS if m.spec.exact_when == "always" and m.spec.seams]


@pytest.mark.parametrize("exact", EXACT)
@pytest.mark.parametrize("name", [m.spec.name for m in METHODS])
def test_an_exact_method_changes_nothing_beside_another(exact: str, name: str, llama: PreTrainedModel) -> None:
    if exact == name or refusals([small(exact), small(name)], compat.model_facts(llama)):
        return
    alone, _ = read([small(name)], llama)
    both, _ = read([small(exact), small(name)], llama)
    if "format" in small(name).spec.seams and small(exact).hot_tokens != small(name).hot_tokens:  # type: ignore[attr-defined]
        return
    torch.testing.assert_close(both, alone, atol=1e-4, rtol=1e-4)


TRIPLES = [
    ("lm-infinite", "int4", "offload"),
    ("streaming-llm", "int8", "offload"),
    ("sirllm", "int4", "offload"),
    ("self-extend", "int8", "offload"),
    ("dynamic-ntk", "int8", "offload"),
    ("yarn", "int4", "offload"),
]


@pytest.mark.parametrize("names", TRIPLES)
def test_a_batch_of_three(names: tuple[str, ...], llama: PreTrainedModel) -> None:
    """Three methods, three sequences of different lengths: each row as alone."""
    lengths = (40, 111, 160)
    rows = [tiny.tokens(n, seed=n) for n in lengths]
    ids = torch.cat([torch.nn.functional.pad(r, (160 - r.shape[1], 0)) for r in rows])
    with Stack([small(n) for n in names]).on(llama) as run, torch.no_grad():
        got = []
        for i in range(0, 160, 10):
            cache = run.cache() if i == 0 else cache  # noqa: F821
            mask = (ids[:, : i + 10] > 0).long()
            where = (mask.cumsum(1) - 1).clamp(min=0)[:, i:]
            given = {"attention_mask": mask, "position_ids": where}
            got.append(llama(ids[:, i : i + 10], past_key_values=cache, **given).logits)
        for row, own in enumerate(rows):
            cache, first = run.cache(), own.shape[1] % 10
            parts = own.split([*([first] if first else []), *[10] * (own.shape[1] // 10)], 1)
            alone = torch.cat([llama(p, past_key_values=cache).logits for p in parts], 1)
            padded = torch.cat(got, 1)[row : row + 1, -own.shape[1] :]
            torch.testing.assert_close(padded, alone, atol=2e-3, rtol=2e-3)
