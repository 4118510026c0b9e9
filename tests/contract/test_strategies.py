"""Every strategy is well declared, and every two of them either think together or are refused with a reason."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

from lengthwise.thinking import Settings, Strategy, think
from lengthwise.thinking.registry import all_strategies, format_strategies, get, parse, refusals, well_formed
from scripted import Scripted, ScriptedChain

ROOT = Path(__file__).parents[2]
NAMES = list(all_strategies())
SMALL = {"more-think": {"times": 2}, "early-exit": {"pace": 3}, "step-search": {"k": 2, "width": 2, "ends": "line"}}
MANY = ("k", "checks")  # chains and verifications: three are enough


def small(name: str) -> Strategy:
    """The strategy with few chains."""
    kind = get(name)
    few = {field: 3 for field in MANY if field in kind.__dataclass_fields__}
    if "m" in kind.__dataclass_fields__:
        few["m"] = 2
    return kind(**(few | SMALL.get(name, {})))  # type: ignore[arg-type]


class OneToken:
    """A tokenizer to which every text is one token."""

    def encode(self, text: str, **options: bool) -> list[int]:
        return [0]


class Able(Scripted):
    """A sampler that can do everything; chains are of different lengths, and most answer 4."""

    tokenizer = OneToken()

    def __init__(self) -> None:
        super().__init__(
            lambda question, n: (
                "2 plus 2\n" * (1 + n % 3) + f"is {4 if n % 3 else 5}</think>\\boxed{{{4 if n % 3 else 5}}}"
            ),
            after=lambda text, n: "so 4</think>\\boxed{4}" if "</think>" not in text else "\\boxed{4}",
            able=("prefix", "logprobs", "logits", "layers"),
        )

    async def chain(self, messages, *, think=True):  # type: ignore[no-untyped-def, override]
        made = await super().chain(messages, think=think)
        made.__class__ = AbleChain
        return made


class AbleChain(ScriptedChain):
    async def layered(self, answers: Sequence[str]) -> list[list[float]]:
        return [[-1.0 - i for i in range(len(answers))] for _ in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_is_well_declared(name: str) -> None:
    kind = get(name)
    assert well_formed(kind) == []
    assert parse(str(kind())) == [kind()]
    assert kind.spec.summary
    assert kind.spec.formula
    assert kind.spec.source
    assert (ROOT / kind.spec.test).is_file()
    assert all(f.metadata["help"] for f in dataclasses.fields(kind))


@pytest.mark.parametrize("names", [(n,) for n in NAMES] + list(combinations(NAMES, 2)), ids=" + ".join)
def test_it_thinks_or_says_why_not(names: tuple[str, ...]) -> None:
    given, sampler = [small(name) for name in names], Able()
    if reasons := refusals(given, sampler):
        assert len(names) > 1, f"{names[0]} alone: {reasons}"
        assert all(any(name in reason for name in names) for reason in reasons), reasons
        return
    thought = asyncio.run(asyncio.wait_for(think("What is 2+2?", sampler, given, settings=Settings(seed=1)), 20))
    assert thought.answer in ("4", "5")
    assert thought.strategy == format_strategies(given)
    assert sampler.live == 0, "chains were left open"
    spent, chains = thought.spent, thought.chains
    assert spent.chains == len(chains)
    assert spent.thinking_tokens == sum(c.thinking_tokens for c in chains)
    assert spent.answer_tokens == sum(c.answer_tokens for c in chains)
    assert spent.cancelled_chains == sum(c.reason in ("cancelled", "pruned") for c in chains)
    assert spent.waiting_tokens <= spent.thinking_tokens + spent.answer_tokens + spent.other_tokens
    assert spent.waiting_tokens > 0
