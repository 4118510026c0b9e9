"""A tiny model of bytes and a few merges, to read text with: for tests of prompt methods."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tiny
from lengthwise._reader import Reader, frame
from lengthwise.core.attach import Run
from lengthwise.documents import encode

WINDOW = 512
TEXT = " ".join(
    f"The {a} of {b} is {i}." for i, (a, b) in enumerate([("key", "red"), ("cat", "Oslo"), ("sum", "all")] * 20)
)
QUESTION = "What is the key of red?"


@functools.cache
def model(kv_heads: int = 2, layers: int = 4) -> LlamaForCausalLM:
    """Random weights, four query heads."""
    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=WINDOW,
        initializer_range=0.15,
        eos_token_id=None,
        bos_token_id=None,
    )
    built = LlamaForCausalLM(config).eval()
    built.generation_config.pad_token_id = 0
    return built


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of all of them."""
    return tiny.tokenizer([TEXT], 340, "<e>")


def reader(run: Run, text: str = TEXT, question: str = QUESTION) -> Reader:
    """A reader of `text` with one question."""
    ids, offsets = encode(text, tokenizer())
    return Reader(run, tokenizer(), [frame(question, tokenizer())], ids, None, None, None, "tiny", text, offsets)


def written(of: LlamaForCausalLM, ids: Tensor, count: int) -> str:
    """What the plain model writes after `ids` [n]."""
    out: Any = of.generate(
        ids[None], attention_mask=torch.ones_like(ids)[None], max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return tokenizer().decode(out[0, len(ids) :], skip_special_tokens=True).strip()
