"""LazyLLM against a table of states that are computed once, in float64, one token and one head at a time."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import small_reader
import tiny
from lengthwise._reader import frame
from lengthwise.core.attach import Run
from lengthwise.documents import Document, encode
from lengthwise.errors import BadInput, StackRefused
from lengthwise.prompt._lazy import LazySession
from lengthwise.prompt.lazyllm import pruning_layers
from reference import Reference


class Naive:
    """Every token's state before every layer, filled in when it is first wanted; nothing is ever changed."""

    def __init__(self, model: Any, keep: float, after: list[int]) -> None:
        self.llama, self.keep, self.after = Reference(model), keep, after
        self.layers = model.config.num_hidden_layers
        self.state: list[dict[int, Tensor]] = [{} for _ in range(self.layers + 1)]
        self.key: list[dict[int, Tensor]] = [{} for _ in range(self.layers)]
        self.value: list[dict[int, Tensor]] = [{} for _ in range(self.layers)]
        self.n = self.came_back = 0

    def read(self, ids: Tensor) -> Tensor:
        """Logits [V] after the last of `ids`."""
        w = self.llama.w
        for token in ids.tolist():
            self.state[0][self.n] = w["model.embed_tokens.weight"][token]
            self.n += 1
        active, last = list(range(self.n)), self.n - 1
        fresh = set(range(self.n - len(ids), self.n))
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            wanted = [i for i in active if i not in self.state[layer + 1]]
            self.came_back += sum(i not in fresh for i in wanted)
            fresh |= set(wanted)
            query: dict[int, Tensor] = {}
            for i in wanted:
                h = self.llama.norm(self.state[layer][i], at + "input_layernorm.weight")
                query[i], self.key[layer][i], self.value[layer][i] = (
                    (h @ w[f"{at}self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, self.llama.dim)) for name in "qkv"
                )
            importance: list[float] = []
            for i in wanted:
                before = [j for j in active if j <= i]
                heads = []
                for head, q in enumerate(query[i]):
                    group = head // (len(query[i]) // len(self.key[layer][i]))
                    k = torch.stack([self.key[layer][j][group] for j in before])
                    distance = torch.tensor([[[i - j for j in before]]])
                    heads.append(self.llama.scores(q[None, None], k[None], distance)[0, 0].softmax(-1))
                if i == last:
                    importance = torch.stack(heads).mean(0).tolist()
                out = torch.cat(
                    [
                        a
                        @ torch.stack(
                            [self.value[layer][j][h // (len(heads) // len(self.value[layer][i]))] for j in before]
                        )
                        for h, a in enumerate(heads)
                    ]
                )
                x = self.state[layer][i] + out @ w[at + "self_attn.o_proj.weight"].T
                h = self.llama.norm(x, at + "post_attention_layernorm.weight")
                gate, up = (h @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
                mixed = (torch.nn.functional.silu(gate) * up) @ w[at + "mlp.down_proj.weight"].T
                self.state[layer + 1][i] = x + mixed
            if layer in self.after:
                count = math.ceil(self.keep * len(active))
                order = sorted(range(len(active) - 1), key=lambda s: -importance[s])[: count - 1]
                active = [active[s] for s in sorted(order)] + [last]
        final = self.llama.norm(self.state[self.layers][last], "model.norm.weight")
        return final @ w["lm_head.weight"].T


def lazy(run: Run) -> Any:
    run.ledger.consulted["lazyllm"] += 1
    return run.stack.methods[0].reading(run)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize(("length", "keep", "stages"), [(1, 0.5, 1), (33, 0.5, 1), (41, 0.6, 3), (27, 0.1, 2)])
def test_logits_are_those_of_the_table(kv_heads: int, length: int, keep: float, stages: int) -> None:
    """A prompt, then tokens of which each looks elsewhere, so that tokens come back."""
    model = small_reader.model(kv_heads)
    ids = torch.randint(0, 300, (length + 9,), generator=torch.Generator().manual_seed(length))
    naive = Naive(model, keep, pruning_layers(["full"] * 4, 0.25, stages))
    parts = [ids[:length], *ids[length:].split(1)]
    with lengthwise.stack(f"lazyllm:keep={keep},first=0.25,stages={stages}").on(model) as run, lazy(run) as session:
        run.block = 16  # a pass is several blocks of queries
        for part in parts:
            with torch.no_grad():
                got = model(part[None], past_key_values=session).logits[0, -1]
            torch.testing.assert_close(got.double(), naive.read(part), atol=1e-3, rtol=1e-3)
        held = [slot.rows[0].n for slot in session.layers]
        assert session.revived == naive.came_back
    assert held == [len(keys) for keys in naive.key]
    assert length == 1 or naive.came_back > 0


@pytest.mark.parametrize("architecture", [a for a in tiny.ARCHITECTURES if a != "mistral-sliding"])
def test_keep_all_is_the_plain_model(architecture: str) -> None:
    model, ids = tiny.model(architecture), tiny.tokens(63)
    with lengthwise.stack("lazyllm:keep=1.0,stages=1").on(model) as run, lazy(run) as session, torch.no_grad():
        parts = [model(part, past_key_values=session).logits for part in ids.split([50, *[1] * 13], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), tiny.plain_logits(model, ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["gemma2", "gpt-neox", "phi3-partial"])
def test_other_architectures_prune(architecture: str) -> None:
    model, ids = tiny.model(architecture), tiny.tokens(90)
    if architecture == "gemma2":
        with pytest.raises(StackRefused, match="stages=0"):  # its only full layer is the last
            lengthwise.stack("lazyllm:stages=1").on(model)
        return
    with lengthwise.stack("lazyllm:keep=0.2,stages=1").on(model) as run, lazy(run) as session:
        model.generate(ids, past_key_values=session, max_new_tokens=5, do_sample=False)
    assert run.ledger.acted["lazyllm"] > 0
    assert run.ledger.pairs < run.ledger.dense_pairs


def test_pruning_layers_cut_the_depth_into_equal_parts() -> None:
    assert pruning_layers(["full"] * 32, 0.25, 3) == [7, 15, 23]
    assert pruning_layers(["full"] * 30, 0.5, 3) == [14, 19, 24]
    assert pruning_layers(["full"] * 4, 0.5, 1) == [1]
    assert pruning_layers(["full"] * 5, 0.0, 1) == [0]
    assert pruning_layers(["sliding", "full"] * 4, 0.5, 1) == [3]
    assert pruning_layers(["sliding", "full", "sliding", "full", "sliding", "full"], 0.5, 1) == [1]
    assert pruning_layers(["full"], 0.5, 1) == []


def test_nothing_is_left_on_the_layers() -> None:
    model = small_reader.model()

    def hooks() -> list[Any]:
        return [{**layer._forward_hooks, **layer._forward_pre_hooks} for layer in model.model.layers]

    before = hooks()
    with lengthwise.stack("lazyllm:stages=1").on(model) as run:
        with lazy(run):
            assert hooks() != before
        with contextlib.suppress(KeyboardInterrupt), lazy(run):
            raise KeyboardInterrupt
    assert hooks() == before


def test_the_answer_and_the_ledger_through_ask() -> None:
    model, tokenizer = small_reader.model(), small_reader.tokenizer()
    documents, given = [Document("a", small_reader.TEXT)], {"model": (model, tokenizer), "max_new_tokens": 8}
    dense = lengthwise.ask(documents, small_reader.QUESTION, stack="dense", **given)
    same = lengthwise.ask(documents, small_reader.QUESTION, stack="lazyllm:keep=1.0", **given)
    assert same.answer == dense.answer
    assert same.ledger.tokens_written == dense.ledger.tokens_written
    assert same.evidence[0].start == dense.evidence[0].start
    less = lengthwise.ask(documents, small_reader.QUESTION, stack="lazyllm:keep=0.4,first=0.25", **given)
    assert less.ledger.pairs < 0.5 * dense.ledger.pairs
    assert less.ledger.peak_kv_bytes < dense.ledger.peak_kv_bytes
    prompt, (ids, _) = frame(small_reader.QUESTION, tokenizer), encode(small_reader.TEXT[:150], tokenizer)
    documents = [Document("a", small_reader.TEXT[:150])]
    short = lengthwise.ask(documents, small_reader.QUESTION, stack="lazyllm:keep=0.4,first=0.25", **given)
    naive = Naive(model, 0.4, pruning_layers(["full"] * 4, 0.25, 3))
    token, written = naive.read(torch.cat([prompt.head, ids, prompt.after])).argmax(), []
    for _ in range(4):
        written.append(int(token))
        token = naive.read(token[None]).argmax()
    assert short.answer.startswith(tokenizer.decode(written).strip())


def test_the_last_token_ends_the_writing() -> None:
    model = small_reader.model()
    with lengthwise.stack("lazyllm:stages=2").on(model) as run:
        reader = small_reader.reader(run, small_reader.TEXT[:100])
        choice = reader.choose(0, 9)
        whole = reader.read(0, choice, 9).text
        assert reader.read(0, choice, 1).text == reader.tokenizer.decode(reader.tokenizer(whole)["input_ids"][:1])


@pytest.mark.parametrize(
    ("stack", "says"),
    [
        ("lazyllm + int8", "int8"),
        ("lazyllm + lm-infinite:window=64", "lm-infinite"),
        ("lazyllm + self-extend:window=64", "self-extend"),
        ("lazyllm + dynamic-ntk", "dynamic-ntk"),
        ("lazyllm:stages=4", "stages=2"),
    ],
)
def test_refusals(stack: str, says: str) -> None:
    with pytest.raises(StackRefused, match=says):
        lengthwise.stack(stack).on(small_reader.model())


@pytest.mark.parametrize("position", ["linear:factor=2.0", "yarn:factor=2.0", "abf:logn=true,exempt=0"])
def test_beside_a_method_of_one_frame_and_in_a_batch(position: str) -> None:
    model = small_reader.model()
    length = model.config.max_position_embeddings + 60  # beyond which abf scales the logits
    ids = torch.randint(0, 300, (1, length), generator=torch.Generator().manual_seed(2))
    with lengthwise.stack(position).on(model) as run, torch.no_grad():
        want = model(ids, past_key_values=run.cache()).logits
    with (
        lengthwise.stack(f"lazyllm:keep=1.0 + {position}").on(model) as run,
        lazy(run) as session,
        torch.no_grad(),
    ):
        torch.testing.assert_close(model(ids, past_key_values=session).logits, want, atol=1e-5, rtol=1e-4)
        with pytest.raises(BadInput, match="one sequence"):
            model(ids.repeat(2, 1), past_key_values=LazySession(run, {}, "lazyllm"))
