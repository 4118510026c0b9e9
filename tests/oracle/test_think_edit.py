"""ThinkEdit: a planted direction is found, in the head that writes it, and gone from what that head writes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from lengthwise.errors import BadInput, BadParameter
from lengthwise.thinking.weights import edited
from lengthwise.thinking.weights import think_edit as editing

HEADS, DIM, HIDDEN = 4, 12, 48
PLANTED = (1, 2)  # layer, head


class Words:
    """A tokenizer: numbers are tokens."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, Any]:
        return {"input_ids": [int(w) for w in text.split()]}


def chain(seed: int, length: int) -> tuple[str, str]:
    ids = tiny.tokens(length + 4, seed)[0].tolist()
    return " ".join(map(str, ids[:4])), " ".join(map(str, ids[4:]))


SHORT = [chain(s, 5) for s in range(6)]
LONG = [chain(s, 23) for s in range(10, 16)]


def seen(model: Any, sample: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """What o_proj of every layer gets, and the stream behind every attention, at the places that predict the chain."""
    given: list[Tensor] = []
    before: list[Tensor] = []
    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.register_forward_pre_hook(lambda m, a, k: before.append(a[0][0]), with_kwargs=True))
        hooks.append(layer.self_attn.register_forward_hook(lambda m, a, o: before.append(o[0][0])))
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a: given.append(a[0][0])))
    ids = [int(w) for w in " ".join(sample).split()]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    places = slice(len(sample[0].split()) - 1, len(ids) - 1)
    streams = [before[i] + before[i + 1] for i in range(0, len(before), 2)]
    return torch.stack(given)[:, places], torch.stack(streams)[:, places]


def test_directions_and_contributions_follow_their_formulas() -> None:
    model = tiny.model("llama")
    v = editing.directions(model, Words(), SHORT, LONG)  # type: ignore[arg-type]
    means = [torch.stack([seen(model, s)[1].mean(1) for s in some]).mean(0) for some in (SHORT, LONG)]
    want = means[0] - means[1]
    torch.testing.assert_close(v, want / want.norm(dim=-1, keepdim=True), atol=1e-5, rtol=1e-4)
    added = editing.contributions(model, Words(), SHORT, v)  # type: ignore[arg-type]
    for layer in range(2):
        weight = model.model.layers[layer].self_attn.o_proj.weight.detach()  # type: ignore[union-attr, index]
        for head in range(HEADS):
            columns = weight[:, head * DIM : (head + 1) * DIM]
            each = [
                (seen(model, s)[0][layer][:, head * DIM : (head + 1) * DIM] @ columns.T @ v[layer]).mean()
                for s in SHORT
            ]
            assert float(added[layer, head]) == pytest.approx(float(torch.stack(each).mean()), abs=1e-5)


def planted() -> tuple[Any, Tensor]:
    """A model one of whose heads writes a direction of its own, strongly."""
    model = copy.deepcopy(tiny.model("llama"))
    unit = torch.zeros(HIDDEN)
    unit[7] = 1.0
    layer, head = PLANTED
    weight = model.model.layers[layer].self_attn.o_proj.weight  # type: ignore[union-attr, index]
    given = torch.stack([seen(model, s)[0][layer].mean(0) for s in SHORT]).mean(0)[head * DIM : (head + 1) * DIM]
    with torch.no_grad():
        weight[:, head * DIM : (head + 1) * DIM] += 5 * torch.outer(unit, given / given.norm() ** 2)
    return model, unit.expand(2, -1)


def test_the_planted_head_is_found_and_its_direction_is_gone() -> None:
    model, v = planted()
    added = editing.contributions(model, Words(), SHORT, v)  # type: ignore[arg-type]
    heads = editing.top_heads(added, share=0.04)
    assert heads == [PLANTED]
    delta = editing.edit(model, v, heads)
    layer, head = PLANTED
    columns = slice(head * DIM, (head + 1) * DIM)
    weight = model.model.layers[layer].self_attn.o_proj.weight
    before = weight.detach().clone()
    across = torch.eye(HIDDEN) - torch.outer(v[layer], v[layer])
    with edited(model, delta):
        torch.testing.assert_close(v[layer] @ weight[:, columns], torch.zeros(DIM), atol=1e-6, rtol=0)
        torch.testing.assert_close(weight[:, columns], across @ before[:, columns])
        others = [i for i in range(HIDDEN) if not columns.start <= i < columns.stop]
        assert torch.equal(weight[:, others], before[:, others])
        given = torch.stack([seen(model, s)[0][layer].mean(0) for s in SHORT])
        assert (given[:, columns] @ weight[:, columns].T @ v[layer]).abs().max().item() < 1e-5
    assert list(delta.parts) == ["model.layers.1.self_attn.o_proj.weight"]
    assert torch.equal(weight, before)


def test_several_heads_and_half_strength() -> None:
    model, v = tiny.model("llama"), torch.nn.functional.normalize(torch.randn(2, HIDDEN), dim=-1)
    heads = [(0, 1), (1, 0), (0, 3)]
    weights = [layer.self_attn.o_proj.weight for layer in model.model.layers]  # type: ignore[union-attr]
    before = [(v[i] @ w.detach()).view(HEADS, DIM).clone() for i, w in enumerate(weights)]
    with edited(model, editing.edit(model, v, heads, strength=0.5)):
        for layer, weight in enumerate(weights):
            along = (v[layer] @ weight).view(HEADS, DIM)
            for head in range(HEADS):
                share = 0.5 if (layer, head) in heads else 1.0
                torch.testing.assert_close(along[head], share * before[layer][head], atol=1e-6, rtol=1e-4)


def test_the_share_of_heads() -> None:
    added = torch.tensor([[0.1, 3.0, -5.0], [2.0, 0.0, 1.0]])
    assert editing.top_heads(added, 0.5) == [(0, 1), (1, 0), (1, 2)]
    assert editing.top_heads(added, 0.01) == [(0, 1)]
    with pytest.raises(BadParameter, match="share"):
        editing.top_heads(added, 0.0)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt-neox", "no linear output projection"),
        ("gemma2", "norm behind the heads' output"),
        ("olmo2", "no norm between"),
        ("cohere", "no norm between"),
    ],
)
def test_other_layouts_are_refused(name: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        editing.directions(tiny.model(name), Words(), SHORT, LONG)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "phi3", "granite"])
def test_known_layouts(name: str) -> None:
    model = tiny.model(name)
    v = editing.directions(model, Words(), SHORT[:2], LONG[:2])  # type: ignore[arg-type]
    added = editing.contributions(model, Words(), SHORT[:2], v)  # type: ignore[arg-type]
    heads = editing.top_heads(added, 0.2)
    with edited(model, editing.edit(model, v, heads)):
        for layer, head in heads:
            weight = model.model.layers[layer].self_attn.o_proj.weight  # type: ignore[union-attr, index]
            along = (v[layer] @ weight).view(added.shape[1], -1)
            assert along[head].abs().max().item() < 1e-5
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_bad_input() -> None:
    model = tiny.model("llama")
    with pytest.raises(BadInput, match="short chains and long ones"):
        editing.directions(model, Words(), SHORT, [])  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="without text"):
        editing.directions(model, Words(), [("3", "")], LONG)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="look the same"):
        editing.directions(model, Words(), SHORT, SHORT)  # type: ignore[arg-type]
    with pytest.raises(BadParameter, match="pairs"):
        editing.edit(model, torch.ones(2, HIDDEN), [(2, 0)])
