"""Whether eviction here keeps what kvpress keeps, on one model and one text, and what both cost in CPU seconds.

    pip download --no-deps kvpress==0.5.5 && unzip -d FOLDER kvpress-0.5.5-*.whl
    python benchmarks/kvpress_agreement.py --kvpress FOLDER --length 480 --ratio 0.5

Both read the same tokens in one pass; kvpress prunes at its end, we before the first token that is written. `same` is
the share of the (layer, key head, position) that kvpress keeps and we keep too; for think-k, of key channels. Where two
tokens score the same, either may stay. `our_cpu_s` has the pass of that one token in it.

kvpress 0.5.5 asks for transformers below 5.3 and for packages that its presses do not use. Its presses are therefore
imported without its top-level package, and get the `cache_position` that newer versions no longer hand to attention
layers (its hook raises KeyError otherwise); nothing else of it is changed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pydoc_data.topics
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import lengthwise
from lengthwise import models
from lengthwise.core.frames import NATIVE
from lengthwise.errors import StackRefused

NEEDED = "snapkv knorm tova streaming_llm think".split()


def presses(folder: Path) -> Any:
    """The press classes by name."""
    for name in ("kvpress", "kvpress.presses"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    found = {}
    for name in NEEDED:
        found |= vars(importlib.import_module(f"kvpress.presses.{name}_press"))
    return types.SimpleNamespace(**found)


def plain(model: Any, ids: Tensor) -> DynamicCache:
    cache = DynamicCache()
    with torch.no_grad():
        model(ids, past_key_values=cache, logits_to_keep=1)
    return cache


def pressed(model: Any, ids: Tensor, press: Any) -> tuple[DynamicCache, float]:
    """The cache that a press leaves, and CPU seconds."""

    def position(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "cache_position": torch.arange(ids.shape[1])}

    hooks = [layer.self_attn.register_forward_pre_hook(position, with_kwargs=True) for layer in model.model.layers]
    begun = time.process_time()
    try:
        with press(model):
            cache = plain(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    return cache, time.process_time() - begun


def ours(model: Any, ids: Tensor, stack: str) -> tuple[list[Tensor], Any, float]:
    """Positions [Hkv, m] that every layer holds of the text after one more token; the session; CPU seconds."""
    with lengthwise.stack(stack).on(model) as run, torch.no_grad():
        run.block = max(run.block, ids.shape[1])  # so that the text is one block, as it is for kvpress
        cache = run.cache()
        begun = time.process_time()
        model(ids, past_key_values=cache, logits_to_keep=1)
        model(ids[:, -1:], past_key_values=cache)
        spent = time.process_time() - begun
    return [slot.rows[0].head_positions[:, :-1] for slot in cache.layers], cache, spent


def kept(cache: DynamicCache, whole: DynamicCache) -> list[list[set[int]]]:
    """Positions by layer and head of the keys that are left: each is found by its value among the whole."""
    out = []
    for layer, all_of in zip(cache.layers, whole.layers, strict=True):
        heads = []
        for some, keys in zip(layer.keys[0], all_of.keys[0], strict=True):
            near = torch.cdist(some, keys, compute_mode="donot_use_mm_for_euclid_dist")
            assert float(near.amin(1).max()) < 1e-3
            heads.append(set(near.argmin(1).tolist()))
        out.append(heads)
    return out


def channels(cache: DynamicCache) -> list[list[set[int]]]:
    """Channels by layer and head that are not zero everywhere."""
    return [[set(k.abs().sum(0).nonzero()[:, 0].tolist()) for k in layer.keys[0]] for layer in cache.layers]


def share(theirs: list[list[set[int]]], mine: list[list[set[int]]]) -> float:
    pairs = [pair for layers in zip(theirs, mine, strict=True) for pair in zip(*layers, strict=True)]
    return sum(len(a & b) for a, b in pairs) / sum(len(a) for a, _ in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvpress", type=Path, required=True, help="folder that holds the package `kvpress`")
    parser.add_argument("--model", default="pocket-reader")
    parser.add_argument("--length", type=int, default=480)
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the tokens (think-k: channels) to drop")
    args = parser.parse_args()
    of, (model, tokenizer) = presses(args.kvpress), models.load(args.model)
    model.float()  # so that keys can be told apart
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[k] for k in sorted(topics))
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[:, : args.length]
    n = ids.shape[1]
    held = max(1, int(n * (1 - args.ratio)))
    cases = [
        ("knorm", of.KnormPress(args.ratio), f"knorm:budget={held},skip=0"),
        ("snapkv", of.SnapKVPress(args.ratio), f"snapkv:budget={held},window=64,kernel=5,pool=mean"),
        ("tova", of.TOVAPress(args.ratio), f"tova:budget={held}"),
        ("streaming-llm", of.StreamingLLMPress(args.ratio), f"streaming-llm:sinks=4,window={held - 3}"),
        ("think-k", of.ThinKPress(args.ratio), f"think-k:ratio={args.ratio},recent=0"),
    ]
    pressed(model, ids, of.KnormPress(args.ratio))  # warm up
    ours(model, ids, "dense")
    whole = plain(model, ids)
    for name, press, stack in cases:
        try:
            positions, session, my_time = ours(model, ids, stack)
        except StackRefused as refused:  # in-cache positions beyond the trained window
            print(json.dumps({"method": name, "refused": str(refused)}))
            continue
        cache, their_time = pressed(model, ids, press)
        if name == "think-k":
            codecs = [slot.rows[0].keys[NATIVE].key_codec for slot in session.layers]
            theirs, mine = channels(cache), [[set(row) for row in codec.kept.tolist()] for codec in codecs]
        else:
            theirs, mine = kept(cache, whole), [[set(row) for row in layer.tolist()] for layer in positions]
        row = {
            "method": name, "stack": stack, "length": n, "same": round(share(theirs, mine), 4),
            "kvpress": len(theirs[0][0]), "ours": len(mine[0][0]),
            "kvpress_cpu_s": round(their_time, 3), "our_cpu_s": round(my_time, 3),
        }  # fmt: skip
        print(json.dumps(row))


if __name__ == "__main__":
    main()
