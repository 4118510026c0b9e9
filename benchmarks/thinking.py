"""Accuracy against tokens for strategies of thinking, on the same problems: a table, and one plot.

    python benchmarks/thinking.py --problems 400 --out rows.jsonl --plot thinking.svg
    python benchmarks/thinking.py --problems 40 --out rows.jsonl --strategy plain --strategy short-m@k:m=1,k=8
    python benchmarks/thinking.py --out rows.jsonl --strategy plain --stack dense --stack h2o:budget=40

Problems are drawn from `lengthwise.bench.problems`, kinds in turn, of the harder half of their levels; chains at
temperature 1. Intervals of accuracy are Wilson's, 95 %; tokens are means over problems: `thinking` those of all chains,
put text included, cancelled ones up to where they were, `all` with answers, verifications and trials, without put text,
`waiting` those one after another. `step_checker` (beside this file) stands for a verifier: it reads the question, not
the answer. Runs resume.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from lengthwise.bench.report.charts import Axis, log_axis, ticks
from lengthwise.thinking import Settings
from lengthwise.thinking.local import LocalSampler
from lengthwise.thinking.many import Problem, think_all
from thinking_votes import draw_problems

CHECKER = "verifier=step_checker:check"
CHECK = "more-think:times=1,words=wait; check:"  # the words that the model was trained on
STRATEGIES = {
    "one chain": ["plain", "zero-think", "less-think", "more-think:times=1", CHECK, "two-stage", "cntp"],
    "budget": [f"budget:{n}" for n in (10, 20, 40, 60, 80, 120)],
    "stop-temperature": [f"stop-temperature:{t}" for t in (0.5, 0.8, 1.5, 3)],
    "early-exit": [
        "early-exit:pace=16,trial=closed,words=none",
        "early-exit:pace=16,trial=closed,words=none,threshold=0.8",
    ],
    "majority": [f"majority:{k}" for k in (2, 4, 8)],
    "short-m@k": ["short-m@k:m=1,k=4", "short-m@k:m=1,k=8", "short-m@k:m=3,k=8", "short-m@k:m=3,k=8 + budget:60"],
    "other votes": [
        "complexity:m=5,k=8",
        "internal-consistency:8",
        "divide-conquer:k=4,how=again",
        "cntp + majority:3",
    ],
    "with a verifier": [
        f"best-of-n:k=8,{CHECKER}",
        f"pessimistic:k=8,{CHECKER}",
        f"step-search:k=8,width=4,ends=semicolon,{CHECKER}",
    ],
}  # group -> strategies
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 880, 600, 62, 250, 14, 44


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share."""
    share, rest = right / count, z * z / count
    middle, half = share + rest / 2, z * math.sqrt(share * (1 - share) / count + rest / count / 4)
    return (middle - half) / (1 + rest), (middle + half) / (1 + rest)


async def measure(args: argparse.Namespace, groups: dict[str, list[str]], stack: str) -> list[dict[str, Any]]:
    """The strategies over chains that are read under a stack."""
    drawn = draw_problems(args.problems, args.seed)
    problems = [Problem(str(i), [{"role": "user", "content": p.question}], p.answer) for i, p in enumerate(drawn)]
    sampler, out = LocalSampler(args.model, stack=stack), []
    try:
        for group, strategies in groups.items():
            for strategy in strategies:
                cpu = time.process_time()
                batch = await think_all(
                    problems,
                    sampler,
                    strategy,
                    out=args.out,
                    concurrency=args.concurrency,
                    settings=Settings(temperature=args.temperature, seed=args.seed),
                    most_thinking=args.most_thinking,
                    most_answer=16,
                    where={} if stack == "dense" else {"stack": stack},
                )
                spent = {"cpu_seconds": round(time.process_time() - cpu, 1), "stack": stack}
                out.append(line(group, strategy, batch.rows) | spent)
                print(json.dumps(out[-1]), flush=True)
    finally:
        await sampler.close()
    return out


def line(group: str, strategy: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One strategy's figures; problems that failed are wrong."""
    right, spent = sum(bool(r["right"]) for r in rows), [r["spent"] for r in rows if r["status"] == "done"]
    low, high = wilson(right, len(rows))
    return {
        "group": group,
        "strategy": strategy,
        "problems": len(rows),
        "failed": len(rows) - len(spent),
        "accuracy": round(right / len(rows), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "thinking": round(fmean(s["thinking_tokens"] + s["put_tokens"] for s in spent), 1),
        "all": round(fmean(s["thinking_tokens"] + s["answer_tokens"] + s["other_tokens"] for s in spent), 1),
        "waiting": round(fmean(s["waiting_tokens"] for s in spent), 1),
    }


def table(lines: list[dict[str, Any]]) -> str:
    out = ["| strategy | accuracy (95 %) | thinking | all tokens | waiting |", "|---|---|---|---|---|"]
    for e in lines:
        name = e["strategy"].replace(f",{CHECKER}", ",verifier=…")
        name += "" if e["stack"] == "dense" else f" under {e['stack']}"
        share = f"{e['accuracy']:.3f} ({e['low']:.3f}–{e['high']:.3f})"
        out.append(f"| `{name}` | {share} | {e['thinking']:.0f} | {e['all']:.0f} | {e['waiting']:.0f} |")
    return "\n".join(out)


def plot(lines: list[dict[str, Any]]) -> str:
    """Accuracy (up) against all tokens (right, logarithmic) as SVG; each group a colour, its points joined."""
    x = log_axis([max(e["all"], 1.0) for e in lines], LEFT, WIDTH - RIGHT)
    y = Axis(0, 1, HEIGHT - BOTTOM, TOP)
    text = 'font-family="sans-serif" font-size="12" fill="#555"'
    small = 'font-family="monospace" font-size="9" fill="#555"'
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(f'<path d="M{LEFT} {y(share)}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text {text} x="{LEFT - 8}" y="{y(share) + 4}" text-anchor="end">{share:.1f}</text>')
    for v in ticks(x):
        parts.append(f'<text {text} x="{x(v)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{v:,.0f}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text {text} x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">tokens written for a problem</text>')
    parts.append(
        f'<text {text} transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">accuracy</text>'
    )
    legend = TOP + 14
    for colour, group in zip(COLOURS, dict.fromkeys(e["group"] for e in lines)):
        some = sorted((e for e in lines if e["group"] == group), key=lambda e: e["all"])
        points = [(x(max(e["all"], 1.0)), y(e["accuracy"])) for e in some]
        if group in ("budget", "majority", "stop-temperature"):
            path = "L".join(f"{a} {b}" for a, b in points)
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-opacity=".5"/>')
        parts.append(
            f'<text {text} x="{WIDTH - RIGHT + 14}" y="{legend}" style="fill:{colour};font-weight:bold">{group}</text>'
        )
        for number, (e, (a, b)) in enumerate(zip(some, points), 1):
            name = escape(e["strategy"].replace(f",{CHECKER}", ""))
            parts.append(f'<path d="M{a} {y(e["low"])}V{y(e["high"])}" stroke="{colour}" stroke-opacity=".4"/>')
            parts.append(f'<circle cx="{a}" cy="{b}" r="7" fill="{colour}"><title>{name}</title></circle>')
            parts.append(
                f'<text x="{a}" y="{b + 3.5}" font-family="sans-serif" font-size="9.5" fill="#fff" '
                f'text-anchor="middle">{number}</text>'
            )
            legend += 12.5
            parts.append(f'<text {small} x="{WIDTH - RIGHT + 18}" y="{legend}">{number} {name[:36]}</text>')
        legend += 15
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--strategy", action="append", help="instead of those of the table")
    parser.add_argument("--stack", action="append", help="how chains are read (dense)")
    parser.add_argument("--model", default="pocket-reasoner")
    parser.add_argument("--out", type=Path, required=True, help="JSONL of rows, as of `lengthwise think --out`")
    parser.add_argument("--plot", type=Path, help="where the SVG goes")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--most-thinking", type=int, default=320)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    groups = {"given": args.strategy} if args.strategy else STRATEGIES
    lines = [line for stack in args.stack or ["dense"] for line in asyncio.run(measure(args, groups, stack))]
    print(table(lines))
    if args.plot:
        args.plot.write_text(plot(lines))


if __name__ == "__main__":
    main()
