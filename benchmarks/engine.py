"""What the engine costs on SmolLM2, beside stock transformers: CPU seconds, medians in one process, A B A B.

    python benchmarks/engine.py prefill --lengths 512,2k,8k --stack dense --stack block-sparse
    python benchmarks/engine.py decode --lengths 2k,8k --stack dense
    python benchmarks/engine.py attention --lengths 8k,16k

`prefill` reads real text and gives, beside the cost, the loss of the last tokens (stock: the plain model). `decode`
goes on greedily after it. `attention` is the dense causal kernel alone against torch's scaled_dot_product_attention,
with the share of the matmul rate that `torch.nn.functional.linear` reaches on 2048^3.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention
from transformers import DynamicCache

import lengthwise
from lengthwise import kernels, models
from lengthwise.core import compat
from lengthwise.core.spec import parse_count

STOCK = "transformers sdpa"
LAST = 512  # tokens whose loss is shown


def text(tokenizer: Any, length: int) -> Tensor:
    topics = pydoc_data.topics.topics
    whole = "\n\n".join(topics[k] for k in sorted(topics))
    return tokenizer(whole, return_tensors="pt", verbose=False).input_ids[:, :length]


def loss(model: Any, hidden: Tensor, ids: Tensor) -> float:
    """Mean loss of the last LAST tokens; hidden [C, H] are the states of the tokens before the last ones."""
    count = min(LAST, hidden.shape[0])
    logits = compat.logits_of(model, hidden[-count:]).float()
    return float(cross_entropy(logits, ids[0, -count:]))


def read(model: Any, ids: Tensor, stack: str, chunk: int) -> tuple[float, float]:
    """(CPU seconds of the decoder over all but the last token, loss of the last tokens)."""
    inputs, run_of = ids[:, :-1], lengthwise.stack(stack).on(model) if stack != STOCK else nullcontext()
    with torch.no_grad(), run_of as run:
        begun = time.process_time()
        if run is None:
            states = model.base_model(inputs, past_key_values=DynamicCache()).last_hidden_state[0]
        else:
            hidden: list[Tensor] = []
            cache = run.cache(ids.shape[1])
            for _ in run.feed(inputs, cache, chunk=chunk, hidden=hidden):
                del hidden[: -(LAST // chunk + 2)]
            states = torch.cat(hidden, 1)[0]
        spent = time.process_time() - begun
    return spent, loss(model, states, ids)


def prefill(args: argparse.Namespace) -> None:
    model, tokenizer = models.load("smollm2")
    read(model, text(tokenizer, 600), STOCK, args.chunk)  # warm up
    for length in args.lengths:
        ids = text(tokenizer, length)
        found: dict[str, list[tuple[float, float]]] = {stack: [] for stack in (STOCK, *args.stack)}
        for _ in range(args.rounds):
            for stack, values in found.items():
                values.append(read(model, ids, stack, args.chunk))
        seconds = {stack: statistics.median(v[0] for v in values) for stack, values in found.items()}
        for stack, values in found.items():
            show("prefill", length, stack, seconds[stack], seconds[STOCK], loss=round(values[0][1], 4))


def decode(args: argparse.Namespace) -> None:
    model, tokenizer = models.load("smollm2")
    for length in args.lengths:
        ids = text(tokenizer, length)
        with torch.no_grad(), lengthwise.stack(args.stack[0]).on(model) as run:
            caches = {STOCK: DynamicCache(), args.stack[0]: run.prefill(ids)}
            model.base_model(ids[:, :-1], past_key_values=caches[STOCK])
            times: dict[str, list[float]] = {name: [] for name in caches}
            written: dict[str, list[int]] = {name: [int(ids[0, -1])] for name in caches}
            for _ in range(args.rounds):
                for name, cache in caches.items():
                    for _ in range(args.tokens):
                        begun = time.process_time()
                        logits = model(torch.tensor([[written[name][-1]]]), past_key_values=cache).logits
                        times[name].append(time.process_time() - begun)
                        written[name].append(int(logits[0, -1].argmax()))
        middle = {name: statistics.median(values) for name, values in times.items()}
        same = written[STOCK] == written[args.stack[0]]
        for name in caches:
            show("decode", length, name, middle[name], middle[STOCK], same_tokens=same)


def attention(args: argparse.Namespace) -> None:
    dtype = getattr(torch, args.dtype)
    heads, kv_heads, dim = 9, 3, 64
    a = torch.randn(2048, 2048).to(dtype)
    peak = 2 * 2048**3 / median(lambda: linear(a, a), 5)
    for length in args.lengths:
        q = torch.randn(heads, length, dim).to(dtype)
        k, v = (torch.randn(kv_heads, length, dim).to(dtype) for _ in range(2))
        at = torch.arange(length)
        wide = [x.repeat_interleave(heads // kv_heads, 0)[None] for x in (k, v)]
        runs: dict[str, Callable[[], Any]] = {
            "torch sdpa": lambda q=q, w=wide: scaled_dot_product_attention(q[None], *w, is_causal=True),
            "lengthwise": lambda q=q, k=k, v=v, at=at: kernels.attend(
                (q,), (k,), v, q_positions=at, k_positions=at, scale=dim**-0.5
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, call in runs.items():
                times[name].append(median(call, 1))
        work = 2 * 2 * heads * dim * length * (length + 1) / 2
        middle = {name: statistics.median(values) for name, values in times.items()}
        for name, seconds in middle.items():
            rate = work / seconds
            show(
                "attention",
                length,
                name,
                seconds,
                middle["torch sdpa"],
                gflops=round(rate / 1e9),
                of_matmul=round(rate / peak, 2),
            )


def median(call: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def show(what: str, length: int, name: str, seconds: float, stock: float, **more: Any) -> None:
    row = {
        "what": what,
        "length": length,
        "name": name,
        "cpu_seconds": round(seconds, 4),
        "times_faster": round(stock / seconds, 2),
    }
    print(json.dumps(row | more), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prefill", "decode", "attention"])
    parser.add_argument("--lengths", type=lambda t: [parse_count(x) for x in t.split(",")], default=[2048, 8192])
    parser.add_argument("--stack", action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16, help="decoded in every round")
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", help="of the attention alone")
    args = parser.parse_args()
    args.stack = args.stack or ["dense"]
    torch.set_num_threads(args.threads)
    print(json.dumps({"kernels": kernels.describe(), "threads": args.threads, "rounds": args.rounds}))
    {"prefill": prefill, "decode": decode, "attention": attention}[args.what](args)


if __name__ == "__main__":
    main()
