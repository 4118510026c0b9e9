"""Decode at 8k tokens on SmolLM2: CPU time a token against stock transformers' DynamicCache, in one run, A B A B.

python benchmarks/decode.py --length 8000 --tokens 16 --rounds 4
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import statistics
import time

import torch
from torch import Tensor
from transformers import DynamicCache

import lengthwise
from lengthwise import models


@torch.no_grad()
def decode(model, cache, token: Tensor, count: int) -> tuple[list[int], list[float]]:
    """(tokens, CPU milliseconds of each step), greedy."""
    out, times = [], []
    for _ in range(count):
        begun = time.process_time()
        token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
        times.append((time.process_time() - begun) * 1e3)
        out.append(int(token))
    return out, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = models.load("smollm2")
    text = "\n\n".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics))
    ids = tokenizer(text, return_tensors="pt").input_ids[:, : args.length]
    with torch.no_grad(), lengthwise.stack("dense").on(model) as run:
        ours = run.prefill(ids)
        stock = DynamicCache()
        model.base_model(ids[:, :-1], past_key_values=stock)
        times: dict[str, list[float]] = {"lengthwise": [], "transformers": []}
        written: dict[str, list[int]] = {"lengthwise": [], "transformers": []}
        for _ in range(args.rounds):
            for name, cache in (("lengthwise", ours), ("transformers", stock)):
                token = torch.tensor([[written[name][-1]]]) if written[name] else ids[:, -1:]
                got, spent = decode(model, cache, token, args.tokens)
                written[name] += got
                times[name] += spent
    medians = {name: statistics.median(values) for name, values in times.items()}
    same = written["lengthwise"] == written["transformers"]
    print(f"after {args.length:,} tokens, {args.threads} thread(s), median CPU ms a token, {args.rounds} rounds")
    print({name: round(value, 1) for name, value in medians.items()})
    print(f"ratio {medians['lengthwise'] / medians['transformers']:.2f}; tokens identical: {same}")


if __name__ == "__main__":
    main()
