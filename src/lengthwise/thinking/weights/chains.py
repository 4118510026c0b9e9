"""Chains of a file as training examples: which of a question's chains a direction learns, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lengthwise.errors import BadInput, BadParameter
from lengthwise.thinking._rows import Source
from lengthwise.thinking.tags import find_tags, render
from lengthwise.thinking.weights.valve import Example, betas

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Group = list[tuple[str, str, int]]
"""(prompt, chain, its length in tokens) of one question, the longest first."""


def prompts(sources: Sequence[Source], tokenizer: PreTrainedTokenizerBase) -> list[tuple[Source, str]]:
    """Every chain with the prompt after which it was written. Raises BadInput where the file does not say."""
    tags, out = find_tags(tokenizer), []
    for source in sources:
        if source.messages is None:
            raise BadInput(f'chain {source.id}: the row does not say what was asked ("problem" or "messages")')
        out.append((source, render(source.messages, tokenizer, tags)))
    return out


def groups(sources: Sequence[Source], tokenizer: PreTrainedTokenizerBase) -> tuple[list[Group], int]:
    """The chains by question, and how many were left out because their answer is wrong or they have none.

    Chains whose right answer is not known are kept. Raises BadInput for models without a thinking section.
    """
    tags = find_tags(tokenizer)
    if tags is None:
        raise BadInput("the model has no thinking section: its tags are in neither its chat template nor its tokens")
    found: dict[str, Group] = {}
    left_out = 0
    for source, prompt in prompts(sources, tokenizer):
        if source.right is False or not source.thinking or not source.text.strip():
            left_out += 1
            continue
        chain = f"{source.thinking}{tags.close}{source.text}{tokenizer.eos_token or ''}"
        length = len(tokenizer(source.thinking, add_special_tokens=False)["input_ids"])
        found.setdefault(prompt, []).append((prompt, chain, length))
    for group in found.values():
        group.sort(key=lambda chain: -chain[2])
    return list(found.values()), left_out


def shortest(given: Sequence[Group]) -> list[list[Example]]:
    """CoT-Valve: one stage, with the shortest chain of every question."""
    return [[Example(*group[-1][:2]) for group in given]]


def mixture(given: Sequence[Group]) -> list[list[Example]]:
    """CoT-Valve++: one stage, with all chains of every question and their length factors."""
    rows = [(group, betas([length for _, _, length in group])) for group in given]
    return [[Example(p, c, beta) for group, factors in rows for (p, c, _), beta in zip(group, factors)]]


def ladder(given: Sequence[Group], stages: int) -> list[list[Example]]:
    """CoT-Valve+P: `stages` of ever shorter chains; a question with fewer chains stays at its shortest."""
    if stages < 2:
        raise BadParameter("a progression needs at least two stages")
    out = []
    for stage in range(stages):
        rows = [group[round(stage * (len(group) - 1) / (stages - 1))] for group in given]
        out.append([Example(prompt, chain) for prompt, chain, _ in rows])
    return out
