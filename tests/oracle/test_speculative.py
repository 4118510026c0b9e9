"""Drafted text is distributed as the target's own; the head's threshold decides how much is drafted."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lengthwise import models
from lengthwise.errors import BadInput
from lengthwise.thinking.decoding import acceptance
from lengthwise.thinking.decoding.acceptance import AcceptanceHead
from lengthwise.thinking.decoding.speculative import Receipt, generate, probabilities, verify

SIZE = 4


class Table(nn.Module):
    """A model of bigrams: the next token's logits are a row of a table, the hidden state is the token's one-hot."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.device = logits, torch.device("cpu")
        self.config = SimpleNamespace(
            vocab_size=len(logits), hidden_size=len(logits), max_position_embeddings=64, model_type="table"
        )
        self.config.get_text_config = lambda decoder: self.config

    def forward(self, input_ids: Tensor, past_key_values: Any, output_hidden_states: bool = False, **_: Any) -> Any:
        empty = torch.zeros(1, 1, input_ids.shape[1], 1)
        past_key_values.update(empty, empty, 0)
        states = nn.functional.one_hot(input_ids, SIZE).float()
        return SimpleNamespace(logits=self.logits[input_ids], hidden_states=(states,))


class Sure(AcceptanceHead):
    """Acceptances that are given for each token."""

    def __init__(self, sure: list[float]) -> None:
        super().__init__(len(sure), 0)
        self.sure = torch.logit(torch.tensor(sure))

    def forward(self, x: Tensor) -> Tensor:
        return self.sure[x.argmax(-1)]


def tables() -> tuple[Table, Table]:
    torch.manual_seed(3)
    return Table(torch.randn(SIZE, SIZE) * 1.2), Table(torch.randn(SIZE, SIZE) * 1.2)


def llama(seed: int, layers: int = 1, hidden: int = 16, vocab: int = 11, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def chi_square(found: Counter[Any], expected: dict[Any, float], count: int) -> float:
    """Standard deviations of the chi-square statistic above its mean; cells with few expected ones are one cell."""
    small = {k for k, p in expected.items() if p * count < 8}
    cells = [(found[k], p * count) for k, p in expected.items() if k not in small]
    cells.append((sum(found[k] for k in small), sum(expected[k] for k in small) * count))
    cells = [(f, e) for f, e in cells if e > 0]
    degrees = len(cells) - 1
    return (sum((f - e) ** 2 / e for f, e in cells) - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("how", ["fixed", "head"])
def test_texts_are_distributed_as_the_targets(how: str) -> None:
    target, draft = tables()
    # how much is drafted depends on what is drafted: the case in which a wrong rule would show
    options: dict[str, Any] = (
        {"length": 2} if how == "fixed" else {"head": Sure([0.9, 0.2, 0.6, 0.99]), "bounds": (1, 3)}
    )
    p = target.logits.softmax(-1)
    expected = {(a, b, c): float(p[1, a] * p[a, b] * p[b, c]) for a, b, c in itertools.product(range(SIZE), repeat=3)}
    count, found, total = 2500, Counter[Any](), Receipt()
    for seed in range(count):
        ids, receipt = generate(target, draft, torch.tensor([1]), most=3, seed=seed, **options)
        found[tuple(ids.tolist())] += 1
        total.drafted, total.accepted = total.drafted + receipt.drafted, total.accepted + receipt.accepted
    assert 0.2 < total.accepted / total.drafted < 0.8  # both branches ran often
    assert chi_square(found, expected, count) < 4


def test_one_round_follows_the_rule_exactly() -> None:
    """Exact probabilities of the outcomes of one round of two candidates, by hand."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]], dtype=torch.float64)
    q = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]], dtype=torch.float64)
    drafted = [1, 0]  # accepted with 0.3 / 0.7, then with 0.1 / 0.5
    a, b = 3 / 7, 1 / 5
    expected = {(0, 0): (1 - a) * 0.75, (0, 2): (1 - a) * 0.25}  # p - q = .3, -, .1
    expected |= {(1, 1): a * (1 - b) * 0.35 / 0.4, (1, 2): a * (1 - b) * 0.05 / 0.4}  # p - q = -, .35, .05
    expected |= {(2, t): a * b * float(p[2, t]) for t in range(3)}
    generator, count = torch.Generator().manual_seed(0), 8000
    found = Counter(verify(p, q, drafted, generator) for _ in range(count))
    assert set(found) <= set(expected)
    assert chi_square(found, expected, count) < 4


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    model = llama(1, layers=2)
    ids, receipt = generate(model, model, torch.tensor([1, 2, 3]), most=30, length=5, seed=4)
    assert (len(ids), receipt.tokens) == (30, 30)
    assert receipt.accepted == receipt.drafted == 25
    assert receipt.target_calls == 5  # 5 rounds of 5 candidates and one more
    assert receipt.calls_per_token == pytest.approx(5 / 30)


@pytest.mark.parametrize("length", [0, 1, 3, 8])
def test_greedy_text_is_the_targets_own(length: int) -> None:
    target, draft = llama(1, layers=2), llama(2)
    prompt = torch.tensor([[1, 5, 2, 7]])
    alone = target.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    ids, receipt = generate(target, draft, prompt[0], most=40, length=length, temperature=0)
    assert ids.tolist() == alone[0, 4:].tolist()
    assert receipt.accepted + receipt.target_calls == 40
    assert (length == 0) == (receipt.draft_calls == 0)


def test_the_pocket_reasoner_is_not_changed_by_its_draft() -> None:
    target, tokenizer = models.load("pocket-reasoner", dtype="float32")
    draft = llama(5, vocab=target.config.vocab_size)
    draft.config.max_position_embeddings = 512
    ids = tokenizer("\nQuestion: What is 4+7+8 mod 10? Answer: <think>", return_tensors="pt")["input_ids"]
    line = tokenizer.encode("\n", add_special_tokens=False)[0]
    alone = target.generate(ids, max_new_tokens=60, do_sample=False, eos_token_id=[1, line], pad_token_id=2)
    head = AcceptanceHead(16)
    text, receipt = generate(target, draft, ids[0], most=60, head=head, temperature=0, ends=(1, line))
    assert text.tolist() == alone[0, ids.shape[1] :].tolist()
    assert receipt.drafted > receipt.accepted


def test_drafting_stops_when_a_rejection_is_likely() -> None:
    """A draft that counts 0, 1, 2, 3, 0, ... and a target that agrees: the lengths of the rounds are known."""
    counting = torch.full((SIZE, SIZE), -1e4, dtype=torch.float32)
    for i in range(SIZE):
        counting[i, (i + 1) % SIZE] = 0.0
    model = Table(counting)
    head = Sure([0.95, 0.9, 0.8, 0.85])
    # after 0: 1 - .9 = .1, then 1 - .72 = .28, then 1 - .612 = .388 > .3: three candidates and one of the target
    _, receipt = generate(model, model, torch.tensor([0]), most=4, head=head, threshold=0.3, bounds=(1, 9))
    assert (receipt.target_calls, receipt.drafted, receipt.accepted) == (1, 3, 3)
    for threshold, bounds, drafted in ((0.05, (1, 9), 1), (0.2, (1, 9), 2), (0.05, (2, 9), 2), (0.99, (1, 5), 5)):
        options: dict[str, Any] = {"threshold": threshold, "bounds": bounds}
        _, receipt = generate(model, model, torch.tensor([0]), most=drafted + 1, head=head, **options)
        assert (receipt.target_calls, receipt.drafted) == (1, drafted)
        _, receipt = generate(model, model, torch.tensor([0]), most=drafted + 2, head=head, **options)
        assert (receipt.target_calls, receipt.drafted) == (2, drafted)


def test_a_text_ends_at_its_end() -> None:
    counting = torch.full((SIZE, SIZE), -1e4)
    for i in range(SIZE):
        counting[i, (i + 1) % SIZE] = 0.0
    model = Table(counting)
    ids, receipt = generate(model, model, torch.tensor([0]), most=40, length=2, ends=(3,))
    assert ids.tolist() == [1, 2, 3]
    assert (receipt.tokens, receipt.target_calls) == (3, 1)
    ids, receipt = generate(model, model, torch.tensor([0]), most=40, length=8, ends=(3,))
    assert ids.tolist() == [1, 2, 3]
    assert receipt.drafted == 3  # nothing is drafted behind an end


def test_what_does_not_go_together_is_refused() -> None:
    target, ids = llama(1), torch.tensor([1, 2])
    with pytest.raises(BadInput, match="one tokenizer"):
        generate(target, llama(1, vocab=12), ids, most=4)
    with pytest.raises(BadInput, match="the window of the target is 64"):
        generate(target, target, ids, most=63)
    with pytest.raises(BadInput, match="hidden units"):
        generate(target, target, ids, most=4, head=AcceptanceHead(3))
    with pytest.raises(BadInput, match="either a head"):
        generate(target, target, ids, most=4, head=AcceptanceHead(16), length=3)
    with pytest.raises(BadInput, match="one sequence"):
        generate(target, target, ids[None], most=4)
    sliding = llama(1)
    sliding.config.layer_types = ["sliding_attention"]
    with pytest.raises(BadInput, match="cannot go back"):
        generate(target, sliding, ids, most=4)


def test_the_loss_is_a_weighted_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, wanted = torch.randn(7), torch.rand(7)
    above = below = 0.0
    for x, p in zip(logits.tolist(), wanted.tolist()):
        a = 1 / (1 + math.exp(-x))
        above -= p * math.log(a) + 6 * (1 - p) * math.log(1 - a)
        below += p + 6 * (1 - p)
    assert acceptance.loss_of(logits, wanted).item() == pytest.approx(above / below, rel=1e-5)


def test_examples_mix_the_drafts_tokens_with_the_targets() -> None:
    target, draft = llama(1), llama(2)
    ids = torch.randint(0, 11, (40,), generator=torch.Generator().manual_seed(0))
    e = acceptance.example(target, draft, ids, 5, torch.Generator().manual_seed(1), 0.5)
    assert torch.equal(e.ids[:5], ids[:5])
    assert not e.counts[:5].any()
    kept = ~e.counts[5:]
    assert torch.equal(e.ids[5:][kept], ids[5:][kept])
    assert 8 < int(kept.sum()) < 27
    for i in range(5, 40):  # what a label says, a call of each model at a time
        if e.counts[i]:
            p, q = (probabilities(m(input_ids=ids[None, :i]).logits[0, -1].detach(), 1.0) for m in (target, draft))
            assert float(e.accepted[i]) == pytest.approx(min(1.0, float(p[e.ids[i]] / q[e.ids[i]])), abs=1e-4)
    assert acceptance.example(target, draft, ids, 5, torch.Generator().manual_seed(1), 0.0).counts[5:].all()


def test_a_head_learns_what_is_accepted_and_is_read_back(tmp_path: Path) -> None:
    target, draft = llama(1), llama(2)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 11, (40,), generator=generator) for _ in range(40)]
    examples = [acceptance.example(target, draft, row, 1, generator, acceptance.MIX) for row in rows]
    before = draft.state_dict()["lm_head.weight"].clone()
    head = acceptance.fit(draft, examples[8:], steps=150, weight=1.0)
    assert torch.equal(draft.state_dict()["lm_head.weight"], before)
    with torch.no_grad():
        states = [draft(input_ids=e.ids[None], output_hidden_states=True).hidden_states[-1][0] for e in examples[:8]]
        said = torch.cat([head(s[e.counts]) for s, e in zip(states, examples)])
    wanted = torch.cat([e.accepted[e.counts] for e in examples[:8]])
    mean = torch.logit(wanted.mean()).expand(len(wanted))
    assert acceptance.loss_of(said, wanted, 1.0) < acceptance.loss_of(mean, wanted, 1.0) - 0.02
    head.save(tmp_path / "head.safetensors")
    assert torch.equal(AcceptanceHead.load(tmp_path / "head.safetensors")(states[0]), head(states[0]))
    (tmp_path / "other").write_bytes(b"no weights")
    with pytest.raises(BadInput, match="no acceptance head"):
        AcceptanceHead.load(tmp_path / "other")
    with pytest.raises(BadInput, match="needs sequences"):
        acceptance.fit(draft, [])
