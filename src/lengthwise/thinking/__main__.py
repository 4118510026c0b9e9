"""`python -m lengthwise.thinking fit-mode | fit-dots`: fits what the strategies `mode` and `dots` choose by."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lengthwise.errors import BadInput, LengthwiseError
from lengthwise.thinking.chain import Sampler, Settings
from lengthwise.thinking.many import Problem, read_problems, same_answer
from lengthwise.thinking.work import together

KNOWN = 'no problem has an "answer": this is fitted on problems whose answers are known'


async def fit_mode(
    problems: Sequence[Problem], sampler: Sampler, features: str, out: str, concurrency: int = 8
) -> dict[str, float]:
    """Ask every problem without thinking, fit a router on which were right, save it, and say how good it is."""
    from lengthwise.thinking.router import FEATURES, fit, look

    names = FEATURES[features]
    known = [p for p in problems if p.answer is not None]
    if not known:
        raise BadInput(KNOWN)
    if sampler.tags is None:
        raise BadInput(f"no thinking section was found in the chat template of {sampler.name}: there is no mode to fit")
    if "logprobs" not in sampler.able and features != "cheap":
        raise BadInput(f"{sampler.name} gives no log-probabilities: --features cheap does without")
    gate = asyncio.Semaphore(concurrency)

    async def ask(problem: Problem) -> tuple[tuple[float, ...], bool]:
        async with gate:
            seen = await look(sampler, problem.messages, names, answer=True)
        return seen.x, same_answer(seen.answer, problem.answer or "")

    got = await together(*map(ask, known))
    router, report = fit([x for x, _ in got], [right for _, right in got], names, sampler.name)
    router.save(out)
    return {**vars(report), **{f"weight of {n}": w for n, w in zip(names, router.weights)}}


async def fit_dots(
    problems: Sequence[Problem], sampler: Sampler, plans: Sequence[str], out: str, seed: int | None = None
) -> dict[str, float]:
    """Search the best plan of every problem, fit a planner on them, save it, and say how often each plan was best."""
    from lengthwise.thinking.strategies.dots import PLANS, fit

    known = [(p.messages[-1]["content"], p.answer) for p in problems if p.answer is not None]
    if not known:
        raise BadInput(KNOWN)
    planner, found = await fit(known, sampler, plans or PLANS, settings=Settings(temperature=1.0, seed=seed))
    planner.save(out)
    best = Counter(f"best plan {each.plan}" if each.plan else "solved by no plan" for each in found)
    return {"problems": len(found), **dict(best.most_common())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. 0: done, 2: it cannot be done, 130: interrupted, with one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m lengthwise.thinking", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    mode = commands.add_parser("fit-mode", help="fit the router of the strategy 'mode'")
    dots = commands.add_parser("fit-dots", help="fit the planner of the strategy 'dots'")
    for one in (mode, dots):
        one.add_argument("file", help='problems with known answers: lines of {"problem": ..., "answer": ...}')
        one.add_argument("--model", default=None, help="a local model, or the model of --endpoint")
        one.add_argument("--endpoint", default=None, metavar="URL", help="an OpenAI-compatible server")
        one.add_argument("--out", required=True, help="where it goes (JSON)")
    mode.add_argument("--features", choices=("cheap", "confidence", "all"), default="all", help="what it looks at")
    mode.add_argument("--concurrency", type=int, default=8, help="problems at once")
    dots.add_argument("--plans", default="", help="plans to choose from, between commas (all of them)")
    dots.add_argument("--seed", type=int, default=None, help="makes the search repeatable")
    given = parser.parse_args(arguments)
    from lengthwise.thinking.samplers import open_sampler, prepare

    async def run() -> dict[str, float]:
        if given.command == "fit-mode" and given.concurrency < 1:
            raise BadInput("at least one problem must be worked on at a time: --concurrency")
        if not Path(given.out).resolve().parent.is_dir() or Path(given.out).is_dir():
            raise BadInput(f"{given.out} cannot be written: name a file in a folder that is there (--out)")
        problems, broken = read_problems(given.file)
        for line, why in broken:
            print(f"{given.file}:{line} is left out: {why}", file=sys.stderr)
        sampler = open_sampler(given.model, endpoint=given.endpoint)
        try:
            await prepare(sampler)
            if given.command == "fit-dots":
                plans = [plan.strip() for plan in given.plans.split(",") if plan.strip()]
                return await fit_dots(problems, sampler, plans, given.out, given.seed)
            return await fit_mode(problems, sampler, given.features, given.out, given.concurrency)
        finally:
            await sampler.close()

    try:
        report = asyncio.run(run())
    except (LengthwiseError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted, and nothing was written", file=sys.stderr)
        return 130
    for name, value in report.items():
        print(f"{name}: {value:g}")
    print(f"lengthwise think ... --strategy {given.command.removeprefix('fit-')}:{given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
