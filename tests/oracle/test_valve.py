"""CoT-Valve: the trained direction is what the branch computed, each example at its own share; lengths follow it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import tiny
from lengthwise import models
from lengthwise.errors import BadInput, BadParameter
from lengthwise.thinking._rows import Source
from lengthwise.thinking.weights import Example, Recipe, betas, chains, edited, train, valve

TEXTS = ["one two three four five six seven", "seven six five four", "two four six"]


@pytest.fixture(scope="module")
def small():  # type: ignore[no-untyped-def]
    tokenizer = tiny.tokenizer(TEXTS, 97 + 180, "<e>")
    config = tiny.CONFIGS["llama"]()
    config.vocab_size = len(tokenizer)
    from transformers import LlamaForCausalLM

    torch.manual_seed(3)
    return LlamaForCausalLM(config).eval(), tokenizer


def test_length_factors() -> None:
    assert betas([10, 30, 20]) == [1.0, 0.0, 0.5]
    assert betas([7]) == betas([7, 7])[:1] == [1.0]


def nats(model, tokenizer, example: Example) -> float:  # type: ignore[no-untyped-def]
    """-log p of the chain's tokens, mean, one token at a time."""
    before = tokenizer(example.prompt)["input_ids"]
    after, total = tokenizer(example.chain)["input_ids"], 0.0
    for i, token in enumerate(after):
        with torch.no_grad():
            logits = model(torch.tensor([before + after[:i]])).logits[0, -1]
        total -= float(torch.log_softmax(logits, -1)[token])
    return total / len(after)


def test_the_delta_is_the_branch_and_beta_scales_it(small) -> None:  # type: ignore[no-untyped-def]
    """The losses of a step with any betas are those of the model with beta times the delta added."""
    model, tokenizer = small
    recipe = Recipe(rank=3, scale=6.0)
    examples = [Example("one two", " three four", 1.0), Example("seven", " six five four three", 0.25)]
    with valve._branch(model, recipe) as branch:
        for up, down in branch.pairs.values():
            torch.manual_seed(up.shape[0] + down.shape[1])
            up.data.normal_(std=0.3)
        rows = [valve._encode(e, tokenizer, model) for e in examples]
        losses = [valve._loss(model, branch, [row]).item() for row in rows]
        both = valve._loss(model, branch, rows).item()
        delta = branch.delta({})
    counts = [len(r.ids) - r.prompt for r in rows]
    assert both == pytest.approx(sum(x * n for x, n in zip(losses, counts)) / sum(counts), rel=1e-4)
    for example, loss in zip(examples, losses):
        with edited(model, delta, example.beta):
            assert nats(model, tokenizer, example) == pytest.approx(loss, rel=1e-4)
    assert nats(model, tokenizer, examples[0]) != pytest.approx(losses[0], rel=1e-2)


def test_training_lowers_the_loss_of_its_examples_and_leaves_the_model(small) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = small
    before = copy.deepcopy(model.state_dict())
    wanted = [p.requires_grad for p in model.parameters()]
    example, seen = Example("one two three", " seven six<e>"), []
    recipe = Recipe(rank=2, scale=4.0, rate=2e-2, batch=2, epochs=10)
    delta = train(model, tokenizer, [[example] * 2, [example] * 3], recipe, lambda *a: seen.append(a))
    assert [(s, n) for s, n, _ in seen] == [(i + 1, 30) for i in range(30)]  # 10 of one batch, 10 of two
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert not any(m._forward_hooks for m in model.modules())
    assert "lm_head.weight" not in delta.parts
    assert len(delta.parts) == 2 * 7
    start = nats(model, tokenizer, example)
    assert seen[0][2] == pytest.approx(start, rel=1e-3)  # the branch begins as nothing
    with edited(model, delta):
        assert nats(model, tokenizer, example) < start / 4
    again = train(model, tokenizer, [[example] * 2, [example] * 3], recipe)
    assert all(torch.equal(delta.of(n), again.of(n)) for n in delta.parts)


def test_examples_that_cannot_be_are_refused(small) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = small
    with pytest.raises(BadInput, match="nothing to train on"):
        train(model, tokenizer, [[Example("a", "b")], []])
    with pytest.raises(BadInput, match="window"):
        train(model, tokenizer, [[Example("a", "zq " * 600)]])
    with pytest.raises(BadInput, match="a prompt and a chain"):
        train(model, tokenizer, [[Example("a", "")]])
    with pytest.raises(BadParameter, match="at least 1"):
        Recipe(rank=0)


def source(question: str, thinking: str, right: bool | None = True) -> Source:
    return Source("1", [{"role": "user", "content": question}], thinking, " 7.", "7", right=right)


def test_chains_become_examples() -> None:
    _, tokenizer = models.load("pocket-reasoner", dtype="float32", device="cpu")
    rows = [source("What is 3+4 mod 10?", " 3+4=7;" * n) for n in (2, 1, 3)]
    rows += [
        source("What is 3+4 mod 10?", " 3+4=8;", right=False),
        source("What is 5+2 mod 10?", " 5+2=7;", right=None),
    ]
    grouped, left_out = chains.groups(rows, tokenizer)
    assert (len(grouped), left_out) == (2, 1)
    close = "</think> 7.</s>"
    (short,) = chains.shortest(grouped)
    assert [e.chain for e in short] == [" 3+4=7;" + close, " 5+2=7;" + close]
    assert short[0].prompt.endswith("<think>")
    (mixed,) = chains.mixture(grouped)
    assert [e.beta for e in mixed] == [0.0, 0.5, 1.0, 1.0]
    stages = chains.ladder(grouped, 3)
    assert [stage[0].chain.count("=") for stage in stages] == [3, 2, 1]
    assert all(stage[1].chain == " 5+2=7;" + close for stage in stages)
    with pytest.raises(BadInput, match="does not say what was asked"):
        chains.groups([Source("4.2", None, " 1;", " 1.", "1")], tokenizer)


def test_the_valve_turns_the_pocket_reasoner(tmp_path: Path) -> None:
    """Taught to check always, it is less likely not to check, the more the farther along the direction."""
    model, tokenizer = models.load("pocket-reasoner", dtype="float32", device="cpu")
    examples = []
    for a, b, c in [(3, 4, 2), (5, 1, 3), (2, 2, 2), (8, 1, 0), (4, 5, 6), (7, 7, 1), (1, 9, 5), (6, 0, 3)]:
        one, two = (a + b) % 10, (a + b + c) % 10
        once = f" {a}+{b}={one}; {one}+{c}={two};"
        prompt = f"<s>\nQuestion: What is {a}+{b}+{c} mod 10? Answer: <think>"
        examples.append(Example(prompt, f"{once} check:{once}</think> {two}.</s>"))
    held_out = examples.pop()
    recipe = Recipe(rank=4, scale=8.0, rate=5e-3, batch=7, epochs=12)
    delta = train(model, tokenizer, [examples], recipe)
    once = held_out.chain.partition(" check:")[0]
    ids = torch.tensor([tokenizer(held_out.prompt + once, add_special_tokens=False)["input_ids"]])
    close = tokenizer.convert_tokens_to_ids("</think>")
    ends = []
    for alpha in (-0.5, 0.0, 0.5, 1.0):
        with edited(model, delta, alpha), torch.no_grad():
            ends.append(float(torch.softmax(model(ids).logits[0, -1], -1)[close]))
    assert ends == sorted(ends, reverse=True)
    assert ends[1] > 0.3
    assert ends[-1] < 0.1
