"""Votes among chains of the pocket reasoner: accuracy, thinking tokens and waiting, all from the same recorded chains.

    python benchmarks/thinking_votes.py --problems 400 --record chains.jsonl --out votes.json
    python benchmarks/thinking_votes.py --record chains.jsonl --out votes.json        (again, from the recorded chains)

Each problem gets `--k` chains at temperature 1, once; every line below is computed from the first k of them:

    single          the mean over chains: what one chain is worth
    majority@k      all chains
    short-m@k       the m shortest; the others are counted up to the token at which the m-th ended its thinking
    complexity-m@k  the m with the most steps (all chains are written out)
    best-of-k       the best by benchmarks/step_checker.py, which reads the question but not the answer

Chains advance a token at a time together. `thinking` is the sum over chains, `waiting` the tokens one after another up
to the last answer that counts. Intervals are bootstrapped over problems (95 %); the one against majority is paired.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import step_checker
from lengthwise.bench import problems
from lengthwise.thinking import Settings, Work, Written
from lengthwise.thinking.local import LocalSampler
from lengthwise.thinking.steps import steps
from lengthwise.thinking.strategies._vote import best, vote
from lengthwise.thinking.verify import Judgement, solution

AT_ONCE = 8  # problems whose chains are written together
MOST = 320  # tokens of a chain
RESAMPLES = 2000

Chains = list[Written]
Result = tuple[float, float, float]  # right (0 to 1), thinking tokens, waiting tokens


def draw_problems(count: int, seed: int) -> list[problems.Problem]:
    """Kinds in turn, of the harder levels."""
    draw = random.Random(seed)
    kinds = list(problems.KINDS)
    made = []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        hardest = problems.KINDS[kind][1]
        made.append(problems.make(kind, draw.randint((hardest + 1) // 2, hardest), draw))
    return made


async def record(path: Path, count: int, k: int, seed: int, model: str) -> None:
    """Write `k` chains of each problem as lines of JSON; problems that are there already are left as they are."""
    done = sum(1 for _ in path.open()) if path.exists() else 0
    todo = list(enumerate(draw_problems(count, seed)))[done:]
    sampler = LocalSampler(model)

    async def one(number: int, problem: problems.Problem) -> str:
        work = Work(sampler, settings=Settings(temperature=1.0, seed=seed + number), most_thinking=MOST, most_answer=16)
        await work.many([{"role": "user", "content": problem.question}], k)
        chains = [
            {
                "thinking": c.thinking,
                "text": c.text,
                "answer": c.answer,
                "reason": c.reason,
                "thinking_tokens": c.thinking_tokens,
                "answer_tokens": c.answer_tokens,
            }
            for c in work.chains
        ]
        row = {"kind": problem.kind, "question": problem.question, "answer": problem.answer, "chains": chains}
        return json.dumps(row)

    try:
        with path.open("a") as file:
            for start in range(0, len(todo), AT_ONCE):
                for line in await asyncio.gather(*(one(*each) for each in todo[start : start + AT_ONCE])):
                    file.write(line + "\n")
                file.flush()
                print(f"{done + min(start + AT_ONCE, len(todo))} of {count} problems", flush=True)
    finally:
        await sampler.close()


def whole(chains: Chains) -> tuple[float, float]:
    """Tokens of thinking and of waiting when all chains are written out."""
    return sum(c.thinking_tokens for c in chains), max(c.tokens for c in chains)


def short(chains: Chains, m: int) -> tuple[str, float, float]:
    """Answer, thinking and waiting of short-m@k."""
    solved = vote(chains, first=m, by=lambda c: c.thinking_tokens)
    last = sorted(c.thinking_tokens for c in chains)[m - 1]
    waiting = max(c.tokens for c in solved.chains[:m])
    return solved.answer, sum(min(c.thinking_tokens, last) for c in chains), waiting


def lines(k: int) -> dict[str, Callable[[problems.Problem, Chains], Result]]:
    """What is computed for the first k chains of a problem."""

    def single(problem: problems.Problem, chains: Chains) -> Result:
        right = statistics.fmean(c.answer == problem.answer for c in chains)
        return right, statistics.fmean(c.thinking_tokens for c in chains), statistics.fmean(c.tokens for c in chains)

    def majority(problem: problems.Problem, chains: Chains) -> Result:
        answer = vote(sorted(chains, key=lambda c: c.thinking_tokens)).answer  # in the order of their end
        return float(answer == problem.answer), *whole(chains)

    def shortest(m: int) -> Callable[[problems.Problem, Chains], Result]:
        def run(problem: problems.Problem, chains: Chains) -> Result:
            answer, thinking, waiting = short(chains, m)
            return float(answer == problem.answer), thinking, waiting

        return run

    def complexity(m: int) -> Callable[[problems.Problem, Chains], Result]:
        def run(problem: problems.Problem, chains: Chains) -> Result:
            answer = vote(chains, first=m, by=lambda c: -len(steps(c.thinking))).answer
            return float(answer == problem.answer), *whole(chains)

        return run

    def checked(problem: problems.Problem, chains: Chains) -> Result:
        scores = [Judgement(tuple(step_checker.check(problem.question, solution(c)))).score() for c in chains]
        return float(best(chains, scores).answer == problem.answer), *whole(chains)

    some: dict[str, Callable[[problems.Problem, Chains], Result]] = {"single": single} if k == 1 else {}
    if k > 1:
        some[f"majority@{k}"] = majority
        some |= {f"short-{m}@{k}": shortest(m) for m in (1, 3) if m < k}
        some[f"complexity-{max(1, 5 * k // 8)}@{k}"] = complexity(max(1, 5 * k // 8))
        some[f"best-of-{k}"] = checked
    return some


def interval(values: Sequence[float], draws: Sequence[Sequence[int]]) -> list[float]:
    """2.5 % and 97.5 % of the means of resampled problems."""
    means = sorted(statistics.fmean([values[i] for i in draw]) for draw in draws)
    return [round(means[int(q * (len(means) - 1))], 4) for q in (0.025, 0.975)]


def report(path: Path, most: int) -> dict[str, object]:
    """All lines, from recorded chains."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    given = [problems.Problem(r["kind"], r["question"], r["answer"], lambda draw, slip: ([], "")) for r in rows]
    recorded = [[Written(**c) for c in r["chains"]] for r in rows]
    draw = random.Random(0)
    draws = [draw.choices(range(len(rows)), k=len(rows)) for _ in range(RESAMPLES)]
    table: dict[str, dict[str, object]] = {}
    for k in [k for k in (1, 2, 4, 8, 16, 32) if k <= most]:
        base: list[Result] = []
        for name, line in lines(k).items():
            of = recorded if k == 1 else [chains[:k] for chains in recorded]
            got = [line(problem, chains) for problem, chains in zip(given, of)]
            base = base or got
            entry: dict[str, object] = {}
            for column, what in enumerate(("accuracy", "thinking", "waiting")):
                values = [r[column] for r in got]
                entry[what] = round(statistics.fmean(values), 4)
                entry[f"{what}_95"] = interval(values, draws)
                if got is not base:
                    against = [r[column] for r in base]
                    if column == 0:
                        entry["accuracy_vs_majority"] = round(statistics.fmean(values) - statistics.fmean(against), 4)
                        entry["accuracy_vs_majority_95"] = interval([a - b for a, b in zip(values, against)], draws)
                    else:
                        entry[f"{what}_saved"] = round(1 - sum(values) / sum(against), 4)
            table[name] = entry
    wrong = [
        statistics.fmean(c.thinking_tokens for c in cs if c.answer != p.answer)
        for cs, p in zip(recorded, given)
        if 0 < sum(c.answer != p.answer for c in cs) < len(cs)
    ]
    right = [
        statistics.fmean(c.thinking_tokens for c in cs if c.answer == p.answer)
        for cs, p in zip(recorded, given)
        if 0 < sum(c.answer != p.answer for c in cs) < len(cs)
    ]
    return {
        "problems": len(rows),
        "chains": most,
        "mean_tokens_of_right_and_wrong_chains": [round(statistics.fmean(v), 1) if v else None for v in (right, wrong)],
        "lines": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--problems", type=int, default=0, help="problems in the record; missing ones are written first"
    )
    parser.add_argument("--k", type=int, default=8, help="chains of each problem")
    parser.add_argument("--record", type=Path, required=True, help="JSONL of recorded chains")
    parser.add_argument("--out", type=Path, help="where the report goes, as JSON")
    parser.add_argument("--model", default="pocket-reasoner")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.problems:
        asyncio.run(record(args.record, args.problems, args.k, args.seed, args.model))
    most = min(len(json.loads(line)["chains"]) for line in args.record.read_text().splitlines())
    result = report(args.record, most)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{result['problems']} problems, {most} chains each; mean tokens of right and wrong chains of one problem: "
        f"{result['mean_tokens_of_right_and_wrong_chains']}"
    )
    print("| | accuracy (95 %) | thinking | waiting | accuracy vs majority (95 %) | thinking saved | waiting saved |")
    print("|---|---|---|---|---|---|---|")
    for name, e in result["lines"].items():  # type: ignore[attr-defined]
        low, high = e["accuracy_95"]
        versus = ""
        if "accuracy_vs_majority" in e:
            a, b = e["accuracy_vs_majority_95"]
            versus = f"{e['accuracy_vs_majority']:+.3f} ({a:+.3f} to {b:+.3f})"
        saved = [f"{e[key]:.0%}" if key in e else "" for key in ("thinking_saved", "waiting_saved")]
        print(
            f"| {name} | {e['accuracy']:.3f} ({low:.3f}-{high:.3f}) | {e['thinking']:.0f} | {e['waiting']:.0f} "
            f"| {versus} | {saved[0]} | {saved[1]} |"
        )


if __name__ == "__main__":
    main()
