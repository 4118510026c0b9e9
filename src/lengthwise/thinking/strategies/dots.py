"""A plan of actions for each question: how to look at it, how to solve it, whether to check; chosen by a planner."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from zlib import crc32

from lengthwise.core.spec import param
from lengthwise.errors import BadInput
from lengthwise.thinking import sandbox, verify
from lengthwise.thinking.answers import Extract, answer_in
from lengthwise.thinking.chain import DEFAULT, Messages, Sampler, Settings
from lengthwise.thinking.planner import Planner, fit_planner, load_planner
from lengthwise.thinking.strategy import Solves, Strategy, StrategySpec
from lengthwise.thinking.work import Solved, Work, Written, together

ANALYSES = ("", "rewrite", "decompose")
SOLUTIONS = ("think", "direct", "program")
CHECKS = ("", "verify")
PLANS = tuple(">".join(filter(None, plan)) for plan in itertools.product(ANALYSES, SOLUTIONS, CHECKS))

ANALYSE = {
    "rewrite": (
        "Restate the following problem more clearly, with all that is needed to solve it. Do not solve it.",
        "In other words:",
    ),
    "decompose": (
        "Break the following problem into a short numbered list of smaller ones, in the order in which to solve them. "
        "Do not solve them.",
        "Parts to solve one after another:",
    ),
}  # action -> (what is asked about the question, what its result is called in the question)
PROGRAM = "Write a Python program that prints the answer and nothing else, in one block that begins with ```python."
AGAIN = "An earlier attempt gave {answer}, which was found to be wrong when it was checked."
_BLOCK = re.compile(r"```(?:python|py)?[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Dots(Solves):
    """Plans are [rewrite | decompose] > think | direct | program > [verify]; the planner takes the likeliest.

    For a question of the training set: plan* = the plan with the highest share of right answers over several runs, of
    equals the one with the fewest tokens. For a new one: plan = argmax_p P(p) prod_{words w} P(w | p).
    """

    spec: ClassVar[StrategySpec] = StrategySpec(
        name="dots",
        summary="restates, splits, thinks, programs or checks: a plan for each question, by a fitted planner or given",
        formula="plan* = argmax_p (share right, then fewest tokens); new question: argmax_p P(p) * prod_w P(w | p)",
        parts=("solve",),
        papers=(170,),
        source="https://arxiv.org/abs/2410.03864: actions of three layers, search per question, external planner",
        main="planner",
        simplified=(
            "the planner is naive Bayes over the question's words, where the paper tunes a language model; the solver "
            "itself is not tuned; the search halves the plans each round; 'direct' (no thinking) is added; the prompts "
            "are in our words"
        ),
        test="tests/oracle/test_dots.py",
    )
    planner: str = param("", "file of a planner (python -m lengthwise.thinking fit-dots); '' takes `plan` always")
    plan: str = param("think", "actions joined by '>': [rewrite|decompose]>think|direct|program[>verify]")

    def validate(self) -> None:
        """The plan is one of those that there are."""
        self.require(self.plan in PLANS, f"plan={self.plan} is not one of {', '.join(PLANS)}")
        self.require(not self.planner or self.plan == "think", "a planner chooses the plan: leave plan or planner out")

    def check(self, sampler: Sampler | None, others: Sequence[Strategy]) -> list[str]:
        """The planner must be readable, its actions possible, and nobody else may say whether the model thinks."""
        refused = [
            f"dots and {s.spec.name} both decide whether the model thinks" for s in others if "mode" in s.spec.parts
        ]
        try:
            plans = load_planner(self.planner).plans if self.planner else (self.plan,)
        except BadInput as error:
            return [*refused, f"dots: {error}"]
        refused += [f"dots: the planner knows a plan '{plan}' that there is not" for plan in plans if plan not in PLANS]
        return [*refused, *(f"dots: {why}" for why in impossible(plans, sampler))]

    async def solve(self, work: Work, messages: Messages) -> Solved:
        """The plan for this question, carried out."""
        if not self.planner:
            return await carry_out(work, messages, self.plan)
        plan, share = load_planner(self.planner).choose(messages[-1]["content"])
        solved = await carry_out(work, messages, plan)
        solved.notes.insert(0, f"plan: {plan} ({share:.0%})")
        return solved


def impossible(plans: Sequence[str], sampler: Sampler | None) -> list[str]:
    """Why some of these plans cannot be carried out; [] when all can."""
    actions = {action for plan in plans for action in plan.split(">")}
    why = []
    if "direct" in actions and sampler is not None and sampler.tags is None:
        why.append("the action 'direct' needs a thinking section to leave out, and none was found")
    if "program" in actions and (reason := sandbox.available()):
        why.append(f"the action 'program' cannot be taken: {reason}")
    return why


async def carry_out(work: Work, messages: Messages, plan: str) -> Solved:
    """One plan: the analysis is put into the question, then it is solved, then checked and if need be solved again."""
    actions, notes = plan.split(">"), list[str]()
    for action in actions:
        if action in ANALYSE:
            asked, called = ANALYSE[action]
            question = messages[-1]["content"]
            text = await work.ask([{"role": "user", "content": f"{asked}\n\n{question}"}])
            if not text.strip():
                notes.append(f"{action}: the model wrote nothing")
            messages = _with(messages, f"{called}\n{text.strip()}" if text.strip() else "")
    solution = next(action for action in actions if action in SOLUTIONS)
    chain = await _solution(work, messages, solution, notes)
    if actions[-1] == "verify":
        [[judgement]] = await verify.judge(work, messages, [verify.solution(chain)])
        score = judgement.score()
        if score is None:
            notes.append("verify: no verdict could be read, the answer stands")
        elif score < 0.5:
            notes.append(f"verify: {chain.answer or 'no answer'} was found wrong, solved again")
            again = AGAIN.format(answer=chain.answer or "no answer")
            chain = await _solution(work, _with(messages, again), solution, notes)
    chain.weight = 1.0
    return Solved(chain.answer, [chain], notes=notes)


async def _solution(work: Work, messages: Messages, action: str, notes: list[str]) -> Written:
    if action != "program":
        return await work.one(messages, think=action == "think")
    chain = await work.one(_with(messages, PROGRAM), think=True)
    blocks = _BLOCK.findall(chain.text)
    if not blocks:
        notes.append("program: none was written")
        return chain
    ran = await sandbox.run_python(blocks[-1])
    if ran.reason == "done" and ran.text.strip():
        chain.answer = answer_in(ran.text, work.extract)
    else:
        notes.append(f"program: it gave no answer ({ran.reason})")
        chain.answer = ""
    return chain


def _with(messages: Messages, more: str) -> Messages:
    last = messages[-1]
    return [*messages[:-1], {**last, "content": f"{last['content']}\n\n{more}".rstrip()}]


@dataclass(frozen=True)
class Found:
    """The best plan of a question, '' when none led to the right answer; its share of right answers and mean tokens."""

    question: str
    plan: str
    right: float
    tokens: float


async def search(
    question: str,
    answer: str,
    sampler: Sampler,
    plans: Sequence[str] = PLANS,
    *,
    rounds: int = 3,
    runs: int = 2,
    settings: Settings = DEFAULT,
    most_thinking: int = 4096,
    most_answer: int = 512,
    extract: Extract = "auto",
) -> Found:
    """The best plan for a question whose answer is known.

    A round carries out each plan that is left `runs` times, then keeps the better half: by the share of right answers
    over all rounds, then by the fewest tokens. While no plan has given the right answer, all stay. Raises BadInput for
    plans that there are not or that cannot be.
    """
    if unknown := [plan for plan in plans if plan not in PLANS]:
        raise BadInput(f"there is no plan '{unknown[0]}' (there are: {', '.join(PLANS)})")
    if why := impossible(plans, sampler):
        raise BadInput(why[0])
    wanted = answer_in(answer, extract).casefold()
    right, tokens = dict.fromkeys(plans, 0.0), dict.fromkeys(plans, 0.0)
    left, tried = list(plans), 0
    seeds = itertools.count(crc32(f"{settings.seed or 0} {question}".encode()))  # problems do not share their luck

    async def run(plan: str) -> None:
        own = settings.but(seed=next(seeds))
        work = Work(sampler, settings=own, most_thinking=most_thinking, most_answer=most_answer, extract=extract)
        solved = await carry_out(work, [{"role": "user", "content": question}], plan)
        right[plan] += solved.answer.casefold() == wanted
        tokens[plan] += work.spent.thinking_tokens + work.spent.answer_tokens + work.spent.other_tokens

    for number in range(rounds):
        await together(*(run(plan) for plan in left for _ in range(runs)))
        tried += runs
        left.sort(key=lambda plan: (-right[plan], tokens[plan]))
        if number < rounds - 1 and right[left[0]]:  # of plans that all failed, the cheapest is no better
            left = left[: (len(left) + 1) // 2]
    best = left[0]
    return Found(question, best if right[best] else "", right[best] / tried, tokens[best] / tried)


async def fit(
    problems: Sequence[tuple[str, str]], sampler: Sampler, plans: Sequence[str] = PLANS, **options: Any
) -> tuple[Planner, list[Found]]:
    """A planner from (question, answer) pairs kept for this, and what the search found for each; `options` are
    those of `search`.

    Questions that no plan solved are left out of the planner. Raises BadInput when that is all of them, and what
    `search` raises.
    """
    found = [await search(question, answer, sampler, plans, **options) for question, answer in problems]
    known = [each for each in found if each.plan]
    if not known:
        raise BadInput(f"no plan solved any of the {len(found)} problems: there is nothing to fit a planner on")
    return fit_planner([each.question for each in known], [each.plan for each in known], sampler.name), found
