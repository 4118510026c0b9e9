"""Analytic costs against counted ones: FLOPs of real models, and loads of a two-level memory that runs attention."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

from lengthwise.errors import BadInput, BadParameter
from lengthwise.plan import cost, roofline
from lengthwise.plan.roofline import Rates, Roofline

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "llama-mha-tied-biased": LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-wide-heads": LlamaConfig(**SIZES, num_key_value_heads=3, head_dim=16),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=12),
    "gpt-neox": GPTNeoXConfig(**SIZES),
}


def build(config):  # eager: the counter does not know the fused attention of the CPU
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name):
    assert cost.parameters(CONFIGS[name]) == sum(p.numel() for p in build(CONFIGS[name]).parameters())


@pytest.mark.parametrize("length", [1, 63])
@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_flops_equal_counted_ones(name, length):
    model = build(CONFIGS[name])
    ids = torch.zeros(1, length, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False)
    analytic = cost.prefill(CONFIGS[name], length, logits=length, causal=False)
    assert cost.matmul_flops(analytic) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt-neox"])
def test_decode_flops_equal_counted_ones(name):
    model = build(CONFIGS[name])
    with torch.no_grad():
        cache = model(torch.zeros(1, 40, dtype=torch.long)).past_key_values
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
    assert cost.matmul_flops(cost.decode(CONFIGS[name], 41)) == counter.get_total_flops()


def test_weight_and_cache_bytes_are_those_of_the_tensors():
    config = CONFIGS["qwen2"]
    model = build(config)
    with torch.no_grad():
        cache = model(torch.zeros(1, 40, dtype=torch.long)).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cost.kv_bytes(config, 40, bits=32) == held
    step = cost.decode(config, 40, bits=32)
    activations = 4 * config.num_hidden_layers * 2 * config.hidden_size
    assert step["attention_scores"].bytes + step["attention_values"].bytes == held + activations
    weight = model.model.layers[0].mlp.up_proj.weight
    rows = config.num_hidden_layers * 4 * (config.hidden_size + config.intermediate_size)
    assert step["mlp_up"].bytes == config.num_hidden_layers * weight.nbytes + rows
    assert cost.decode(config, 40, bits=32, kv_bits=4)["kv_write"].bytes * 8 == step["kv_write"].bytes


@given(length=st.integers(1, 80), held=st.integers(1, 100))
def test_pairs_are_the_ones_of_the_mask(length, held):
    q, k = torch.arange(length)[:, None], torch.arange(length)[None]
    assert cost.pairs_scored(length, held) == int(((k <= q) & (k > q - held)).sum())


def test_steps_score_as_many_pairs_as_one_prefill_and_bounded_stacks_fewer():
    config = CONFIGS["llama"]
    steps = sum(cost.decode(config, n, held=20)["attention_scores"].flops for n in range(1, 64))
    assert steps == cost.prefill(config, 63, held=20)["attention_scores"].flops
    assert cost.decode(config, 500, held=[20, 20, 20]) == cost.decode(config, 5000, held=20)
    sliding = MistralConfig(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=16)
    assert cost.decode(sliding, 500)["attention_scores"].flops == 2 * 3 * 16 * 48


def test_seconds_sum_the_longer_side_of_every_operator():
    slow = Rates(matmul=1e3, attention=1e2, weights=1e9, keys=1e9)
    fast = Rates(matmul=1e15, attention=1e15, weights=1e3, keys=1e2)
    machine = Roofline(device="cpu", machine="none", bandwidth=1e12, float32=slow, bfloat16=fast)
    step = cost.decode(CONFIGS["llama"], 64)
    assert cost.seconds(step, machine, dtype="float32") > cost.matmul_flops(step) / 1e3
    each = cost.operator_seconds(step, machine, dtype="bfloat16")
    assert each["mlp_up"] == step["mlp_up"].bytes / 1e3
    assert each["attention_scores"] == step["attention_scores"].bytes / 1e2
    assert cost.seconds(step, machine) == sum(each.values())
    with pytest.raises(BadParameter, match="no measured rates"):
        cost.seconds(step, machine, dtype="int3")


def test_what_cannot_be_counted_is_refused():
    experts = MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)
    with pytest.raises(BadInput, match="experts"):
        cost.parameters(experts)
    with pytest.raises(BadInput, match="at least 1"):
        cost.prefill(CONFIGS["llama"], 0)
    with pytest.raises(BadInput, match="each of the 3 layers"):
        cost.decode(CONFIGS["llama"], 9, held=[1, 2])


def test_measurement_is_kept_and_a_torn_cache_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_CACHE", str(tmp_path))
    monkeypatch.setattr(roofline, "BUDGET", 0.0)
    first = roofline.load_or_measure("cpu")
    assert min(first.bandwidth, *vars(first.float32).values(), *vars(first.bfloat16).values()) > 0
    assert first.threads is not None
    assert all(1 <= count <= torch.get_num_threads() for count in first.threads)
    assert roofline.measured_threads(SimpleNamespace(device=torch.device("cpu"))) == first.threads
    monkeypatch.setattr(roofline, "measure", lambda device: pytest.fail("measured twice"))
    assert roofline.load_or_measure("cpu") == first
    (tmp_path / roofline.FILE).write_text("{torn")
    monkeypatch.setattr(roofline, "measure", lambda device: first)
    assert roofline.load_or_measure("cpu") == first
    with pytest.raises(BadParameter, match="cannot be used"):
        roofline.load_or_measure("nowhere")


def test_threads_are_those_that_took_least_time(monkeypatch):
    """A product twice as fast with every doubling, a vector's as fast with one thread as with all."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)

    def seconds(probe, device):
        rows = probe.args[0].shape[0]
        return 1 / used[-1] if rows > 1 else 1.0 - 0.001 * used[-1]

    monkeypatch.setattr(roofline, "_seconds", seconds)
    assert roofline._threads() == (6, 1)
    assert used == [1, 2, 4, 6, 1, 2, 4, 6, 6]


class SlowMemory:
    """Counts the numbers that cross between slow and fast memory and refuses to hold more than `fast` of them."""

    def __init__(self, fast):
        self.fast, self.moved, self.held = fast, 0, 0

    def load(self, block):
        self.moved += block.numel()
        self.room(block.numel())
        return block.clone()

    def store(self, target, block):
        self.moved += block.numel()
        target.copy_(block)

    def room(self, numbers):
        self.held += numbers
        assert self.held <= self.fast, "the fast memory overflowed"

    def free(self, *blocks):
        self.held -= sum(b.numel() for b in blocks)


def tiled_attention(q, k, v, fast):
    """Attention in tiles that fit in `fast` numbers (fast >= d²): keys outside, queries inside, running sums."""
    n, d = q.shape
    columns = max(1, fast // (5 * d))
    rows = max(1, min(columns, (fast - 2 * columns * d) // (2 * d + 2 + columns)))
    memory = SlowMemory(fast)
    out, top, norm = torch.zeros_like(q), torch.full((n, 1), -math.inf).to(q), torch.zeros(n, 1).to(q)
    for j in range(0, n, columns):
        kj, vj = memory.load(k[j : j + columns]), memory.load(v[j : j + columns])
        for i in range(0, n, rows):
            part = slice(i, i + rows)
            qi, oi, mi, li = (memory.load(t[part]) for t in (q, out, top, norm))
            s = qi @ kj.T / math.sqrt(d)
            memory.room(s.numel())
            m = torch.maximum(mi, s.amax(1, keepdim=True))
            p, keep = torch.exp(s - m), torch.exp(mi - m)
            memory.store(out[part], oi * keep + p @ vj)
            memory.store(norm[part], li * keep + p.sum(1, keepdim=True))
            memory.store(top[part], m)
            memory.free(qi, oi, mi, li, s)
        memory.free(kj, vj)
    return out / norm, memory.moved


def blocked_product(a, b, fast):
    """a @ b in square blocks of which three fit in `fast` numbers: what is left when fast < d²."""
    side = max(1, math.isqrt(fast // 3))
    memory = SlowMemory(fast)
    out = torch.zeros(a.shape[0], b.shape[1]).to(a)
    for i in range(0, a.shape[0], side):
        for j in range(0, b.shape[1], side):
            block = torch.zeros_like(out[i : i + side, j : j + side])
            memory.room(block.numel())
            for c in range(0, a.shape[1], side):
                x, y = memory.load(a[i : i + side, c : c + side]), memory.load(b[c : c + side, j : j + side])
                block += x @ y
                memory.free(x, y)
            memory.store(out[i : i + side, j : j + side], block)
            memory.free(block)
    return out, memory.moved


def attention_inputs(n, d):
    torch.manual_seed(0)
    return [torch.randn(n, d, dtype=torch.float64) for _ in range(3)]


def test_tiled_attention_moves_n2_d2_over_m():
    ratios = []
    for n, d, fast in [(256, 8, 128), (512, 8, 128), (512, 8, 512), (256, 16, 512), (512, 16, 256), (512, 16, 1024)]:
        q, k, v = attention_inputs(n, d)
        out, moved = tiled_attention(q, k, v, fast)
        torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0])
        ratios.append(moved / cost.attention_io(n, d, fast))
    assert min(ratios) >= 1
    assert max(ratios) / min(ratios) < 2, ratios


def test_blocked_products_move_n2_d_over_sqrt_m_when_the_fast_memory_is_small():
    ratios = []
    for n, d, fast in [(64, 32, 48), (128, 32, 48), (128, 32, 192), (128, 64, 192), (128, 64, 768)]:
        q, k, _ = attention_inputs(n, d)
        scores, moved = blocked_product(q, k.T, fast)
        torch.testing.assert_close(scores, q @ k.T)
        ratios.append(moved / cost.attention_io(n, d, fast))
    assert min(ratios) >= 1
    assert max(ratios) / min(ratios) < 1.5, ratios


@settings(max_examples=50)
@given(n=st.integers(1, 10_000), d=st.integers(1, 256), fast=st.integers(1, 10**6))
def test_the_bound_is_continuous_and_never_below_reading_once(n, d, fast):
    assert cost.attention_io(n, d, fast) >= 4 * n * d
    assert cost.attention_io(n, d, d * d) == max(float(n * n), 4.0 * n * d)
    assert cost.attention_io(n, d, fast) >= cost.attention_io(n, d, fast + 1)
