"""Bounded means bounded: in bytes, at ten times the length, chunk by chunk and in one long pass."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers as tf
from test_pairs import SMALL
from transformers import PreTrainedModel

import tiny
from lengthwise.core import registry
from lengthwise.core.attach import Run
from lengthwise.core.session import Session
from lengthwise.core.spec import Method
from lengthwise.core.stack import Stack
from lengthwise.errors import BadInput

BOUNDED = [m for m in registry.all_methods() if m.spec.bounded and m.spec.seams != ("prompt",)]
STACKS = [[m.spec.name, *more] for m in BOUNDED for more in ([], ["int8"], ["int4", "offload"])]


@functools.cache
def thin() -> PreTrainedModel:
    config = tf.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.15, pad_token_id=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    return model


def settings(name: str) -> Method:
    extra: dict[str, Any] = {"group": 8} if name in ("int4", "int8") else {}
    return registry.get(name)(**{**SMALL.get(name, {}), **extra})


def ids(length: int) -> torch.Tensor:
    return tiny.tokens(length) % 31 + 1


def lanes(cache: Session) -> int:
    return len(cache.layers[0].rows[0].lanes())


def check(run: Run, cache: Session, length: int) -> int:
    held = run.stack.tokens_held(length, run.facts)
    per_token = run.facts.kv_bytes_per_token // 2  # of one lane
    for layer in run.ledger.layers:
        assert layer.held_tokens <= held
        # the coded part has its own room to grow, beside the hot one
        room = 1.5 if layer.disk_bytes or len(run.stack.methods) > 1 else 1
        assert layer.peak_bytes + layer.disk_bytes <= room * held * per_token * lanes(cache)
    return run.ledger.peak_kv_bytes + sum(layer.disk_bytes for layer in run.ledger.layers)


@pytest.mark.parametrize("names", STACKS, ids=" + ".join)
@pytest.mark.parametrize("known", [True, False])
def test_ten_times_the_length(names: list[str], known: bool) -> None:
    """Peak bytes at ten times the bound equal those at three times, whether or not the length was known before."""
    stack = Stack([settings(n) for n in names])
    peaks = []
    for times in (3, 10):
        with stack.on(thin()) as run:
            length = times * stack.tokens_held(1 << 40, run.facts)
            cache = run.prefill(ids(length), cache=None if known else run.cache())
            thin().generate(ids(length), past_key_values=cache, max_new_tokens=5, do_sample=False)  # type: ignore[operator]
            peaks.append(check(run, cache, length))
            assert cache.get_seq_length() == length + 4
    if len(names) == 1:
        assert peaks[1] == peaks[0]
    assert peaks[1] <= 1.05 * peaks[0]


@pytest.mark.parametrize("name", [m.spec.name for m in BOUNDED])
def test_in_one_long_pass(name: str) -> None:
    """generate() without a prefill: the same bound, or a refusal that says how to read it."""
    stack, peaks = Stack([settings(name)]), []
    for times in (3, 10):
        with stack.on(thin()) as run:
            blocks = -(-stack.tokens_held(1 << 40, run.facts) // run.block)
            length, cache = times * blocks * run.block + 50, run.cache()  # the last block is as long both times
            try:
                thin().generate(ids(length), past_key_values=cache, max_new_tokens=2, do_sample=False)  # type: ignore[operator]
            except BadInput as error:
                assert "run.prefill" in str(error)  # noqa: PT017
                return
            peaks.append(check(run, cache, length))
    assert peaks[1] == peaks[0]


@pytest.mark.parametrize("name", [m.spec.name for m in BOUNDED])
def test_decoding_without_end(name: str) -> None:
    """Token by token, from nothing to twenty times what is kept."""
    stack = Stack([settings(name)])
    with stack.on(thin()) as run, torch.no_grad():
        cache, peaks = run.cache(), []
        for i, token in enumerate(ids(900)[0]):
            thin()(token[None, None], past_key_values=cache)
            if i in (300, 899):
                peaks.append(run.ledger.peak_kv_bytes)
    assert peaks[1] <= 1.05 * peaks[0]


@pytest.mark.parametrize("name", [m.spec.name for m in registry.all_methods() if not m.spec.bounded])
def test_a_method_that_says_nothing_of_a_bound_has_none(name: str) -> None:
    method = settings(name)
    if method.spec.seams == ("prompt",):
        return
    with Stack([method]).on(thin()) as run:
        assert method.tokens_held(5000, run.facts) == 5000
        run.prefill(ids(300))
        assert all(layer.held_tokens == 299 for layer in run.ledger.layers)


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
def test_integers_take_fewer_bytes(name: str, bits: int) -> None:
    """A code for each of 16 channels and two half floats for their group, with room to grow by half."""
    sizes = {}
    for text in ("dense", name):
        method = registry.get(text)() if text == "dense" else registry.get(text)(group=64, residual=0)
        with Stack([method]).on(tiny.model("qwen3")) as run:
            run.prefill(tiny.tokens(1501), cache=run.cache(1500), chunk=20)
            sizes[text] = run.ledger.kv_bytes
    hot = 1.5 * 84 / 1500
    assert sizes[name] < (1.5 * (16 * bits / 8 + 4) / (16 * 4) + hot) * sizes["dense"]


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "mistral-sliding"])
def test_sliding_layers_hold_their_window(architecture: str) -> None:
    with Stack([registry.get("dense")()]).on(tiny.model(architecture)) as run:
        run.prefill(tiny.tokens(400), chunk=20)
    sliding = [layer for layer in run.ledger.layers if layer.kind == "sliding"]
    assert sliding
    assert all(tiny.SLIDING <= layer.held_tokens <= 2 * tiny.SLIDING + 20 for layer in sliding)


def test_offloaded_tokens_are_not_in_memory() -> None:
    with Stack([registry.get("offload")(hot=16, pages=1)]).on(thin()) as run:
        run.prefill(ids(3001), chunk=100)
        layer = run.ledger.layers[0]
    per_token = run.facts.kv_bytes_per_token
    assert layer.disk_bytes == (3000 - 16) * per_token or layer.disk_bytes >= 2800 * per_token
    assert layer.peak_bytes <= per_token * 1.5 * (16 + 64 + 100 + 128)
