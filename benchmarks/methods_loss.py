"""Loss of pocket-reader beyond its window under several stacks: does a stack stay fluent?

    python benchmarks/methods_loss.py --length 1k,2k,4k,8k --stack "yarn:factor=F" --stack dual-chunk

Mean loss in nats of the last 256 tokens of generated stories, over --texts of them, and CPU seconds. F in a stack is
the length over the window, at least 1; G the power of two by which groups of self-extend with window=256 reach it.
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import fmean

import torch

import lengthwise
from lengthwise import auto, models
from lengthwise.bench.filler import filler
from lengthwise.core import compat
from lengthwise.core.spec import parse_count

STACKS = (
    "dense",
    "yarn:factor=F",
    "yarn:factor=F + block-sparse",
    "dual-chunk",
    "self-extend:group=G,window=256",
    "rerope:window=256",
    "lm-infinite:sinks=10,window=502",
    "tokenselect:init=16,local=128,top=256,chunk=64",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", default="1k,2k,4k,8k")
    parser.add_argument("--stack", action="append")
    parser.add_argument("--texts", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = models.load("pocket-reader")
    tokenizer.model_max_length = int(1e30)
    facts = compat.model_facts(model)
    lengths = [parse_count(n) for n in args.length.split(",")]
    texts = []
    for seed in range(args.texts):
        words = "".join(filler("story", random.Random(seed)).take(max(lengths) // 4))
        texts.append(torch.tensor(tokenizer(words, add_special_tokens=False)["input_ids"])[: max(lengths) + 1])
    print("| stack | " + " | ".join(f"{n:,}" for n in lengths) + " |\n|---|" + "---:|" * len(lengths))
    for stack in args.stack or STACKS:
        cells = []
        for length in lengths:
            factor, group = max(1.0, length / facts.window), auto.grouping(facts, length)[0]
            begun, losses = time.process_time(), []
            for ids in texts:
                text = stack.replace("=F", f"={factor}").replace("=G", f"={group}")
                with lengthwise.stack(text).on(model) as run, torch.no_grad():
                    losses.append(float(run.losses(ids[None, : length + 1])[-256:].mean()))
            cells.append(f"{fmean(losses):.3f} ({(time.process_time() - begun) / len(texts):.2f} s)")
        print(f"| `{stack}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
