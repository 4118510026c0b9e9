"""Positions: scaled frequencies against transformers' own, distance rules against the full matrix of distances."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import lengthwise
import tiny
from lengthwise.core import compat
from lengthwise.core.attach import Run
from lengthwise.core.grammar import parse
from lengthwise.core.seams import Positions
from reference import Held, Reference, Rule, distances

IDS = tiny.tokens(150)[0]


def run_logits(
    text: str, model: Any, ids: Tensor = IDS, chunks: Sequence[int] | None = None, block: int = 1024
) -> tuple[Tensor, Run]:
    with lengthwise.stack(text).on(model) as run, torch.no_grad():
        run.block, cache = min(run.block, block), run.cache()
        parts = [model(part[None], past_key_values=cache).logits[0] for part in ids.split(list(chunks or [len(ids)]))]
    return torch.cat(parts), run


WAYS: list[tuple[list[int], int]] = [([150], 1024), ([150], 16), ([41, 63, 37, *[1] * 9], 23)]

# (base, head dimension, trained window) of models in use
SHAPES = [(1e4, 128, 4096), (5e5, 128, 8192), (1e6, 128, 32768), (1e4, 64, 2048), (1e4, 16, 512), (1e4, 64, 131072)]


def config_of(base: float, dim: int, window: int, **rope: Any) -> Any:
    return tf.LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=window,
        rope_parameters={"rope_type": "default", "rope_theta": base, **rope},
    )


def ours(text: str, config: Any, length: int) -> tuple[Tensor, float]:
    (method,) = parse(text)
    assert isinstance(method, Positions)
    facts = compat.facts_of_config(config)
    base = config.rope_parameters["rope_theta"] ** (-torch.arange(0, facts.head_dim, 2).float() / facts.head_dim)
    given = method.frequencies(facts, base, length)
    assert given is not None
    return given


@pytest.mark.parametrize(("base", "dim", "window"), SHAPES)
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0, 32.0])
def test_frequencies_are_those_of_transformers(base: float, dim: int, window: int, factor: float) -> None:
    plain = config_of(base, dim, window)
    cases = [
        (f"linear:factor={factor}", "linear", {"factor": factor}, window),
        (
            f"yarn:factor={factor}",
            "yarn",
            {"factor": factor, "original_max_position_embeddings": window, "beta_fast": 32, "beta_slow": 1},
            window,
        ),
        # the fixed base is the dynamic one of factor 1 at s windows
        (f"ntk:factor={factor}", "dynamic", {"factor": 1.0}, int(factor * window)),
        (f"dynamic-ntk:factor={factor}", "dynamic", {"factor": factor}, 3 * window + 17),
        (f"dynamic-ntk:factor={factor}", "dynamic", {"factor": factor}, window // 2),
    ]
    for text, kind, rope, length in cases:
        config = config_of(base, dim, window, **{"rope_type": kind, **rope})
        if kind == "yarn":  # transformers takes the factor from the two windows
            config.max_position_embeddings = int(factor * window)
        expected, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
        got, got_scaling = ours(text, plain, length)
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=0, msg=text)
        assert got_scaling == pytest.approx(scaling), text


def test_ntk_keeps_the_fastest_and_divides_the_slowest() -> None:
    config = config_of(1e4, 128, 4096)
    got, _ = ours("ntk:factor=8", config, 0)
    base, _ = ours("linear:factor=1", config, 0)
    assert got[0] == base[0]
    assert float(base[-1] / got[-1]) == pytest.approx(8, rel=1e-5)


def test_yarn_bands() -> None:
    """Published band edges for Llama-2: dimensions up to 20 stay, from 46 on they are fully interpolated."""
    config = config_of(1e4, 128, 4096)
    base, _ = ours("linear:factor=1", config, 0)
    got, temperature = ours("yarn:factor=16", config, 0)
    ratio = base / got
    assert torch.allclose(ratio[:21], torch.ones(21))
    assert torch.allclose(ratio[46:], torch.full((18,), 16.0))
    assert bool((ratio[21:46].diff() > 0).all())
    assert temperature == pytest.approx(0.1 * math.log(16) + 1)


def scaled(architecture: str, **rope: Any) -> Any:
    """The tiny model with transformers' own scaling in its config, and the same weights."""
    plain = tiny.model(architecture)
    config = copy.deepcopy(plain.config)
    if "full_attention" in config.rope_parameters:
        config.rope_parameters["full_attention"].update(rope)
    else:
        config.rope_parameters.update(rope)
    if rope["rope_type"] == "yarn":
        config.max_position_embeddings = int(rope["factor"] * tiny.WINDOW)
    model = type(plain)(config).eval()
    model.load_state_dict(plain.state_dict())
    return model


@pytest.mark.parametrize("architecture", ["llama", "llama-mha", "qwen3", "cohere", "gpt-neox", "olmo2", "gemma3"])
@pytest.mark.parametrize(
    ("text", "rope"),
    [
        ("linear:factor=4", {"rope_type": "linear", "factor": 4.0}),
        (
            "yarn:factor=4",
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": tiny.WINDOW},
        ),
        ("dynamic-ntk:factor=2", {"rope_type": "dynamic", "factor": 2.0}),
    ],
)
def test_logits_are_those_of_transformers(architecture: str, text: str, rope: dict[str, Any]) -> None:
    length = tiny.WINDOW + 88 if rope["rope_type"] == "dynamic" else 150
    if architecture == "gemma3" and rope["rope_type"] == "dynamic":
        pytest.skip("transformers' dynamic scaling follows one layer type at a time")
    ids = tiny.tokens(length)[0]
    expected = tiny.plain_logits(scaled(architecture, **rope), ids[None])[0]
    got, run = run_logits(text, tiny.model(architecture), ids)
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)
    name = text.partition(":")[0]
    assert run.ledger.acted[name] > 0
    assert (got - tiny.plain_logits(tiny.model(architecture), ids[None])[0]).abs().max() > 1e-2
    for chunks, block in [([length], 37), ([100, *[25] * (length // 25 - 4)], 16)] if length == 150 else []:
        again, _ = run_logits(text, tiny.model(architecture), ids, chunks, block)
        torch.testing.assert_close(again, expected, atol=2e-4, rtol=1e-4)


def test_ntk_is_a_larger_base() -> None:
    factor, dim = 4.0, 12
    expected = scaled("llama", rope_type="default", rope_theta=10_000.0 * factor ** (dim / (dim - 2)))
    got, _ = run_logits(f"ntk:factor={factor}", tiny.model("llama"))
    torch.testing.assert_close(got, tiny.plain_logits(expected, IDS[None])[0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("base", "window", "published"),  # LongLLaDA's table of factors on the base, for head dimension 128
    [
        (5e5, 4096, {4096: 1, 8192: 4, 16384: 14, 24576: 31, 32768: 55}),  # LLaDA-8B
        (5e5, 8192, {16384: 4, 32768: 13}),  # Llama-3-8B
        (1e6, 2048, {4096: 5}),  # Dream-7B
    ],
)
def test_ntk_base_for_a_length(base: float, window: int, published: dict[int, int]) -> None:
    config = config_of(base, 128, window)
    for length, times in published.items():
        got, scaling = ours(f"ntk:length={length}", config, 0)
        expected = (base * times) ** (-torch.arange(0, 128, 2).double() / 128)
        torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=0)
        assert scaling == 1.0


def test_ntk_base_turns_the_critical_dimension_once() -> None:
    """Before it is rounded up, the new base gives the first dimension that never turned in training one turn."""
    for base, dim, window in SHAPES[:4]:
        turned = [i for i in range(dim // 2) if base ** (2 * i / dim) * 2 * math.pi < window]
        critical, length = len(turned), 5 * window
        got, _ = ours(f"ntk:length={length}", config_of(base, dim, window), 0)
        turn = 2 * math.pi * float(got[1].double() ** -critical)
        assert length <= turn < length * 2 ** (2 * critical / dim)


def one_layer() -> Any:
    config = tiny.CONFIGS["llama"]()
    config.num_hidden_layers = 1
    torch.manual_seed(5)
    return tf.LlamaForCausalLM(config).eval()


def test_dynamic_keys_share_one_base() -> None:
    """Read token by token past the window, every new token sees all keys at the base of its own length."""
    model, start = one_layer(), tiny.WINDOW - 4
    ids = tiny.tokens(tiny.WINDOW + 8)[0]
    config = copy.deepcopy(model.config)
    config.rope_parameters.update({"rope_type": "dynamic", "factor": 3.0})
    theirs = tf.LlamaForCausalLM(config).eval()
    theirs.load_state_dict(model.state_dict())
    got, _ = run_logits("dynamic-ntk:factor=3", model, ids, [start, *[1] * 12])
    for n in range(start + 1, len(ids) + 1):
        expected = tiny.plain_logits(theirs, ids[None, :n])[0, -1]
        torch.testing.assert_close(got[n - 1], expected, atol=2e-4, rtol=1e-4)


def test_dynamic_rows_have_their_own_length() -> None:
    model = one_layer()
    ids = tiny.tokens(tiny.WINDOW + 40, batch=2)
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    with lengthwise.stack("dynamic-ntk:factor=3").on(model) as run, torch.no_grad():
        got = model(ids, attention_mask=mask, past_key_values=run.cache()).logits
    for row, pad in ((0, 0), (1, 30)):
        alone, _ = run_logits("dynamic-ntk:factor=3", model, ids[row, pad:])
        torch.testing.assert_close(got[row, pad:], alone, atol=2e-4, rtol=1e-4)


def test_dynamic_of_a_known_length_is_fixed() -> None:
    model, ids = tiny.model("llama"), tiny.tokens(tiny.WINDOW + 88)[0]
    at_once, _ = run_logits("dynamic-ntk:factor=2", model, ids)
    split, _ = run_logits(f"dynamic-ntk:factor=2,length={len(ids)}", model, ids, [100, 200, 300])
    torch.testing.assert_close(split, at_once, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["linear:factor=4", "yarn:factor=4", "ntk:factor=4", "dynamic-ntk:length=2048"])
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_sliding_layers_keep_their_frequencies(architecture: str, text: str) -> None:
    """The first layer slides and is left alone, also where both kinds share one rotary module."""
    model = tiny.model(architecture)
    outputs: list[list[Tensor]] = [[], []]
    hooks = [
        layer.self_attn.register_forward_hook(lambda m, a, out, i=i: outputs[i].append(out[0]))
        for i, layer in enumerate(model.model.layers)
    ]
    try:
        tiny.plain_logits(model, IDS[None])
        run_logits(text, model)
    finally:
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(*outputs[0], atol=1e-5, rtol=1e-5)
    assert (outputs[1][0] - outputs[1][1]).abs().max() > 1e-2


def by_distance(relative: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    def rule(held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        m, n = positions[:, None], held.positions[None]
        return distances(positions, held.positions) >= 0, relative(m, n)

    return rule


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize(("group", "window"), [(4, 16), (3, 63), (8, 8), (2, 150), (1, 7)])
def test_self_extend(name: str, group: int, window: int) -> None:
    def relative(m: Tensor, n: Tensor) -> Tensor:
        far = m // group - n // group + window - window // group
        return torch.where(m - n < window, m - n, far)

    expected = Reference(tiny.model(name), by_distance(relative)).read(IDS)
    for chunks, block in WAYS:
        got, _ = run_logits(f"self-extend:group={group},window={window}", tiny.model(name), IDS, chunks, block)
        torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize("window", [1, 16, 63, 150])
@pytest.mark.parametrize("logn", [False, True])
def test_rerope(name: str, window: int, logn: bool) -> None:
    ids = tiny.tokens(600)[0] if logn and window == 16 else IDS  # the factor acts beyond the trained window
    factor = (lambda m: max(1.0, math.log(m + 1) / math.log(tiny.WINDOW))) if logn else None
    rule = by_distance(lambda m, n: (m - n).clamp(max=window))
    expected = torch.cat([Reference(tiny.model(name), rule, factor).read_all(ids, 150)])
    for chunks, block in WAYS if len(ids) == 150 else [([600], 1024), ([300] * 2, 100)]:
        text = f"rerope:window={window},logn={str(logn).lower()}"
        got, _ = run_logits(text, tiny.model(name), ids, chunks, block)
        torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["self-extend:group=4,window=16", "rerope:window=16"])
def test_the_near_lane_forgets(text: str) -> None:
    """Keys rotated for the near frame are held for the near frame only."""
    _, run = run_logits(text, tiny.model("llama"), IDS, [50, 50, 50])
    per_token = run.facts.kv_bytes_per_token
    near, far_and_values = 16 + 64 + 50, 150
    assert run.ledger.layers[0].held_tokens == 150
    assert run.ledger.layers[0].held_bytes <= 1.5 * per_token * (near / 2 + far_and_values)


@pytest.mark.parametrize("architecture", ["llama", "cohere", "gpt-neox", "phi3-partial", "gemma2", "gemma3", "olmo2"])
@pytest.mark.parametrize("text", ["self-extend:group=4,window=16", "rerope:window=16", "lm-infinite:window=16,sinks=4"])
def test_every_rotary_layout(architecture: str, text: str) -> None:
    """Seen from the last query of a one-layer model, a distance rule is a choice of position_ids."""
    config = tiny.CONFIGS[architecture]()
    config.num_hidden_layers = 1
    if hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"]
    torch.manual_seed(6)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    length = 63
    back = length - 1 - torch.arange(length)  # distances from the last query
    if text.startswith("self-extend"):
        far = (length - 1) // 4 - torch.arange(length) // 4 + 16 - 4
        back = torch.where(back < 16, back, far)
    else:
        back = back.clamp(max=16)
    mask = torch.ones(1, length, dtype=torch.long)
    ids = IDS[:length]
    if text.startswith("lm-infinite"):  # what is not seen is left out
        keep = torch.cat([torch.arange(4), torch.arange(length - 16, length)])
        expected = tiny.plain_logits(
            model, ids[None, keep], position_ids=100 - back[None, keep], attention_mask=mask[:, keep]
        )
    else:
        expected = tiny.plain_logits(model, ids[None], position_ids=100 - back[None], attention_mask=mask)
    got, _ = run_logits(text, model, ids)
    torch.testing.assert_close(got[-1], expected[0, -1], atol=2e-4, rtol=1e-4)
    assert (got - tiny.plain_logits(model, ids[None])[0])[-1].abs().max() > 1e-3
