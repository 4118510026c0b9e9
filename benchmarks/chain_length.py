"""Chain length and accuracy of the pocket reasoner against a coefficient in its weights, one JSON line a point.

    python benchmarks/chain_length.py train --work runs/weights            # the long and short models, the directions
    python benchmarks/chain_length.py valve --work runs/weights            # CoT-Valve, ++ and +P: alpha * direction
    python benchmarks/chain_length.py merge --work runs/weights            # alpha * long + (1 - alpha) * short
    python benchmarks/chain_length.py think-edit --work runs/weights       # before, after, and random heads

`train` starts from pocket-reasoner: "long" learns chains that check three times, "short" chains that never check; the
directions lead from "long" to short chains. Chains with a wrong answer are left out of the training, as published.
Points are measured on fresh problems of all kinds and levels, one chain each at temperature 1 (the same problems for
every point); `low` and `high` are the 95 % Wilson interval of the accuracy, `half` that of the mean length.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import re
import statistics
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

from lengthwise import models
from lengthwise.bench import problems
from lengthwise.bench.summary import quality
from lengthwise.thinking.weights import (
    Delta,
    Example,
    Recipe,
    betas,
    dare_ties,
    edited,
    linear,
    load,
    replaced,
    save,
    train,
)
from lengthwise.thinking.weights import think_edit as editing

MOST = 320  # tokens of a chain
CHECKS = (1.0, 0.5, 0.25, 0.0)  # of the stages of CoT-Valve+P, and of the chains that CoT-Valve++ mixes
RECIPE = {"rate": 3e-3, "batch": 16, "epochs": 1}


def prompt(problem: problems.Problem) -> str:
    return f"<s>\nQuestion: {problem.question} Answer: <think>"


def some(count: int, seed: int) -> list[problems.Problem]:
    """Problems of every kind and level in turn."""
    draw = random.Random(seed)
    kinds = [(kind, level) for kind, (_, most) in problems.KINDS.items() for level in range(1, most + 1)]
    return [problems.make(*kinds[i % len(kinds)], draw) for i in range(count)]


def right_chain(problem: problems.Problem, checks: float, draw: random.Random) -> str:
    while True:
        lines, result = problems.worked(problem, draw, checks=checks)
        if result == problem.answer:
            return f"{''.join(lines)}</think> {result}.</s>"


def examples(tokenizer, count: int, checks: float, seed: int) -> list[Example]:
    draw = random.Random(seed)
    rows = [Example(prompt(p), right_chain(p, checks, draw)) for p in some(count, seed)]
    return [e for e in rows if len(tokenizer(e.prompt + e.chain)["input_ids"]) <= 512]


def mixed(tokenizer, count: int, seed: int) -> list[Example]:
    """CoT-Valve++: several chains of every question, each with the factor of its length."""
    draw, rows = random.Random(seed), []
    for problem in some(count, seed):
        chains = [right_chain(problem, checks, draw) for checks in (1.0, 0.5, 0.0)]
        lengths = [len(tokenizer(c)["input_ids"]) for c in chains]
        if max(lengths) < 400:
            rows += [Example(prompt(problem), c, b) for c, b in zip(chains, betas(lengths))]
    return rows


def make(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    base, tokenizer = models.load("pocket-reasoner", dtype="float32", device="cpu")

    def run(name: str, model, stages: list[list[Example]], rank: int) -> Delta:
        path, begun = folder / f"{name}.safetensors", time.process_time()
        if not path.exists():
            recipe = Recipe(rank=rank, scale=2.0 * rank, **RECIPE)
            losses: list[float] = []
            delta = train(model, tokenizer, stages, recipe, lambda step, steps, loss: losses.append(loss))
            save(delta, path, torch.bfloat16)
            row = {"trained": name, "rank": rank, "examples": sum(map(len, stages)), "steps": len(losses)}
            row |= {"loss": [round(statistics.mean(part), 4) for part in (losses[:10], losses[-10:])]}
            print(json.dumps(row | {"cpu_seconds": round(time.process_time() - begun)}), flush=True)
        return load(path)

    long = run("long", base, [examples(tokenizer, count, 1.0, 11)], 16)
    with edited(base, long):
        run("valve", base, [examples(tokenizer, count, 0.0, 13)], 4)
    run("short", base, [examples(tokenizer, count, 0.0, 12)], 16)
    with edited(base, long):
        run("valve++", base, [mixed(tokenizer, count // 3, 14)], 4)
        each = count // len(CHECKS)
        run("valve+p", base, [examples(tokenizer, each, c, 15 + i) for i, c in enumerate(CHECKS)], 4)


class Meter:
    """Writes one chain for each problem and counts."""

    def __init__(self, count: int, temperature: float) -> None:
        self.model, self.tokenizer = models.load("pocket-reasoner", dtype="float32", device="cpu")
        self.tokenizer.padding_side = "left"
        self.problems, self.temperature = some(count, 2026), temperature
        self.problems.sort(key=lambda p: len(p.question))
        self.close = self.tokenizer.convert_tokens_to_ids("</think>")
        self.line = self.tokenizer.encode("\n", add_special_tokens=False)[0]

    @torch.no_grad()
    def chains(self, seed: int = 5) -> list[tuple[problems.Problem, list[int]]]:
        torch.manual_seed(seed)
        out = []
        for start in range(0, len(self.problems), 200):
            part = self.problems[start : start + 200]
            batch = self.tokenizer(
                [prompt(p) for p in part], return_tensors="pt", padding=True, add_special_tokens=False
            )
            rows = self.model.generate(
                **batch, max_new_tokens=MOST, do_sample=True, temperature=self.temperature, top_k=0,
                eos_token_id=[1, self.line], pad_token_id=2,
            )  # fmt: skip
            out += list(zip(part, rows[:, batch["input_ids"].shape[1] :].tolist()))
        return out

    def point(self, changed: AbstractContextManager[None], **about: object) -> None:
        begun = time.process_time()
        with changed:
            got = self.chains()
        lengths = [ids.index(self.close) if self.close in ids else MOST for _, ids in got]
        texts = [self.tokenizer.decode(ids) for _, ids in got]
        right = [self.answer(text) == p.answer for (p, _), text in zip(got, texts)]
        share = quality([float(r) for r in right])
        row = about | {
            "problems": len(right),
            "tokens": round(statistics.mean(lengths), 1),
            "half": round(1.96 * statistics.stdev(lengths) / len(lengths) ** 0.5, 1),
            "accuracy": round(share.mean or 0, 3),
            "low": round(share.low or 0, 3),
            "high": round(share.high or 0, 3),
            "checks": round(statistics.mean("check:" in text for text in texts), 3),
            "closed": round(statistics.mean(self.close in ids for _, ids in got), 3),
            "cpu_seconds": round(time.process_time() - begun),
        }
        print(json.dumps(row), flush=True)

    @staticmethod
    def answer(text: str) -> str:
        found = re.match(r"\s*([0-9 ]+)", text.split("</think>")[-1]) if "</think>" in text else None
        return found[1].strip() if found else ""


def valve(meter: Meter, folder: Path, alphas: Iterable[float], names: Iterable[str]) -> None:
    with edited(meter.model, load(folder / "long.safetensors")):
        for name in names:
            for alpha in alphas:
                delta = load(folder / f"{name}.safetensors")
                meter.point(edited(meter.model, delta, alpha), method=name, alpha=alpha)


def merge(meter: Meter, folder: Path, alphas: Iterable[float]) -> None:
    base, ends = meter.model, []
    for name in ("long", "short"):
        end = copy.deepcopy(base)
        with edited(base, load(folder / f"{name}.safetensors")):
            end.load_state_dict(base.state_dict())
        ends.append(end)
    meter.point(nullcontext(), method="pocket-reasoner")
    for alpha in alphas:
        meter.point(replaced(base, linear(*ends, alpha)), method="linear", alpha=alpha)
    for density in (0.25, 0.75):
        meter.point(replaced(base, dare_ties(base, ends, density=density)), method="dare-ties", density=density)


def think_edit(meter: Meter, folder: Path, shares: Iterable[float], start: str) -> None:
    """Directions from the model's own chains on other problems: the shortest and the longest quarter.

    Lengths are taken relative to one pass over the problem's steps: else short would mean easy here.
    """
    tuned = nullcontext() if start == "pocket-reasoner" else edited(meter.model, load(folder / f"{start}.safetensors"))
    with tuned:
        measured, meter.problems = meter.problems, some(300, 31)
        passes = {
            id(p): len(meter.tokenizer("".join(p.steps), add_special_tokens=False)["input_ids"]) for p in meter.problems
        }
        own = [(ids.index(meter.close), p, ids) for p, ids in meter.chains(6) if meter.close in ids]
        own.sort(key=lambda chain: chain[0] / passes[id(chain[1])])
        meter.problems = measured
        samples = [(prompt(p), meter.tokenizer.decode(ids[:length])) for length, p, ids in own if length]
        quarter = len(samples) // 4
        short, long = samples[:quarter], samples[-quarter:]
        v = editing.directions(meter.model, meter.tokenizer, short, long)
        added = editing.contributions(meter.model, meter.tokenizer, short, v)
        meter.point(nullcontext(), method="think-edit", of=start, heads=0)
        for share in shares:
            heads = editing.top_heads(added, share)
            delta = editing.edit(meter.model, v, heads)
            meter.point(edited(meter.model, delta), method="think-edit", of=start, heads=len(heads))
            others = random.Random(3).sample(
                [(la, h) for la in range(len(v)) for h in range(added.shape[1])], len(heads)
            )
            delta = editing.edit(meter.model, v, others)
            meter.point(edited(meter.model, delta), method="think-edit, random heads", of=start, heads=len(heads))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "valve", "merge", "think-edit"])
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is trained")
    parser.add_argument("--examples", type=int, default=960)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--alphas", default="", help="coefficients, or shares of heads, with commas")
    parser.add_argument("--direction", default="valve,valve++,valve+p")
    parser.add_argument("--of", default="pocket-reasoner", help="think-edit: pocket-reasoner, long or short")
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "train":
        make(args.work, args.examples)
        return
    meter = Meter(args.problems, args.temperature)
    given = [float(a) for a in args.alphas.split(",") if a]
    if args.what == "valve":
        valve(meter, args.work, given or [0, 0.25, 0.5, 0.75, 1, 1.5], args.direction.split(","))
    elif args.what == "merge":
        merge(meter, args.work, given or [0, 0.2, 0.4, 0.6, 0.8, 1])
    else:
        think_edit(meter, args.work, given or [0.04, 0.2], args.of)


if __name__ == "__main__":
    main()
