"""Evidence of keys that a method adds by itself, apart from those that it makes visible (`Selects.extras`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import lengthwise
import tiny
from lengthwise.attention.lm_infinite import LmInfinite
from lengthwise.bench import registry
from lengthwise.bench.build import build
from lengthwise.bench.local_model import LocalModel
from lengthwise.core import attend
from lengthwise.core.attend import Partial
from lengthwise.core.frames import NATIVE, UNROTATED, Visible
from lengthwise.core.seams import Selects, View
from lengthwise.core.spec import Spec, param
from lengthwise.core.stack import Stack
from lengthwise.core.watch import Watch

WINDOW = 64
IDS = tiny.tokens(200)
ADDING = [
    "tokenselect:init=4,local=24,top=16,chunk=8",
    "longheads:chunk=8,length=40",
    "squeezed:clusters=0.2,observed=8,sparsity=0.5",
    "lm-infinite:sinks=4,window=24,top_k=5,top_k_layer=0",
]


def one_head() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=WINDOW, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@contextmanager
def watched(stack: Stack, model: Any, ids: Tensor, last: int) -> Iterator[Watch]:
    """The watch of the last tokens of `ids`, each a forward pass of its own."""
    with stack.on(model) as run, torch.no_grad():
        cache = run.prefill(ids[:, :-last])
        with run.watching(cache) as watch:
            for at in range(ids.shape[1] - last, ids.shape[1]):
                model(ids[:, at : at + 1], past_key_values=cache)
        yield watch


@pytest.mark.parametrize("stack", ADDING)
def test_with_one_head_the_weights_of_every_query_sum_to_one(stack: str) -> None:
    """All that a token attends to is in the evidence: one head's weights of three layers and six tokens."""
    with watched(lengthwise.stack(stack), one_head(), IDS, 6) as watch:
        mass = watch.mass[0]
    assert float(mass.sum()) == pytest.approx(18.0, abs=1e-3)
    assert float(mass[20:150].sum()) > 0.1  # what no window holds


def test_middle_tokens_of_lm_infinite_are_named_where_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits that are told belong to the keys at the positions that are told, turned by half a window."""
    extras, checked = LmInfinite.extras, []

    def checking(self: LmInfinite, view: View) -> list[Partial]:
        found = extras(self, view)
        for places, logits in view.added or []:
            q = view.rope.rotate(view.q, torch.tensor([12]))
            keys = view.kv.keys[UNROTATED].gather(places[0, 0])
            torch.testing.assert_close(logits, attend.logits(q, keys, scale=view.scale), atol=1e-5, rtol=1e-5)
            checked.append(places)
        return found

    monkeypatch.setattr(LmInfinite, "extras", checking)
    with watched(lengthwise.stack(ADDING[-1]), one_head(), IDS, 2):
        pass
    assert len(checked) == 6


@dataclass(frozen=True)
class Apart(Selects):
    """Hides the keys [first, stop) and adds them again by itself: the plain model in two parts."""

    first: int = param(30, "the first key that is hidden")
    stop: int = param(120, "one past the last")
    by_head: bool = param(False, "say the keys for every head and query, in an order of its own")

    spec: ClassVar[Spec] = Spec(
        name="apart", family="attention", summary="keys apart", formula="", seams=("select",), test=""
    )
    per_layer = True

    def visible(self, view: View) -> Visible:
        held = torch.arange(view.kv.n)
        return Visible(slots=held[(held < self.first) | (held >= self.stop)]) if view.start >= self.stop else Visible()

    def extras(self, view: View) -> list[Partial]:
        if view.start < self.stop:
            return []
        k = view.kv.keys[NATIVE].read(self.first, self.stop)
        v = view.kv.values.read(self.first, self.stop)
        places = view.kv.positions[self.first : self.stop]
        if view.added is not None:
            logits = attend.logits(view.q, k, scale=view.scale, softcap=view.softcap)
            if self.by_head:
                order = torch.stack([torch.randperm(len(places)) for _ in range(len(view.q))])[:, None]
                order = order.expand(-1, view.q.shape[1], -1)
                logits, places = logits.gather(2, order), places[order]
            view.added.append((places, logits))
        return [attend.partial(view.q, k, v, scale=view.scale, softcap=view.softcap)]


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize("by_head", [False, True])
def test_keys_in_two_parts_give_the_evidence_of_the_plain_model(name: str, by_head: bool) -> None:
    model = tiny.model(name)
    with watched(lengthwise.stack("dense"), model, IDS, 5) as watch:
        whole = watch.mass[0]
    with watched(Stack([Apart(by_head=by_head)]), model, IDS, 5) as watch:
        parts = watch.mass[0]
    torch.testing.assert_close(parts[:200], whole[:200], atol=1e-5, rtol=1e-4)
    assert float(parts[30:120].sum()) > 0.1


def test_nothing_is_gathered_when_nobody_watches() -> None:
    told: list[bool] = []

    class Telling(Apart):
        def extras(self, view: View) -> list[Partial]:
            told.append(view.added is not None)
            return super().extras(view)

    with Stack([Telling()]).on(tiny.model("llama")) as run:
        run.prefill(IDS)
    assert told
    assert not any(told)


@pytest.mark.parametrize(
    "stack", ["tokenselect:init=16,local=128,top=256,chunk=64", "lm-infinite:sinks=10,window=502,top_k=5,top_k_layer=0"]
)
def test_a_key_far_outside_the_window_is_the_first_passage(stack: str) -> None:
    """A pass key four windows from the end, which the method looks up token by token."""
    subject = LocalModel("pocket-reader")
    sample = build(registry.parse("needle:keys=8"), subject.sizes, 2560, depth=0.15, seed=1)
    outcome = subject.answer(sample, stack, 12)
    assert sample.reference[0] in outcome.answer
    assert sample.reference[0] in outcome.evidence[0]["text"]
