"""Importance of steps by perplexity (PIR, paper 92), and from where on a model knows the answer (after paper 123).

    PIR(s_i)   = log( PPL(a | q, s without s_i) / PPL(a | q, s) ),   PPL = exp(-mean log p(a_j | ..., a_<j))
    known(i)   = p(a | q, s_1 ... s_i, end of thinking)

with the answer a, the question q and the steps s. arXiv 2505.19187, equations 1 to 3; paper 123 estimates the second
by sampling continuations behind an exit phrase, here it is the probability itself, behind the model's own closing tag.
One forward pass for each step and each number, batched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lengthwise.errors import BadInput
from lengthwise.thinking.chain import Messages, Tags
from lengthwise.thinking.tags import find_tags, render
from lengthwise.thinking.trace import SURE, Trace, prune

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 8192  # tokens of one forward pass, padding included
ELICIT = "\n\nThe final answer is: "  # before the answer, where what the model wrote is longer than a line


class Judge:
    """A model that says how sure it is of answers. `tags` are its own unless given."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tags: Tags | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.tags = tags or find_tags(tokenizer)
        self.window = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def spans(self, text: str) -> list[int]:
        """Where each token of a text begins, in characters."""
        if not self.tokenizer.is_fast:
            raise BadInput("tokens cannot be placed in a text by a slow tokenizer: leave --model out to count words")
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return [start for start, _ in found]

    def judge(self, traced: Trace, messages: Messages, text: str = "", ratio: float = 0.0) -> None:
        """Fill in importance, `known` and `sure`. `text` is what was written after the thinking, as it was written.

        A line of text is what must be probable; of a longer one the answer alone is, behind `ELICIT`. `ratio` of the
        functional steps are marked as pruned, and `change` says what that does to the answer's perplexity. Without an
        answer there is nothing to judge, and a chain that does not fit the window cannot be: a note says so.
        """
        if not traced.answer or not traced.steps:
            traced.notes.append("no importance: the chain has no answer, or no steps")
            return
        close = self.tags.close if self.tags is not None else ""
        short = bool(text.strip()) and "\n" not in text.strip() and traced.answer in text
        target = text.rstrip() if short else ELICIT[len(ELICIT.rstrip()) :] + traced.answer
        close += "" if short else ELICIT.rstrip()
        prompt = render(messages, self.tokenizer, self.tags)
        parts = [s.text for s in traced.steps]
        without = ["".join(parts[:i] + parts[i + 1 :]) for i in range(len(parts))]
        until = ["".join(parts[: i + 1]) for i in range(-1, len(parts))]
        try:
            found = self.log_probs([(prompt + chain + close, target) for chain in [*without, *until]])
        except BadInput as error:
            traced.notes.append(f"no importance: {error}")
            return
        means = [sum(each) / len(each) for each in found]
        full = means[-1]
        for step, mean, each in zip(traced.steps, means, found[len(without) + 1 :]):
            step.importance = full - mean
            step.known = math.exp(sum(each))
        sure = [math.exp(sum(each)) >= SURE for each in found[len(without) :]]
        traced.sure = sure.index(True) - 1 if True in sure else None
        prune(traced, ratio)
        if any(s.pruned for s in traced.steps):
            (each,) = self.log_probs([(prompt + traced.kept() + close, target)])
            traced.change = full - sum(each) / len(each)

    @torch.no_grad()
    def log_probs(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        """log p of every token of the second text after the first, for each pair. Raises BadInput beyond the window."""
        rows = []
        for before, after in pairs:
            first, last = (self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (before, after))
            rows.append((first + last, len(last)))
        longest = max(len(row) for row, _ in rows)
        if self.window is not None and longest > self.window:
            raise BadInput(f"question, chain and answer have {longest:,} tokens, the model's window {self.window:,}")
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        out: list[list[float]] = [[] for _ in rows]
        while order:
            width = len(rows[order[-1]][0])
            some = [order.pop() for _ in range(min(len(order), max(1, BATCH // width)))]
            place = next(self.model.parameters()).device
            ids = torch.zeros(len(some), width, dtype=torch.long, device=place)
            mask = torch.zeros_like(ids)
            for at, index in enumerate(some):
                ids[at, : len(rows[index][0])] = torch.tensor(rows[index][0], device=place)
                mask[at, : len(rows[index][0])] = 1
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for at, index in enumerate(some):
                whole, count = rows[index]
                stop = len(whole)
                said = torch.log_softmax(logits[at, stop - count - 1 : stop - 1].float(), -1)
                out[index] = said.gather(-1, ids[at, stop - count : stop, None])[:, 0].tolist()
        return out
