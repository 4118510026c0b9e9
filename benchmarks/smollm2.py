"""Stacks beyond the window of SmolLM2 (8,192): facts found, loss, and the cost of prefill and decode, in one reading.

    python benchmarks/smollm2.py --lengths 8k,16k,32k,64k
    python benchmarks/smollm2.py --lengths 8k --stack dense --stack "yarn:factor={f} + block-sparse"

The text is real (the help topics of Python, from the beginning), with six made-up facts spread over it. It is read
once; then, each from there, the sentence of a fact is begun again and gone on with, greedily: `found` is the share of
facts that come. `loss` is that of the last 512 tokens read. CPU seconds of one thread; `decode_ms` is the median of a
token. `{f}` in a stack is the length in windows, `{g}` the smallest power of two that is no less. One JSON line a stack
and length; those in `--out` are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import lengthwise
from engine import loss, peak
from lengthwise import models
from lengthwise.core.saved import fork
from lengthwise.core.spec import parse_count

WINDOW, TOKENS = 8192, 10  # the model's; written for a fact
FACTS = {
    "The lighthouse keeper of Brannock Head is called": "Tamsin Okoro",
    "The treaty of Vellmar was signed on": "14 March 2031",
    "The annual budget of the Quill Museum is": "3.7 million crowns",
    "The password of the old server room is": "heliotrope",
    "The red ferry to Osterhaven leaves at": "6:45",
    "The pass key of the vault is": "41552",
}  # how its sentence begins -> how it goes on
STACKS = [
    "dense",
    "yarn:factor={f}",
    "yarn:factor={f} + block-sparse",
    "yarn:factor={f} + quest",
    "yarn:factor={f} + int8",
    "yarn:factor={f} + snapkv:budget=4096",
    "self-extend:window=4096,group={g}",
    "lm-infinite:sinks=10,window=4096",
    "streaming-llm:window=4092",
    "infllm:rule=max",
    "tokenselect",
]


def text(tokenizer: Any, length: int) -> torch.Tensor:
    """`length` tokens [1, N] with the facts in equal distances."""
    topics = pydoc_data.topics.topics
    words = "\n\n".join(topics[k] for k in sorted(topics))
    plain = tokenizer(words, verbose=False).input_ids
    told = [tokenizer(f"\n{begins} {ends}.\n").input_ids for begins, ends in FACTS.items()]
    each = (length - sum(map(len, told))) // (len(told) + 1)
    ids: list[int] = []
    for number, sentence in enumerate(told):
        ids += plain[number * each : (number + 1) * each] + sentence
    ids += plain[len(told) * each : len(told) * each + length - len(ids)]
    return torch.tensor([ids])


@torch.no_grad()
def measure(model: Any, tokenizer: Any, stack: str, length: int) -> dict[str, Any]:
    ids = text(tokenizer, length)
    times, found = [], 0
    peak(reset=True)
    with lengthwise.stack(stack).on(model) as run:
        cache, hidden = run.cache(length + 64), []
        begun = time.process_time()
        for _ in run.feed(ids[:, :-1], cache, hidden=hidden):
            del hidden[:-2]
        prefill = time.process_time() - begun
        last = loss(model, torch.cat(hidden, 1)[0], ids)
        for begins, ends in FACTS.items():
            branch = fork(cache)
            question = tokenizer(f"\n{begins}", return_tensors="pt").input_ids
            logits = model(torch.cat([ids[:, -1:], question], 1), past_key_values=branch).logits
            said = []
            for _ in range(TOKENS):
                said.append(int(logits[0, -1].argmax()))
                begun = time.process_time()
                logits = model(torch.tensor([said[-1:]]), past_key_values=branch).logits
                times.append(time.process_time() - begun)
            found += ends in tokenizer.decode(said)
        return {
            "found": round(found / len(FACTS), 2),
            "loss": round(last, 3),
            "prefill_seconds": round(prefill, 1),
            "decode_ms": round(1000 * statistics.median(times), 1),
            "kv_mb": round(run.ledger.peak_kv_bytes / 1e6),
            "peak_gb": round(peak(), 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=lambda t: [parse_count(x) for x in t.split(",")], default=[8192, 32768])
    parser.add_argument("--stack", action="append")
    parser.add_argument("--out", type=Path, help="JSONL that grows")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = models.load("smollm2")
    there = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out and args.out.exists() else []
    done = {(row["stack"], row["tokens"]) for row in there}
    for length in args.lengths:
        windows = math.ceil(length / WINDOW)
        for template in args.stack or STACKS:
            stack = template.format(f=windows, g=2 ** math.ceil(math.log2(windows)))
            if (stack, length) in done:
                continue
            row = {"stack": stack, "tokens": length} | measure(model, tokenizer, stack, length)
            print(json.dumps(row), flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
