"""What the engine costs on SmolLM2, beside transformers and llama.cpp: CPU seconds, medians, one process, A B A B.

    python benchmarks/engine.py prefill --lengths 512,2k,8k --stack dense --stack block-sparse --gguf smollm2-f16.gguf
    python benchmarks/engine.py decode --lengths 2k,8k --stack dense
    python benchmarks/engine.py decode --lengths 128k --filled --stack dense --stack block-sparse --no-stock
    python benchmarks/engine.py attention --lengths 8k,16k

`prefill` reads real text and gives, beside the cost, the loss of the last tokens (stock: the plain model) and the peak
of resident memory during it (Linux). `decode` goes on greedily after it, or after `--filled` caches of random keys
and values, which cost no prefill: what is written then means nothing, the time does. `attention` is the dense causal
kernel alone against torch's scaled_dot_product_attention, with the share of the matmul rate that
`torch.nn.functional.linear` reaches on 2048^3. `--no-stock` leaves transformers out, where it would take hours.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention
from transformers import DynamicCache

import lengthwise
from lengthwise import kernels, models
from lengthwise.core import compat
from lengthwise.core.spec import parse_count
from llama_peer import LlamaCpp

STOCK = "transformers sdpa"
LAST = 512  # tokens whose loss is shown


def text(tokenizer: Any, length: int) -> Tensor:
    topics = pydoc_data.topics.topics
    whole = "\n\n".join(topics[k] for k in sorted(topics))
    ids = tokenizer(whole, return_tensors="pt", verbose=False).input_ids
    return ids.repeat(1, -(-length // ids.shape[1]))[:, :length]


def loss(model: Any, hidden: Tensor, ids: Tensor) -> float:
    """Mean loss of the last LAST tokens; hidden [C, H] are the states of the tokens before the last ones."""
    count = min(LAST, hidden.shape[0])
    logits = compat.logits_of(model, hidden[-count:]).detach().float()
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


def peak(reset: bool = False) -> float:
    """Gigabytes that were resident at most since the last reset; 0 where the system does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6
    except OSError:
        return 0.0


def readers(args: argparse.Namespace) -> list[str]:
    """Stock transformers and the stacks."""
    return [*([] if args.no_stock else [STOCK]), *args.stack]


def prefill(args: argparse.Namespace) -> None:
    model, tokenizer = models.load("smollm2")
    read(model, text(tokenizer, 600), STOCK, args.chunk)  # warm up
    for length in args.lengths:
        ids = text(tokenizer, length)
        peers = [LlamaCpp(path, length) for path in args.gguf]
        calls: dict[str, Callable[[], tuple[float, float]]] = {
            name: lambda name=name: read(model, ids, name, args.chunk)  # noqa: B023
            for name in readers(args)
        }
        calls |= {peer.name: lambda peer=peer: peer.read(ids, LAST) for peer in peers}  # noqa: B023
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        resident: dict[str, float] = {}
        for _ in range(args.rounds):
            for name, call in calls.items():
                peak(reset=True)
                found[name].append(call())
                resident[name] = round(peak(), 2)
        middle = {name: statistics.median(v[0] for v in values) for name, values in found.items()}
        for name, values in found.items():
            more = {"loss": round(values[0][1], 4), "peak_gb": resident[name]}
            show("prefill", length, name, middle[name], middle.get(STOCK), **more)
        for peer in peers:
            peer.close()


def decode(args: argparse.Namespace) -> None:
    model, tokenizer = models.load("smollm2")
    for length in args.lengths:
        ids = text(tokenizer, length)
        times: dict[str, list[float]] = {}
        written: dict[str, list[int]] = {}
        for name in readers(args):
            times[name], written[name] = steps(model, ids, name, args.rounds * args.tokens, args.filled)
        for path in args.gguf:
            peer = LlamaCpp(path, length + args.rounds * args.tokens)
            times[peer.name], written[peer.name] = peer.decode(ids, args.rounds * args.tokens)
            peer.close()
        middle = {name: statistics.median(values) for name, values in times.items()}
        first = next(iter(written))
        for name in times:
            same = sum(a == b for a, b in zip(written[name], written[first], strict=True)) / len(written[first])
            show("decode", length, name, middle[name], middle.get(STOCK), same_tokens=round(same, 2))


def random_keys(model: Any, length: int) -> Iterator[tuple[int, int, list[Tensor]]]:
    """(start, stop, [keys, values] of [H, stop - start, D]) over `length` tokens."""
    facts, draw = compat.model_facts(model), torch.Generator().manual_seed(0)
    for a in range(0, length, 1024):
        b = min(length, a + 1024)
        shape = facts.kv_heads, b - a, facts.head_dim
        yield a, b, [torch.randn(shape, generator=draw).to(model.dtype) for _ in range(2)]


def filled(run: Any, length: int) -> Any:
    """A cache of `length` random keys and values in every layer."""
    cache = run.cache(length + 256)
    for slot in cache.layers:
        for a, b, (k, v) in random_keys(run.model, length):
            if a == 0:
                slot.lazy_initialization(k[None], v[None])
            slot.rows[0].append(dict.fromkeys(slot.rows[0].keys, k), v, torch.arange(a, b))
            slot.rows[0].settle()
        slot.seen = length
    cache.pads = [0]
    return cache


def filled_stock(model: Any, length: int) -> Any:
    """The same for stock transformers."""
    cache = DynamicCache()
    for layer in range(model.config.num_hidden_layers):
        keys, values = zip(*(kv for *_, kv in random_keys(model, length)))
        cache.update(torch.cat(keys, 1)[None], torch.cat(values, 1)[None], layer)
    return cache


def steps(model: Any, ids: Tensor, stack: str, count: int, fill: bool = False) -> tuple[list[float], list[int]]:
    """CPU seconds of each of `count` greedy steps after `ids`, or as many random tokens, and the tokens."""
    run_of = lengthwise.stack(stack).on(model) if stack != STOCK else nullcontext()
    times, words = [], []
    with torch.no_grad(), run_of as run:
        if run is None:
            cache: Any = filled_stock(model, ids.shape[1] - 1) if fill else DynamicCache()
            if not fill:
                model.base_model(ids[:, :-1], past_key_values=cache)
        else:
            cache = filled(run, ids.shape[1] - 1) if fill else run.prefill(ids)
        word = int(ids[0, -1])
        for _ in range(count):
            begun = time.process_time()
            logits = model(torch.tensor([[word]]), past_key_values=cache).logits
            times.append(time.process_time() - begun)
            word = int(logits[0, -1].argmax())
            words.append(word)
    return times, words


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


def show(what: str, length: int, name: str, seconds: float, stock: float | None, **more: Any) -> None:
    row = {
        "what": what,
        "length": length,
        "name": name,
        "cpu_seconds": round(seconds, 4),
        "times_faster": round(stock / seconds, 2) if stock else None,
    }
    print(json.dumps(row | more), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prefill", "decode", "attention"])
    parser.add_argument("--lengths", type=lambda t: [parse_count(x) for x in t.split(",")], default=[2048, 8192])
    parser.add_argument("--stack", action="append")
    parser.add_argument("--gguf", action="append", default=[], help="a peer: llama.cpp with this file")
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--filled", action="store_true", help="decode after random keys and values, without a prefill")
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
