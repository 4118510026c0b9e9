"""`--stack auto`: every rule at its edges, on models of several kinds; and the page that states the same rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

import lengthwise
import small_reader
from lengthwise import auto
from lengthwise.core.facts import ModelFacts, facts_of_config
from lengthwise.core.grammar import parse
from lengthwise.core.stack import refusals
from lengthwise.documents import Document
from lengthwise.errors import BadInput

PAGE = Path(__file__).parents[2] / "docs" / "which.md"
WINDOW = 1000


def facts(config: type = LlamaConfig, **more: Any) -> ModelFacts:
    return facts_of_config(config(max_position_embeddings=WINDOW, num_hidden_layers=6, **more))


def size(of: ModelFacts, tokens: int) -> int:
    return tokens * of.kv_bytes_per_token * len(of.layer_kinds)


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 500,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
SCALED = facts(rope_parameters=LLAMA3)
SLIDING = facts(MistralConfig, sliding_window=200)
MIXED = facts(Gemma3TextConfig)
RULES = [
    # model, tokens, share of their keys and values that memory takes, what is needed, what is chosen
    (facts(), 1000, 1.0, "facts", "dense"),
    (facts(), 1000, 1.0, "whole", "dense"),
    (facts(), 1000, 0.99, "facts", "int8"),
    (facts(), 1000, 0.59, "whole", "int8 + offload"),
    (facts(), 1001, 1.0, "facts", "xl3m"),
    (facts(), 1_000_000, 0.01, "facts", "xl3m"),
    (facts(), 1001, 1.0, "whole", "yarn:factor=2.0 + block-sparse"),
    (facts(), 4000, 1.0, "whole", "yarn + block-sparse"),
    (facts(), 16_000, 1.0, "whole", "yarn:factor=16.0 + block-sparse"),
    (facts(), 16_000, 0.99, "whole", "yarn:factor=16.0 + int8"),
    (facts(), 16_000, 0.59, "whole", "lm-infinite:sinks=10,window=500"),
    (facts(), 16_001, 9.0, "whole", "lm-infinite:sinks=10,window=500"),
    (SCALED, 1000, 1.0, "whole", "dense"),
    (SCALED, 2500, 1.0, "whole", "self-extend:group=4,window=256"),
    (SCALED, 2500, 0.7, "whole", "self-extend:group=4,window=256 + int8"),
    (SCALED, 16_000, 1.0, "whole", "self-extend:group=32,window=256"),
    (MIXED, 4000, 1.0, "whole", "yarn + block-sparse"),
    (SLIDING, 4000, 1.0, "facts", "xl3m"),
    (SLIDING, 4000, 1.0, "whole", "xl3m"),
]


@pytest.mark.parametrize(("model", "tokens", "share", "need", "stack"), RULES)
def test_rules(model: ModelFacts, tokens: int, share: float, need: auto.Need, stack: str) -> None:
    chosen, reason = auto.choose(model, tokens, int(share * size(model, tokens)), need)
    assert str(lengthwise.stack(chosen)) == stack
    assert not refusals(parse(chosen), model)
    assert f"{tokens:,} tokens" in reason
    assert "\n" not in reason


@pytest.mark.parametrize("window", [64, 512, 1000, 8192, 40_960])
@pytest.mark.parametrize("times", [1.01, 2, 5.5, 16])
def test_groups_reach_the_length_within_trained_distances(window: int, times: float) -> None:
    model = facts_of_config(LlamaConfig(max_position_embeddings=window))
    tokens = int(window * times)
    group, near = auto.grouping(model, tokens)
    assert near <= window // 2
    assert near % group == 0
    last = tokens - 1
    assert last // group + near - near // group < window
    smaller = group // 2
    assert group == 2 or last // smaller + near - near // smaller >= window - near // smaller - 1


def test_a_window_that_yarn_stretched_in_training_is_the_stretched_one() -> None:
    """Qwen's configs name the factor and leave max_position_embeddings at what it was before."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000, "rope_theta": 1e6}
    for most in (1000, 4000):
        model = facts_of_config(Qwen3Config(max_position_embeddings=most, num_hidden_layers=4, rope_parameters=yarn))
        assert model.window == 4000
    assert auto.choose(model, 4000, size(model, 4000))[0] == "dense"
    assert auto.choose(model, 4001, 1 << 40, "whole")[0].startswith("self-extend")


def test_need_reaches_the_rules_through_ask() -> None:
    given: dict[str, Any] = {"model": (small_reader.model(), small_reader.tokenizer()), "max_new_tokens": 2}
    text = [Document("a", small_reader.TEXT * 2)]
    few = lengthwise.ask(text, "Why?", **given)
    whole = lengthwise.ask(text, "Why?", need="whole", **given)
    assert few.stack == "xl3m"
    assert whole.stack.endswith("block-sparse")
    assert "the whole is needed" in whole.why
    with pytest.raises(BadInput, match="need is facts or whole, not 'all'"):
        lengthwise.ask(text, "Why?", need="all", **given)  # type: ignore[arg-type]


def test_the_page_names_every_stack_that_can_be_chosen_and_none_that_does_not_parse() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rules = page.split("## The rules", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|") for line in rules.splitlines() if line.startswith("| ") and "`" in line]
    named = {code for row in rows for code in re.findall(r"`([^`]+)`", row[3])}
    settings = {"factor=F": "factor=4.0", "group=G": "group=8", "window=H": "window=512"}

    def methods(stack: str) -> str:
        for letter, value in settings.items():
            stack = stack.replace(letter, value)
        return " + ".join(m.spec.name for m in lengthwise.stack(stack).methods)

    chosen = {methods(auto.choose(m, n, int(s * size(m, n)), need)[0]) for m, n, s, need, _ in RULES}  # type: ignore[arg-type]
    assert {methods(stack) for stack in named} == chosen
