"""`python -m lengthwise.thinking fit-mode`: fits the router of the strategy `mode`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from lengthwise.errors import BadInput, LengthwiseError
from lengthwise.thinking.chain import Sampler
from lengthwise.thinking.many import Problem, read_problems, same_answer


async def fit_mode(
    problems: Sequence[Problem], sampler: Sampler, features: str, out: str, concurrency: int = 8
) -> dict[str, float]:
    """Ask every problem without thinking, fit a router on which were right, save it, and say how good it is."""
    from lengthwise.thinking.router import FEATURES, fit, look

    names = FEATURES[features]
    known = [p for p in problems if p.answer is not None]
    if not known:
        raise BadInput('no problem has an "answer": a router is fitted on problems whose answers are known')
    if "logprobs" not in sampler.able and features != "cheap":
        raise BadInput(f"{sampler.name} gives no log-probabilities: --features cheap does without")
    gate = asyncio.Semaphore(concurrency)

    async def ask(problem: Problem) -> tuple[tuple[float, ...], bool]:
        async with gate:
            seen = await look(sampler, problem.messages, names, answer=True)
        return seen.x, same_answer(seen.answer, problem.answer or "")

    got = await asyncio.gather(*map(ask, known))
    router, report = fit([x for x, _ in got], [right for _, right in got], names, sampler.name)
    router.save(out)
    return {**vars(report), **{f"weight of {n}": w for n, w in zip(names, router.weights)}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. 0: done, 2: it cannot be done, with one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m lengthwise.thinking", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fit = commands.add_parser("fit-mode", help="fit the router of the strategy 'mode'")
    fit.add_argument("file", help='problems with known answers: lines of {"problem": ..., "answer": ...}')
    fit.add_argument("--model", default=None, help="a local model, or the model of --endpoint")
    fit.add_argument("--endpoint", default=None, metavar="URL", help="an OpenAI-compatible server")
    fit.add_argument("--out", required=True, help="where the router goes (JSON)")
    fit.add_argument("--features", choices=("cheap", "confidence", "all"), default="all", help="what it looks at")
    fit.add_argument("--concurrency", type=int, default=8, help="problems at once")
    given = parser.parse_args(arguments)
    from lengthwise.thinking.samplers import open_sampler, prepare

    async def run() -> dict[str, float]:
        problems, broken = read_problems(given.file)
        for line, why in broken:
            print(f"{given.file}:{line} is left out: {why}", file=sys.stderr)
        sampler = open_sampler(given.model, endpoint=given.endpoint)
        try:
            await prepare(sampler)
            return await fit_mode(problems, sampler, given.features, given.out, given.concurrency)
        finally:
            await sampler.close()

    try:
        report = asyncio.run(run())
    except LengthwiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in report.items():
        print(f"{name}: {value:g}")
    print(f"lengthwise think ... --strategy mode:{given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
