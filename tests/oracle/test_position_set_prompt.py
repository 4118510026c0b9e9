"""Sets of sub-sequences: against a Llama with positions and visibility token by token, and in every order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from lengthwise.core import compat
from lengthwise.core.stack import Stack, refusals
from lengthwise.errors import BadInput, BadParameter, StackRefused
from lengthwise.position.set_prompt import SetPrompt, from_text
from reference import Held, Reference, Rule

IDS = tiny.tokens(150)[0]
PARTS = "10-31-40-75/80-81-95"


def layout(parts: str, n: int) -> tuple[list[int], list[tuple[int, int] | None]]:
    """Where each of n tokens stands, and (set, sub-sequence) of those in a set: token by token."""
    sets = [list(map(int, s.split("-"))) for s in parts.split("/")]
    place, member, at = [], [], 0
    i = 0
    while i < n:
        inside = next((k for k, edges in enumerate(sets) if edges[0] == i), None)
        if inside is None:
            place.append(at)
            member.append(None)
            i, at = i + 1, at + 1
            continue
        edges = sets[inside]
        for j in range(len(edges) - 1):
            for offset in range(edges[j + 1] - edges[j]):
                place.append(at + offset)
                member.append((inside, j))
        at += max(edges[j + 1] - edges[j] for j in range(len(edges) - 1))
        i = edges[-1]
    return place[:n], member[:n]  # type: ignore[return-value]


def rule(parts: str, n: int) -> Rule:
    place, member = layout(parts, n)

    def sees(m: int, k: int) -> bool:
        mine, its = member[m], member[k]
        return k <= m and (mine is None or its is None or mine[0] != its[0] or mine[1] == its[1])

    see = torch.tensor([[sees(m, k) for k in range(n)] for m in range(n)])
    distance = torch.tensor([[place[m] - place[k] for k in range(n)] for m in range(n)])

    def both(held: Held, q: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return see[positions][:, held.positions], distance[positions][:, held.positions]

    return both


def read(parts: str, model: Any, ids: Tensor, chunks: list[int], block: int = 1024, more: str = "") -> Tensor:
    with lengthwise.stack(f"set-prompt:parts={parts}{more}").on(model) as run, torch.no_grad():
        run.block, cache = block, run.cache()
        return torch.cat([model(part[None], past_key_values=cache).logits[0] for part in ids.split(chunks)])


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize("parts", [PARTS, "1-2-3-4-5", "0-63-150", "20-30/30-50-77", "140-145-170"])
def test_logits(name: str, parts: str) -> None:
    expected = Reference(tiny.model(name), rule(parts, 150)).read(IDS)
    for chunks, block in (([150], 1024), ([150], 13), ([41, 63, 37, *[1] * 9], 23)):
        got = read(parts, tiny.model(name), IDS, chunks, block)
        torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox", "phi3-partial", "cohere"])
def test_the_order_of_a_set_does_not_matter(architecture: str) -> None:
    """Every permutation of four sub-sequences gives the same logits behind them, and the same writing."""
    model = tiny.model(architecture)
    before, after = tiny.tokens(9)[0], tiny.tokens(12)[0]
    members = [tiny.tokens(n, seed=n)[0] for n in (5, 17, 1, 11)]
    outputs = []
    for order in itertools.permutations(members):
        ids = torch.cat([before, *order, after])
        edges = list(itertools.accumulate(map(len, order), initial=len(before)))
        logits = read("-".join(map(str, edges)), model, ids, [30, 20, len(ids) - 50])
        outputs.append(logits[-len(after) :])
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], atol=1e-5, rtol=1e-5)
    plain = [tiny.plain_logits(model, torch.cat([before, *o, after])[None])[0, -1] for o in (members, members[::-1])]
    assert (plain[0] - plain[1]).abs().max() > 1e-2


def test_rows_of_a_batch() -> None:
    """Parts are counted from each row's first token."""
    model, ids, mask = tiny.model("llama"), tiny.tokens(120, batch=2), torch.ones(2, 120, dtype=torch.long)
    mask[1, :13] = 0
    with lengthwise.stack(f"set-prompt:parts={PARTS}").on(model) as run, torch.no_grad():
        got = model(ids, attention_mask=mask, past_key_values=run.cache()).logits
    for row, pad in ((0, 0), (1, 13)):
        alone = read(PARTS, model, ids[row, pad:], [120 - pad])
        torch.testing.assert_close(got[row, pad:], alone, atol=1e-5, rtol=1e-5)


def test_beside_other_methods() -> None:
    alone = read(PARTS, tiny.model("llama"), IDS, [70, 80])
    moved = read(PARTS, tiny.model("llama"), IDS, [70, 80], more=" + offload:hot=16,pages=1")
    torch.testing.assert_close(moved, alone, atol=1e-5, rtol=1e-5)


def test_marked_text() -> None:
    """Marks are left out; parts are tokenized apart, so that another order has the same tokens in it."""
    options = ["a dog", "the big cat", "one hamster"]
    tokenizer = tiny.tokenizer(["which pet is best? a dog the big cat one hamster answer:"] * 3, 280, "<end>")
    ends, written = [], []
    for order in itertools.permutations(options):
        inside = "<|split_2d|>".join(order)
        ids, method = from_text(f"which pet? <|start_2d|>{inside}<|end_2d|> answer:", tokenizer)
        assert tokenizer.decode(ids[0]) == f"which pet? {''.join(order)} answer:"
        (edges,) = method.sets
        for a, b, option in zip(edges[:-1], edges[1:], order, strict=True):
            assert tokenizer.decode(ids[0, a:b]) == option
        model = tiny.model("llama")
        ids = ids % 96 + 1  # the tiny model's vocabulary
        with Stack([method]).on(model) as run, torch.no_grad():
            ends.append(model(ids, past_key_values=run.cache()).logits[0, -1])
            out = model.generate(ids, past_key_values=run.prefill(ids, chunk=7), max_new_tokens=5, do_sample=False)  # type: ignore[operator]
            written.append(out[0, ids.shape[1] :].tolist())
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], atol=1e-5, rtol=1e-5)
    assert all(w == written[0] for w in written)
    two, method = from_text("x<|start_2d|>a<|split_2d|>b<|end_2d|>y<|start_2d|>c<|split_2d|>dd<|end_2d|>", tokenizer)
    assert [len(edges) for edges in method.sets] == [3, 3]
    assert method.sets[1][-1] == two.shape[1]


@pytest.mark.parametrize(
    "text",
    [
        "no set",
        "a<|start_2d|>b",
        "a<|end_2d|>b",
        "a<|split_2d|>b",
        "<|start_2d|>a<|split_2d|><|end_2d|>",
        "<|start_2d|>a<|start_2d|>b<|end_2d|><|end_2d|>",
        "<|start_2d|>a<|split_2d|>b<|end_2d|> c<|split_2d|>d",
    ],
)
def test_wrong_marks(text: str) -> None:
    with pytest.raises(BadInput):
        from_text(text, tiny.tokenizer(["a b c d"], 260, "<end>"))


def test_refusals() -> None:
    facts = compat.model_facts(tiny.model("llama"))
    assert "say where sub-sequences lie" in refusals([SetPrompt()], facts)[0]
    sliding = compat.model_facts(tiny.model("gemma3"))
    assert "sliding-window layers" in refusals([SetPrompt(parts="1-2-3")], sliding)[0]
    for wrong in ("12", "12-a", "20-12", "12-20/15-30", "5-5"):
        with pytest.raises(BadParameter, match="parts="):
            SetPrompt(parts=wrong)
    for other in ("xl3m", "sirllm"):
        with pytest.raises(StackRefused, match=rf"set-prompt .* {other}"):
            lengthwise.stack(f"set-prompt:parts=1-2-3 + {other}")
