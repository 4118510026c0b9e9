"""What each operator of a transformer computes and moves, from its config alone, and the seconds that follow.

Matrix multiplications count 2 FLOPs for each multiply-add, as `torch.utils.flop_counter` does. Attention is counted
as the fused kernels do it: scores are never written to memory, and a causal query scores the keys up to itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lengthwise.core.facts import ModelFacts, facts_of_config
from lengthwise.errors import BadInput
from lengthwise.plan.roofline import Roofline

PLAIN_MLP = frozenset({"gpt_neox", "gpt2", "gptj", "phi", "falcon", "opt", "bloom", "starcoder2"})
ATTENTION = ("attention_scores", "attention_values")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "mlp_gate", "mlp_up", "mlp_down", "lm_head")
SOFTMAX_FLOPS, NORM_FLOPS, ACTIVATION_FLOPS = 5, 4, 5  # for each element: subtract, exp, sum, scale; square, sum, ...

Costs = Mapping[str, "Cost"]
Held = int | Sequence[int] | None


@dataclass(frozen=True)
class Cost:
    """FLOPs computed, and bytes moved to or from the memory of the device."""

    flops: float = 0
    bytes: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Shape:
    """The sizes that costs follow from: `facts` of the attention layers, and what lies between them."""

    facts: ModelFacts
    layers: int
    intermediate: int
    vocab: int
    gated: bool
    tied: bool
    biases: int
    norm_size: int
    norms: int
    head_norms: int


def shape_of(config: Any) -> Shape:
    """The sizes of a dense decoder's transformers config. Raises BadInput for experts or layers without attention.

    Exact for Llama, Mistral, Qwen2, Qwen3 and GPT-NeoX; others are counted as Llama with their sizes.
    """
    config = config.get_text_config(decoder=True)
    facts = facts_of_config(config)
    kind = facts.model_type
    for field in ("num_experts", "num_local_experts", "n_routed_experts"):
        if (getattr(config, field, None) or 0) > 1:
            raise BadInput(f"the cost of a model with experts ({kind}) is not counted yet")
    if "other" in facts.layer_kinds:
        raise BadInput(f"the cost of layers without attention ({kind}) is not counted yet")
    layers, hidden = len(facts.layer_kinds), facts.hidden
    intermediate = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    query, key = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    gated = kind not in PLAIN_MLP
    attention_bias = kind == "qwen2" or bool(getattr(config, "attention_bias", False))
    biases = (query + 2 * key) * attention_bias + hidden * (attention_bias and kind != "qwen2")
    if getattr(config, "mlp_bias", False) or not gated:
        biases += hidden + intermediate * (2 if gated else 1)
    return Shape(
        facts=facts,
        layers=layers,
        intermediate=intermediate,
        vocab=int(config.vocab_size),
        gated=gated,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        biases=biases,
        norm_size=hidden * (1 if gated else 2),  # LayerNorm has a bias, RMSNorm has none
        norms=2,
        head_norms=2 * facts.head_dim if kind in {"qwen3", "olmo2"} else 0,
    )


def parameters(config: Any) -> int:
    """Number of parameters; tied embeddings count once."""
    s = shape_of(config)
    query, key = s.facts.heads * s.facts.head_dim, s.facts.kv_heads * s.facts.head_dim
    attention = s.facts.hidden * (2 * query + 2 * key)
    mlp = s.facts.hidden * s.intermediate * (3 if s.gated else 2)
    layer = attention + mlp + s.biases + s.norms * s.norm_size + s.head_norms
    return s.layers * layer + s.norm_size + s.vocab * s.facts.hidden * (1 if s.tied else 2)


def kv_bytes(config: Any, tokens: int, *, bits: float = 16, layers: int | None = None) -> int:
    """Bytes of the keys and values of `tokens` tokens, `bits` for each number, in `layers` layers (default: all)."""
    facts = facts_of_config(config)
    count = len(facts.layer_kinds) if layers is None else layers
    return math.ceil(2 * facts.kv_heads * facts.head_dim * count * tokens * bits / 8)


def prefill(
    config: Any,
    length: int,
    *,
    held: Held = None,
    bits: int = 16,
    kv_bits: float | None = None,
    logits: int = 1,
    causal: bool = True,
) -> dict[str, Cost]:
    """Cost of each operator, over all layers, of reading `length` tokens at once into an empty cache.

    `held` is the number of keys that a query sees at most, for all attention layers or one number each (default:
    all before it; a sliding layer never sees more than its window). `bits` is the width of weights and activations,
    `kv_bits` of the cache. `logits` is the number of positions whose logits are computed. `causal=False` counts the
    whole square, as kernels do that mask instead of skip.
    """
    s = shape_of(config)
    seen = _held(s, length, held)
    pairs = [pairs_scored(length, h) if causal else length * h for h in seen]
    return _costs(s, length, pairs, [length] * len(seen), bits, kv_bits, logits)


def decode(
    config: Any, length: int, *, held: Held = None, bits: int = 16, kv_bits: float | None = None
) -> dict[str, Cost]:
    """Cost of each operator of one step that computes the token at place `length`, which sees `length` keys or `held`.

    The sum over places 1 to n scores as many pairs as `prefill` of n. Parameters are those of `prefill`.
    """
    s = shape_of(config)
    seen = _held(s, length, held)
    return _costs(s, 1, seen, seen, bits, kv_bits, 1)


def pairs_scored(length: int, held: int) -> int:
    """Query-key pairs of a causal read of `length` tokens in which each query sees at most `held` keys."""
    held = min(length, held)
    return held * (held + 1) // 2 + (length - held) * held


def total(costs: Costs) -> Cost:
    """The sum over operators."""
    return sum(costs.values(), Cost())


def matmul_flops(costs: Costs) -> float:
    """FLOPs of matrix multiplications and attention only, the part that flop counters count."""
    return sum(cost.flops for name, cost in costs.items() if name in PROJECTIONS or name in ATTENTION)


def seconds(costs: Costs, roofline: Roofline, *, dtype: str = "bfloat16") -> float:
    """Estimated seconds: the sum over operators of the longer of computing and moving, at the measured ceilings.

    A lower estimate: the time between operators is not counted.
    """
    return sum(operator_seconds(costs, roofline, dtype=dtype).values())


def operator_seconds(costs: Costs, roofline: Roofline, *, dtype: str = "bfloat16") -> dict[str, float]:
    """Estimated seconds of each operator, see `seconds`."""
    rates = roofline.rates(dtype)
    result = {}
    for name, cost in costs.items():
        if name in ATTENTION:
            result[name] = max(cost.flops / rates.attention, cost.bytes / rates.keys)
        elif name in PROJECTIONS:
            result[name] = max(cost.flops / rates.matmul, cost.bytes / rates.weights)
        else:
            result[name] = cost.bytes / roofline.bandwidth
    return result


def attention_io(length: int, head_dim: int, fast: int) -> float:
    """Least numbers moved between slow and fast memory by exact attention of one head, up to a constant factor.

    `fast` is the size of the fast memory in numbers. N²d²/M when it holds d² numbers or more (tiled attention reaches
    it), N²d/√M when it does not (blocked matrix products reach it), and never less than reading the inputs and
    writing the output, 4Nd.
    """
    if min(length, head_dim, fast) < 1:
        raise BadInput("length, head_dim and fast must be at least 1")
    if fast >= head_dim**2:
        moved = length**2 * head_dim**2 / fast
    else:
        moved = length**2 * head_dim / math.sqrt(fast)
    return max(moved, 4.0 * length * head_dim)


def _held(s: Shape, length: int, held: Held) -> list[int]:
    """Keys that the last query sees, for each layer."""
    if length < 1:
        raise BadInput(f"the length must be at least 1, not {length}")
    each = [length] * s.layers if held is None else [held] * s.layers if isinstance(held, int) else list(held)
    if len(each) != s.layers or min(each) < 1:
        raise BadInput(f"held must be one number above 0, or one for each of the {s.layers} layers")
    window = s.facts.sliding_window or length
    return [min(length, h, window if kind == "sliding" else length) for h, kind in zip(each, s.facts.layer_kinds)]


def _costs(
    s: Shape, tokens: int, pairs: Sequence[int], keys: Sequence[int], bits: int, kv_bits: float | None, logits: int
) -> dict[str, Cost]:
    """`tokens` tokens go through; layer i scores `pairs[i]` pairs for each head and reads `keys[i]` cached tokens."""
    f, n, wide = s.facts, s.layers, bits / 8
    cached = (bits if kv_bits is None else kv_bits) / 8
    query, key = f.heads * f.head_dim, f.kv_heads * f.head_dim

    def linear(inputs: int, outputs: int, times: int, rows: int = tokens) -> Cost:
        moved = inputs * outputs + rows * (inputs + outputs)
        return Cost(times * 2 * rows * inputs * outputs, times * moved * wide)

    def elementwise(size: int, times: int, flops: int, passes: int) -> Cost:
        return Cost(times * tokens * size * flops, times * tokens * size * passes * wide)

    scored, read = sum(pairs), sum(keys)
    attention = Cost(2 * scored * query, read * key * cached + n * tokens * query * wide)
    costs = {
        "embedding": Cost(0, 2 * tokens * f.hidden * wide),
        "norms": elementwise(f.hidden, s.norms * n + 1, NORM_FLOPS, 2),
        "q_proj": linear(f.hidden, query, n),
        "k_proj": linear(f.hidden, key, n),
        "v_proj": linear(f.hidden, key, n),
        "rotary": elementwise(query + key, n, 3, 2) if f.rotary_dim else Cost(),
        "kv_write": Cost(0, n * tokens * 2 * key * cached),
        "attention_scores": attention,
        "softmax": Cost(SOFTMAX_FLOPS * scored * f.heads, 0),
        "attention_values": attention,
        "o_proj": linear(query, f.hidden, n),
        "mlp_gate": linear(f.hidden, s.intermediate, n) if s.gated else Cost(),
        "mlp_up": linear(f.hidden, s.intermediate, n),
        "activation": elementwise(s.intermediate, n, ACTIVATION_FLOPS + s.gated, 2 + s.gated),
        "mlp_down": linear(s.intermediate, f.hidden, n),
        "residuals": elementwise(f.hidden, 2 * n, 1, 3),
        "lm_head": linear(f.hidden, s.vocab, 1, rows=min(logits, tokens)),
    }
    return {name: cost for name, cost in costs.items() if cost != Cost()}
