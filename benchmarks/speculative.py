"""Speculative decoding: a head that decides how much is drafted, against every fixed length.

    python scripts/train_acceptance.py --out runs/draft
    python benchmarks/speculative.py --draft runs/draft --problems 400

Every policy writes the same problems at temperature 1. For each: target calls, draft calls and discarded candidates for
every token, the share of right answers (it must not depend on the policy), and the cost in target calls a token when a
call of the draft costs c of the target's. The last lines say, for each c, the best fixed length and the best threshold,
and what the first call of each model takes here. Calls are counted, not timed: they hold on any machine.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lengthwise import models
from lengthwise.bench import problems
from lengthwise.thinking.decoding.acceptance import AcceptanceHead
from lengthwise.thinking.decoding.speculative import generate

RATIOS = (0.02, 0.05, 0.1, 0.2, 0.4)
MOST = 200


def seconds(model: Any, count: int = 50) -> float:
    """Of a call on one token behind 64, the median."""
    ids, times = torch.zeros(1, 65, dtype=torch.long), []
    with torch.no_grad():
        for _ in range(count):
            cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
            begun = time.perf_counter()
            model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
            times.append(time.perf_counter() - begun)
    return sorted(times)[count // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="pocket-reasoner")
    parser.add_argument("--draft", type=Path, required=True, help="what scripts/train_acceptance.py wrote")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--lengths", type=int, nargs="*", default=list(range(9)))
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98])
    parser.add_argument("--least", type=int, default=1, help="fewest candidates of a round with a head")
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    torch.set_num_threads(1)
    target, tokenizer = models.load(args.target, dtype="float32")
    draft = AutoModelForCausalLM.from_pretrained(args.draft / "draft", dtype=torch.float32).eval()
    head = AcceptanceHead.load(args.draft / "head.safetensors")
    draw = random.Random(args.seed)
    kinds = list(problems.KINDS)
    asked = [
        problems.make(k := kinds[i % 4], draw.randint(1, problems.KINDS[k][1]), draw) for i in range(args.problems)
    ]
    ends = (1, tokenizer.encode("\n", add_special_tokens=False)[0])
    policies: list[tuple[str, dict[str, Any]]] = [(f"length {k}", {"length": k}) for k in args.lengths]
    policies += [
        (f"threshold {t}", {"head": head, "threshold": t, "bounds": (args.least, 20)}) for t in args.thresholds
    ]
    rows = []
    for name, options in policies:
        total, right = dict.fromkeys(("tokens", "target_calls", "draft_calls", "drafted", "accepted"), 0), 0
        for i, problem in enumerate(asked):
            text = f"\nQuestion: {problem.question} Answer: <think>"
            ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
            new, receipt = generate(target, draft, ids, most=MOST, ends=ends, seed=args.seed + i, **options)
            for key in total:
                total[key] += getattr(receipt, key)
            said = re.search(r"</think>\s*([0-9 ]+)", tokenizer.decode(new))
            right += said is not None and said[1].strip() == problem.answer
        n, share = total["tokens"], right / len(asked)
        row = {
            "policy": name,
            "tokens": n,
            "target_per_token": round(total["target_calls"] / n, 4),
            "draft_per_token": round(total["draft_calls"] / n, 4),
            "discarded_per_token": round((total["drafted"] - total["accepted"]) / n, 4),
            "accepted": round(total["accepted"] / max(1, total["drafted"]), 3),
            "right": round(share, 3),
            "right_95": round(1.96 * math.sqrt(share * (1 - share) / len(asked)), 3),
            "cost": {str(c): round((total["target_calls"] + c * total["draft_calls"]) / n, 4) for c in RATIOS},
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    for c in RATIOS:
        best = {}
        for group in ("length", "threshold"):
            some = [r for r in rows if r["policy"].startswith(group)]
            if some:
                row = min(some, key=lambda r: r["cost"][str(c)])
                best[group] = [row["policy"], row["cost"][str(c)]]
        print(json.dumps({"draft_costs": c, **best}))
    print(json.dumps({"seconds": {"target": round(seconds(target), 5), "draft": round(seconds(draft), 5)}}))


if __name__ == "__main__":
    main()
