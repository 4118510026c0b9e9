"""Tiny random models, one for every architecture under contract: two layers, float32, weights large enough to matter.

The initial weights are several times the usual size, so that attention is peaked and a wrong distance, mask or key
changes the logits far beyond rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 97
WINDOW = 512  # trained window of every tiny model
SLIDING = 32

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_GQA = {**_COMMON, "num_key_value_heads": 2}
_GEMMA = {**_GQA, "head_dim": 16, "sliding_window": SLIDING, "query_pre_attn_scalar": 16}


def _gemma3() -> Any:
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 100_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
    }
    kinds = ["sliding_attention", "full_attention"]
    return tf.Gemma3TextConfig(**_GEMMA, layer_types=kinds, rope_parameters=rope)


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**_GQA),
    "llama-mha": lambda: tf.LlamaConfig(**_COMMON),
    "qwen2": lambda: tf.Qwen2Config(**_GQA),
    "qwen3": lambda: tf.Qwen3Config(**_GQA, head_dim=16),
    "mistral": lambda: tf.MistralConfig(**_GQA, sliding_window=None),
    "mistral-sliding": lambda: tf.MistralConfig(**_GQA, sliding_window=SLIDING),
    "phi3": lambda: tf.Phi3Config(**_GQA),
    "phi3-partial": lambda: tf.Phi3Config(**{**_GQA, "hidden_size": 64}, partial_rotary_factor=0.5),
    "gemma2": lambda: tf.Gemma2Config(
        **_GEMMA,
        layer_types=["sliding_attention", "full_attention"],
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
    ),
    "gemma3": _gemma3,
    "gpt-neox": lambda: tf.GPTNeoXConfig(**{**_COMMON, "hidden_size": 64}, rotary_pct=0.5),
    "olmo2": lambda: tf.Olmo2Config(**_GQA),
    "cohere": lambda: tf.CohereConfig(**_GQA, logit_scale=0.5),
    "granite": lambda: tf.GraniteConfig(**_GQA, attention_multiplier=0.4, logits_scaling=2.0, residual_multiplier=0.8),
    "smollm3": lambda: tf.SmolLM3Config(**_GQA, no_rope_layers=[1, 0]),
}
ARCHITECTURES = tuple(name for name in CONFIGS if name != "smollm3")


@functools.cache
def model(name: str, dtype: torch.dtype = torch.float32, attention: str | None = None) -> PreTrainedModel:
    """The tiny model called `name`, the same weights at every call."""
    config = CONFIGS[name]()
    torch.manual_seed(sum(map(ord, name)))
    if name == "gemma2" and attention is None:
        attention = "eager"  # older transformers leave the softcap out of sdpa
    given = {"attn_implementation": attention} if attention else {}
    built = tf.AutoModelForCausalLM.from_config(config, **given).to(dtype).eval()
    assert isinstance(built, PreTrainedModel)
    built.generation_config.eos_token_id = None
    built.generation_config.pad_token_id = 0
    return built


def tokens(length: int, seed: int = 0, batch: int = 1) -> Tensor:
    """Random ids [batch, length], none of them the padding."""
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed + 1000 * length))


def plain_logits(of: PreTrainedModel, ids: Tensor, **kwargs: Any) -> Tensor:
    """Logits of the model as it is, in one pass."""
    with torch.no_grad():
        return of(ids, use_cache=False, **kwargs).logits


def tokenizer(texts: list[str], size: int, end: str) -> PreTrainedTokenizerFast:
    """Bytes and a few merges learned from `texts`: `size` tokens, of which `end` is special."""
    raw = Tokenizer(token_models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[end],
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=end)
