"""Workers on one cache: turned queries score as turned keys do, and every worker sees just its own arrangement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lengthwise import models
from lengthwise.core import compat
from lengthwise.errors import BadInput, StackRefused
from lengthwise.thinking.decoding.hogwild import BARE, PAIR, Format, generate, rules
from lengthwise.thinking.decoding.shared import Block, SharedCache, attach

SIZE = 40


def llama(layers: int = 1, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}} | changes
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


def neox() -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return GPTNeoXForCausalLM(config).eval()


YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("model", [llama(), llama(rope_parameters=YARN), neox()], ids=["llama", "yarn", "partial"])
def test_turned_queries_score_as_turned_keys(model: Any) -> None:
    anatomy, _ = compat.examine(model)
    assert anatomy is not None
    rope = compat.ropes(anatomy, compat.model_facts(model))["full"]
    dim = model.config.hidden_size // model.config.num_attention_heads
    q, k = torch.randn(2, 3, dim), torch.randn(2, 63, dim)
    m, n, offset = torch.arange(500, 503), torch.arange(63), 411
    keys_turned = rope.rotate(q, m) @ rope.rotate(k, n + offset).transpose(1, 2)
    query_turned = rope.rotate(q, m - offset) @ rope.rotate(k, n).transpose(1, 2)
    assert (keys_turned - query_turned).abs().max() < 1e-3
    assert (keys_turned - rope.rotate(q, m) @ rope.rotate(k, n).transpose(1, 2)).abs().max() > 0.1


class Story:
    """Passes of two workers over shared blocks, and where every token stood for whom, kept beside the cache."""

    def __init__(self, model: Any) -> None:
        self.model, self.ids = model, list[int]()
        self.draw = torch.Generator().manual_seed(7)
        self.places: dict[int, list[int]] = {}  # id of a block -> numbers of its tokens
        self.seen: list[list[int]] = []  # for every token, the numbers of the tokens up to it in its worker's view
        self.passes: list[tuple[Tensor, list[list[int]]]] = []  # logits, and what each row saw

    def read(self, cache: SharedCache, *rows: tuple[Sequence[Block], int]) -> None:
        new = [torch.randint(SIZE, (count,), generator=self.draw).tolist() for _, count in rows]
        logits = cache.read([(view, ids) for (view, _), ids in zip(rows, new)])
        for (view, count), ids in zip(rows, new):
            self.places.setdefault(id(view[-1]), []).extend(range(len(self.ids), len(self.ids) + count))
            self.ids += ids
        saw = []
        for view, count in rows:
            order = [t for block in view for t in self.places.get(id(block), [])]
            saw.append(order)
            self.seen += [order[: len(order) - count + i + 1] for i in range(count)]
        self.passes.append((logits, saw))

    def take(self, cache: SharedCache, block: Block, other: Block) -> None:
        block.take(other, cache.rope)
        self.places[id(block)] += self.places.pop(id(other))
        assert block.ids == [self.ids[t] for t in self.places[id(block)]]

    def tell(self, cache: SharedCache) -> None:
        common, head, a, b = self.blocks = [Block() for _ in range(4)]
        self.read(cache, ([common], 7))
        self.read(cache, ([common, head], 2))
        one, two = [common, head, b, a], [common, head, a, b]
        self.read(cache, (one, 3), (two, 5))  # uneven: the shorter row is padded
        for _ in range(4):
            self.read(cache, (one, 1), (two, 1))
        self.take(cache, common, a)
        self.read(cache, (one, 4), (two, 1))
        self.read(cache, (two, 1))  # the first one waits
        self.take(cache, common, b)
        for _ in range(3):
            self.read(cache, (one, 1), (two, 1))


@pytest.mark.parametrize("make", [llama, lambda: llama(rope_parameters=YARN), neox], ids=["llama", "yarn", "partial"])
def test_a_worker_sees_its_arrangement_as_plain_text(make: Any) -> None:
    """With one layer, keys and values do not depend on what their tokens saw: the stock model reads each view."""
    model = make()
    story = Story(model)
    with attach(model) as run:
        story.tell(cache := SharedCache(run))
    assert cache.passes == len(story.passes) == 12
    for logits, saw in story.passes:
        for row, order in zip(logits, saw, strict=True):
            text = torch.tensor([[story.ids[t] for t in order]])
            with torch.no_grad():
                wanted = model(input_ids=text).logits[0, -1]
            assert (row - wanted).abs().max() < 1e-3


def test_the_whole_is_what_it_is_from_scratch() -> None:
    """Three layers, all tokens at once and without a cache, every key rotated to where it stood for the query."""
    model = llama(layers=3, seed=5)
    story = Story(model)
    with attach(model) as run:
        story.tell(SharedCache(run))
    with torch.no_grad():
        wanted = from_scratch(model, story.ids, story.seen)
    for logits, saw in story.passes:
        for row, order in zip(logits, saw, strict=True):
            assert (row - wanted[order[-1]]).abs().max() < 1e-3


def from_scratch(model: LlamaForCausalLM, ids: list[int], seen: list[list[int]]) -> Tensor:
    """Logits [T, V] of tokens that each saw `seen` [T], a list of tokens that stood at 0, 1, 2, ..."""
    hidden = model.model.embed_tokens(torch.tensor(ids))
    for layer in model.model.layers:
        attention, x = layer.self_attn, layer.input_layernorm(hidden)
        q, k, v = (
            proj(x).view(len(ids), -1, attention.head_dim)
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        out = []
        for i, order in enumerate(seen):
            cos, sin = model.model.rotary_emb(hidden[None], torch.arange(len(order))[None])
            keys = k[order].transpose(0, 1)[None]
            last = q[i].expand(len(order), -1, -1).transpose(0, 1)[None]
            last, keys = apply_rotary_pos_emb(last, keys, cos, sin)
            groups = last.shape[1] // keys.shape[1]
            scores = torch.einsum("hd,hsd->hs", last[0, :, -1], keys[0].repeat_interleave(groups, 0))
            weights = (scores * attention.scaling).softmax(-1)
            out.append(torch.einsum("hs,shd->hd", weights, v[order].repeat_interleave(groups, 1)).flatten())
        hidden = hidden + attention.o_proj(torch.stack(out))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))


@pytest.fixture(scope="module")
def pocket() -> tuple[Any, Any]:
    return models.load("pocket-reasoner", dtype="float32")


ASKED = "\nQuestion: What is 4+7+8+2 mod 10? Answer: <think>"
STEPS = Format("", "", "", (";",), "", 1 << 40)


@pytest.mark.parametrize("layout", ["contiguous", "interleaved", "combined"])
@pytest.mark.parametrize("format", [BARE, STEPS], ids=["bare", "steps"])
def test_one_worker_is_plain_generation(pocket: Any, layout: Any, format: Format) -> None:
    model, tokenizer = pocket
    ids = tokenizer(ASKED, return_tensors="pt")["input_ids"]
    alone = model.generate(ids, max_new_tokens=60, do_sample=False, pad_token_id=2)[0, ids.shape[1] :]
    before = model(ids).logits
    out = generate(model, tokenizer, ASKED, {"one": ""}, layout=layout, format=format, most=60)
    (worker,) = out.workers
    assert worker.ids == alone.tolist()
    assert out.passes == out.written == len(alone)
    assert worker.reason == "end"
    assert worker.steps == (1 if layout == "contiguous" or format is BARE else 1 + tokenizer.decode(alone).count(";"))
    assert torch.equal(model(ids).logits, before)  # no trace


def test_two_workers_wait_for_the_longer_of_two_tasks(pocket: Any) -> None:
    model, tokenizer = pocket
    tasks = {
        "a": "\nQuestion: What is 4+7+8 mod 10? Answer: <think>",
        "b": "\nQuestion: What is 9+7+2+3+1 mod 10? Answer: <think>",
    }
    prompt = "\nQuestion: What is 4+4 mod 10? Answer: <think> 4+4=8;</think> 8."
    for layout in ("contiguous", "interleaved", "combined"):
        out = generate(model, tokenizer, prompt, tasks, layout=layout, format=BARE, stop=(".",))  # type: ignore[arg-type]
        a, b = out.workers
        assert a.text.endswith(" 9.")
        assert b.text.endswith(" 2.")
        assert out.passes == max(a.written, b.written)
        assert out.written == a.written + b.written
        assert a.written < b.written
    out = generate(model, tokenizer, prompt, tasks, format=BARE, stop=(".",), needed=1)
    assert [w.reason for w in out.workers] == ["stop", "others"]
    assert out.passes == out.workers[0].written


def test_unfinished_steps_of_others_are_seen_at_once_or_when_they_are_finished(pocket: Any) -> None:
    model, tokenizer = pocket

    def pairs(layout: Any, ends: tuple[str, ...]) -> tuple[int, int]:
        format = Format("", "", "", ends, "", 1 << 40)
        out = generate(model, tokenizer, ASKED, {"a": " 4", "b": " 7"}, layout=layout, format=format, most=12)
        return out.pairs, max(w.steps for w in out.workers)

    alone, _ = pairs("interleaved", ())
    all_at_once, _ = pairs("combined", ())
    finished, steps = pairs("interleaved", (";",))
    assert steps > 1
    assert alone < finished < all_at_once
    assert pairs("contiguous", ())[0] == all_at_once


def test_steps_carry_names_numbers_and_the_check(pocket: Any) -> None:
    model, tokenizer = pocket
    format = Format(step="\n{name} {number}:", step_ends=(";",), check=" done?", check_every=6)
    workers = {"a": " 4+7=", "b": " 8+2="}
    out = generate(model, tokenizer, ASKED, workers, format=format, most=24)
    for worker in out.workers:
        assert worker.text.startswith(f"\n{worker.name} 1: ")
        assert worker.steps == worker.text.count(f"\n{worker.name} ")
    assert any(w.steps > 1 for w in out.workers)
    assert any(" done?" in w.text for w in out.workers)
    first = generate(model, tokenizer, ASKED, workers, format=format, most=10, temperature=1.0, seed=1)
    again = generate(model, tokenizer, ASKED, workers, format=format, most=10, temperature=1.0, seed=1)
    other = generate(model, tokenizer, ASKED, workers, format=format, most=10, temperature=1.0, seed=2)
    assert [w.text for w in first.workers] == [w.text for w in again.workers] != [w.text for w in other.workers]


def test_what_cannot_be_is_refused(pocket: Any) -> None:
    model, tokenizer = pocket
    with pytest.raises(BadInput, match="would write the same"):
        generate(model, tokenizer, ASKED, {"a": "", "b": ""})
    with pytest.raises(BadInput, match="no layout 'stacked': use contiguous, interleaved, combined"):
        generate(model, tokenizer, ASKED, PAIR, layout="stacked")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="a worker"):
        generate(model, tokenizer, ASKED, {})
    dynamic = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
    with pytest.raises(StackRefused, match="change with the length"):
        attach(llama(rope_parameters=dynamic))
    sliding = llama()
    sliding.config.sliding_window = 8
    sliding.config.layer_types = ["sliding_attention"]
    with pytest.raises(StackRefused, match="sliding-window"):
        attach(sliding)
    crowded = ASKED * 20  # 401 tokens; headings and first words take about 90, the window is 512
    full = generate(model, tokenizer, crowded, {"a": "\nQuestion:", "b": "\nQuestion:"}, most=400)
    assert "window" in {w.reason for w in full.workers}
    assert len(tokenizer(crowded)["input_ids"]) + full.written < 512


def test_the_rules_name_everybody_and_end_with_the_problem() -> None:
    text = rules("Why?", ("Ann", "Bo", "Cy"))
    assert text.startswith("Ann and Bo and Cy solve")
    assert text.endswith("\n\nWhy?")
    assert text.count("### Past steps") == 1
