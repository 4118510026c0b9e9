"""Pass keys and fluency far past SmolLM2's window, one row for each trial, appended to a JSON-lines file.

    python benchmarks/passkey.py --length 16000 --filler repetitive --out passkey.jsonl
    python benchmarks/passkey.py --fluency 32768 --out fluency.jsonl
    python benchmarks/passkey.py --table passkey.jsonl

A row that is in the file already is not run again. The key is found when the five digits are the model's first
choice one by one (teacher-forced); `nlp` is -ln p of the whole key.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

import lengthwise
from lengthwise import models

STACKS = [
    "dense",
    "lm-infinite:sinks=10,window=4096",
    "streaming-llm",
    "infllm:local=2048,top=8",
    "infllm:local=2048,top=8,rule=max",
]
REPETITIVE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
QUESTION = "\nWhat is the pass key? The pass key is"


def real_text() -> str:
    """The standard library's help topics, in order of their names."""
    return "\n\n".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics))


def build(tokenizer, length: int, filler: str, depth: float, seed: int) -> tuple[Tensor, Tensor]:
    """(prompt [1, length], the key's tokens): the sentence stands at `depth` of the filler, the question at the end."""
    draw = random.Random(f"{filler}-{depth}-{seed}")
    key = str(draw.randrange(10000, 99999))

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    needle = ids(f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n")
    question = ids(QUESTION)
    room = length - len(needle) - len(question)
    if filler == "repetitive":
        once = ids(REPETITIVE)
        text = (once * (room // len(once) + 1))[:room]
    else:
        text = ids(real_text())
        start = draw.randrange(len(text) - room)
        text = text[start : start + room]
    at = int(depth * room)
    return torch.tensor([text[:at] + needle + text[at:] + question]), torch.tensor(ids(" " + key))


@torch.no_grad()
def trial(model, stack: str, prompt: Tensor, key: Tensor) -> dict:
    with lengthwise.stack(stack).on(model) as run:
        cache = run.cache(prompt.shape[1] + len(key))
        hidden: list[Tensor] = []
        begun = time.process_time()
        logits = []
        full = torch.cat([prompt, key[None]], 1)
        for i in range(len(key)):  # the prompt in chunks, then the key a token at a time
            for _ in run.feed(full[:, : prompt.shape[1] + i], cache, hidden=hidden):
                hidden[:] = hidden[-1:]
            logits.append(run.logits(hidden[-1][0, -1:]))
    logp = torch.log_softmax(torch.cat(logits).float(), -1)
    return {
        "found": bool((logp.argmax(-1) == key).all()),
        "nlp": round(float(-logp.gather(1, key[:, None]).sum()), 3),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "peak_kv_bytes": run.ledger.peak_kv_bytes,
        "pairs_of_dense": round(run.ledger.pairs / run.ledger.dense_pairs, 4),
    }


def fluency(model, tokenizer, stack: str, length: int, tail: int = 1024) -> dict:
    ids = torch.tensor([tokenizer(real_text(), add_special_tokens=False)["input_ids"]])[:, :length]
    if stack == "dense at 4k":
        stack, ids = "dense", ids[:, -4096:]
    begun = time.process_time()
    with lengthwise.stack(stack).on(model) as run:
        loss = run.losses(ids)[-tail:].mean()
    return {
        "loss": round(float(loss), 4),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "peak_kv_bytes": run.ledger.peak_kv_bytes,
        "pairs_of_dense": round(run.ledger.pairs / run.ledger.dense_pairs, 4),
    }


def fluency_table(rows: list[dict]) -> str:
    reference = next(r["loss"] for r in rows if r["stack"] == "dense at 4k")
    out = ["| stack | loss | against 4k | KV, peak | pairs of dense | CPU-s |", "|---|---|---|---|---|---|"]
    for r in rows:
        change, kv = r["loss"] / reference - 1, r["peak_kv_bytes"] / 1e6
        cells = f"{r['loss']:.3f} | {change:+.1%} | {kv:.0f} MB | {r['pairs_of_dense']:.0%} | {r['cpu_seconds']:.0f}"
        out.append(f"| `{r['stack']}` | {cells} |")
    return "\n".join(out)


def table(path: Path) -> str:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if "loss" in rows[0]:
        return fluency_table(rows)
    groups: dict[tuple, list] = defaultdict(list)
    for row in rows:
        groups[row["length"], row["filler"], row["stack"]].append(row)
    out = [
        "| length | filler | stack | found (10/50/90 %) | −ln p, median | CPU-s, median | KV, peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for (length, filler, stack), found in sorted(groups.items()):
        by_depth = [[r["found"] for r in found if r["depth"] == d] for d in (0.1, 0.5, 0.9)]
        counts = " / ".join(f"{sum(d)}/{len(d)}" for d in by_depth)
        total = f"**{sum(r['found'] for r in found)}/{len(found)}** ({counts})"
        nlp, cpu = (sorted(r[k] for r in found)[len(found) // 2] for k in ("nlp", "cpu_seconds"))
        kv = max(r["peak_kv_bytes"] for r in found) / 1e6
        out.append(f"| {length:,} | {filler} | `{stack}` | {total} | {nlp:.1f} | {cpu:.0f} | {kv:.0f} MB |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=16000)
    parser.add_argument("--filler", choices=["repetitive", "real"], action="append")
    parser.add_argument("--stack", action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fluency", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("passkey.jsonl"))
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    if args.table:
        print(table(args.table))
        return
    torch.set_num_threads(args.threads)
    model, tokenizer = models.load("smollm2")
    done = set(args.out.read_text().splitlines()) if args.out.exists() else set()
    known = [
        {k: v for k, v in json.loads(line).items() if k in ("stack", "length", "filler", "depth", "seed")}
        for line in done
    ]
    stacks = args.stack or STACKS
    jobs: list[dict] = []
    if args.fluency:
        jobs = [{"stack": s, "length": args.fluency} for s in ["dense at 4k", *stacks]]
    else:
        for seed in range(args.seeds):
            for filler in args.filler or ["repetitive", "real"]:
                for depth in (0.1, 0.5, 0.9):
                    jobs += [
                        {"stack": s, "length": args.length, "filler": filler, "depth": depth, "seed": seed}
                        for s in stacks
                    ]
    for job in jobs:
        if job in known:
            continue
        if args.fluency:
            result = fluency(model, tokenizer, job["stack"], job["length"])
        else:
            prompt, key = build(tokenizer, job["length"], job["filler"], job["depth"], job["seed"])
            result = trial(model, job["stack"], prompt, key)
        with args.out.open("a") as file:
            file.write(json.dumps({**job, **result}) + "\n")
        print({**job, **result}, flush=True)


if __name__ == "__main__":
    main()
