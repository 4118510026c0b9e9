"""The main job on the real model: slow, and it downloads SmolLM2 once."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

import pytest
import torch

import lengthwise
from lengthwise import models
from lengthwise.documents import Document

pytestmark = pytest.mark.slow

FACT = "The lighthouse keeper of Brannock Head is called Tamsin Okoro."


@pytest.fixture(scope="module")
def smollm2():
    return models.load("smollm2")


def help_topics(characters: int) -> str:
    return "\n\n".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics))[:characters]


def test_a_fact_in_the_middle_of_twice_the_window_is_found_and_shown(smollm2, tmp_path: Path) -> None:
    text = help_topics(70_000)
    at = text.index("\n\n", 35_000) + 2
    text = text[:at] + FACT + "\n\n" + text[at:]
    question = "Who is the lighthouse keeper of Brannock Head?"
    answer = lengthwise.ask([Document("topics.txt", text)], question, model=smollm2, max_new_tokens=32)
    assert answer.stack == "xl3m"
    assert "Tamsin Okoro" in answer.answer
    assert answer.evidence[0].start <= at + len(FACT)
    assert answer.evidence[0].end >= at
    best = max(answer.segments, key=lambda s: s[2])
    others = [s[2] for s in answer.segments if s[1] <= best[0] or s[0] >= best[1]]
    assert best[2] > max(others) + 1.0


@torch.no_grad()
def test_dense_decodes_the_same_tokens_as_transformers(smollm2) -> None:
    model, tokenizer = smollm2
    ids = tokenizer(help_topics(8000), return_tensors="pt").input_ids
    with lengthwise.stack("dense").on(model) as run:
        written = model.generate(ids, past_key_values=run.prefill(ids), max_new_tokens=24, do_sample=False)
    stock = model(written[:, :-1]).logits[0, ids.shape[1] - 1 :].float()
    chosen = stock.gather(1, written[0, ids.shape[1] :, None])[:, 0]
    best = stock.amax(1)
    # the best, or level with it but for the last place of bfloat16, in which two of the stock logits often tie
    assert (best - chosen <= best.abs() * 2**-8 * 2).all()
    assert (chosen == best).sum() >= 22


@torch.no_grad()
@pytest.mark.parametrize("stack", ["lm-infinite:sinks=10,window=1024", "streaming-llm:window=1024"])
def test_a_window_stays_fluent_past_the_trained_one(smollm2, stack: str) -> None:
    """Loss of the last 512 of 10,000 tokens, against plain attention to the last 1,536 alone."""
    model, tokenizer = smollm2
    ids = tokenizer(help_topics(60_000), return_tensors="pt").input_ids[:, :10_000]
    with lengthwise.stack("dense").on(model) as run:
        reference = float(run.losses(ids[:, -1536:])[-512:].mean())
    with lengthwise.stack(stack).on(model) as run:
        loss = float(run.losses(ids)[-512:].mean())
    assert loss < 1.05 * reference
    assert max(layer.held_tokens for layer in run.ledger.layers) <= 1024 + 10 + 64 + 1024
