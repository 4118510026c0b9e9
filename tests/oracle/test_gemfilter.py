"""GemFilter: the early layer's scores, the tokens that are chosen, and that nothing else is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import small_reader
from lengthwise._early import early_scores
from lengthwise._reader import frame
from lengthwise.documents import Document, encode
from lengthwise.errors import StackRefused
from lengthwise.prompt.gemfilter import early_layer
from reference import Held, Reference


def scores(model: Any, ids: Tensor, layer: int, cap: int = 1 << 40) -> Tensor:
    """s_i in float64: a whole pass, with distances above `cap` seen as `cap`."""
    found: list[Tensor] = []

    def rule(held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        distance = (positions[:, None] - held.positions[None]).clamp(max=cap)
        if held.layer == layer:
            heads = reference.scores(q[:, -1:], held.k, distance[-1:].expand(len(q), 1, -1))
            found.append((heads * reference.dim**0.5).sum(0)[0])
        return positions[:, None] >= held.positions[None], distance

    reference = Reference(model, rule)
    reference.read(ids)
    return found[0]


def chosen(s: list[float], top: int, pool: int) -> list[int]:
    """The naive choice: averages over those neighbours that there are, the earlier of equals, in order."""
    average = []
    for i in range(len(s)):
        around = s[max(0, i - pool // 2) : i + pool // 2 + 1]
        average.append(sum(around) / len(around))
    return sorted(sorted(range(len(s)), key=lambda i: (-average[i], i))[:top])


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize(("length", "chunk"), [(1, 8), (63, 1024), (201, 37)])
def test_scores_are_those_of_a_whole_pass(kv_heads: int, layer: int, length: int, chunk: int) -> None:
    model = small_reader.model(kv_heads)
    ids = torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(length))
    with lengthwise.stack("dense").on(model) as run:
        got = early_scores(run, ids, layer, chunk=chunk)
        run.ledger.consulted["dense"] += 1
        assert [r.queries > 0 for r in run.ledger.layers] == [i < layer for i in range(4)]
    torch.testing.assert_close(got.double(), scores(model, ids, layer), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("stack", ["rerope:window=40", "linear:factor=1.0"])
def test_scores_follow_the_position_method(stack: str) -> None:
    model = small_reader.model()
    ids = torch.randint(0, 300, (150,), generator=torch.Generator().manual_seed(5))
    cap = 40 if "rerope" in stack else 1 << 40
    with lengthwise.stack(stack).on(model) as run:
        got = early_scores(run, ids, 1, chunk=64)
    torch.testing.assert_close(got.double(), scores(model, ids, 1, cap), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("pool", [1, 5])
def test_the_answer_is_read_from_the_chosen_tokens_alone(pool: int) -> None:
    model, tokenizer = small_reader.model(), small_reader.tokenizer()
    prompt, (ids, _) = frame(small_reader.QUESTION, tokenizer), encode(small_reader.TEXT, tokenizer)
    s = scores(model, torch.cat([prompt.head, ids, prompt.after]), 2)[len(prompt.head) : len(prompt.head) + len(ids)]
    kept = chosen(s.tolist(), 48, pool)
    with lengthwise.stack(f"gemfilter:top=48,layer=2,pool={pool}").on(model) as run:
        reader = small_reader.reader(run)
        choice = reader.choose(0, 9)
        got = reader.read(0, choice, 9)
    assert [i for a, b in choice.spans for i in range(a, b)] == kept == got.kept.tolist()
    assert got.text == small_reader.written(model, torch.cat([prompt.head, ids[kept], prompt.after]), 9)
    assert run.ledger.layers[-1].held_tokens == 48 + len(prompt) + 8


def test_it_costs_less_than_reading_everything() -> None:
    documents = [Document("a", small_reader.TEXT)]
    given = {"model": (small_reader.model(), small_reader.tokenizer()), "max_new_tokens": 2}
    dense = lengthwise.ask(documents, small_reader.QUESTION, stack="dense", **given).ledger
    got = lengthwise.ask(documents, small_reader.QUESTION, stack="gemfilter:top=32,layer=1", **given)
    assert got.ledger.pairs < 0.45 * dense.pairs
    assert got.ledger.dense_pairs == pytest.approx(dense.dense_pairs, rel=0.1)
    for passage in got.evidence:
        assert passage.text == small_reader.TEXT[passage.start : passage.end]


def test_a_text_that_is_short_enough_is_read_whole() -> None:
    with lengthwise.stack("gemfilter").on(small_reader.model()) as run:
        reader = small_reader.reader(run, small_reader.TEXT[:200])
        choice = reader.choose(0, 4)
        assert choice.spans == ((0, len(reader.ids)),)
        assert run.ledger.tokens_read == 0


def test_the_layer_is_of_full_attention_and_nearly_half_way_down() -> None:
    assert early_layer(["full"] * 40) == 19
    assert early_layer(["full"] * 30) == 14
    assert early_layer(["full"] * 2) == 1
    assert early_layer(["sliding", "sliding", "sliding", "full", "sliding", "full"]) == 3


@pytest.mark.parametrize(
    ("stack", "says"),
    [
        ("gemfilter:layer=4", "layer=4"),
        ("gemfilter + sirllm:entropy=60,recent=60", "sirllm"),
        ("gemfilter + xl3m", "gemfilter and xl3m"),
    ],
)
def test_refusals(stack: str, says: str) -> None:
    with pytest.raises(StackRefused, match=says):
        lengthwise.stack(stack).on(small_reader.model())
