"""Two workers on one cache against one: what is waited for, and what becomes of the answers.

    python benchmarks/hogwild.py --problems 400

A task is two independent questions. One worker answers them one after another; two workers have one each (their first
words say which: the pocket reasoner was never trained to share out work by itself), in each of the three layouts; a
step ends at ';', so that with the last two layouts the steps of both chains lie mixed in one history. Passes are what a
user waits for. As controls: each question alone, and both questions put to both workers under the published texts,
which shows whether the model shares out the work by itself.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from typing import Any

import torch

from lengthwise import models
from lengthwise.bench import problems
from lengthwise.thinking.decoding.hogwild import BARE, PAIR, PUBLISHED, Format, generate, rules

EXAMPLE = "\nQuestion: What is 4+4 mod 10? Answer: <think> 4+4=8;</think> 8."
MOST = 120
STEPS = Format("", "", "", (";",), "", 1 << 40)


def ask(problem: problems.Problem) -> str:
    return f"\nQuestion: {problem.question} Answer: <think>"


def right(text: str, problem: problems.Problem) -> bool:
    """Whether the answer that follows the question in `text` is right."""
    said = re.search(r"</think>\s*([0-9 ]+)", text.partition(ask(problem))[2] or text)
    return said is not None and said[1].strip() == problem.answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-reasoner")
    parser.add_argument("--problems", type=int, default=400, help="tasks of two questions")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = models.load(args.model, dtype="float32")
    draw, kinds = random.Random(args.seed), list(problems.KINDS)
    tasks = []
    for _ in range(args.problems):
        pair = [draw.choice(kinds) for _ in range(2)]
        tasks.append([problems.make(k, draw.randint(1, problems.KINDS[k][1]), draw) for k in pair])

    def write(prompt: str, workers: dict[str, str], seed: int, **options: Any) -> Any:
        settings = {"format": BARE, "most": MOST, "stop": (".",), "temperature": args.temperature} | options
        return generate(model, tokenizer, prompt, workers, seed=seed, **settings)

    totals: dict[str, dict[str, float]] = {}

    def add(name: str, passes: int, written: int, pairs: int, good: int) -> None:
        row = totals.setdefault(name, {"passes": 0, "written": 0, "pairs": 0, "right": 0})
        for key, value in zip(row, (passes, written, pairs, good)):
            row[key] += value

    for i, (a, b) in enumerate(tasks):
        alone = [write(EXAMPLE, {"one": ask(p)}, i) for p in (a, b)]
        good = sum(right(o.workers[0].text, p) for o, p in zip(alone, (a, b)))
        add("each alone", *(sum(getattr(o, k) for o in alone) for k in ("passes", "written", "pairs")), good)
        first = write(EXAMPLE, {"one": ask(a)}, i)
        second = write(EXAMPLE + first.workers[0].text, {"one": ask(b)}, i)
        good = right(first.workers[0].text, a) + right(second.workers[0].text, b)
        add("one worker", *(getattr(first, k) + getattr(second, k) for k in ("passes", "written", "pairs")), good)
        for layout in ("contiguous", "interleaved", "combined"):
            both = write(EXAMPLE, {"a": ask(a), "b": ask(b)}, i, layout=layout, format=STEPS)
            good = sum(right(w.text, p) for w, p in zip(both.workers, (a, b)))
            add(f"two workers, {layout}", both.passes, both.written, both.pairs, good)
        if i < 20:  # a control that fails: a few will do
            free = write(rules(f"{a.question} {b.question}"), PAIR, i, stop=("boxed{",), most=60, format=PUBLISHED)
            good = sum(any(right(w.text, p) for w in free.workers) for p in (a, b))
            add("two workers, left to themselves (first 20)", free.passes, free.written, free.pairs, good)
    for name, row in totals.items():
        count = min(20, len(tasks)) if "first 20" in name else len(tasks)
        share = row["right"] / (2 * count)
        line = {"what": name} | {k: round(row[k] / count, 2) for k in ("passes", "written", "pairs")}
        line |= {"right": round(share, 4), "right_95": round(1.96 * math.sqrt(share * (1 - share) / (2 * count)), 4)}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
