"""Mixed attention spans against dense masks, layer by layer."""

from __future__ import annotations

import pytest
import torch

import tiny
from lengthwise.attention.masformer import Masformer
from lengthwise.core import compat
from lengthwise.core.grammar import parse
from lengthwise.core.scoring import Scorer
from lengthwise.core.stack import Stack, refusals
from lengthwise.errors import BadParameter

LENGTH = 300


@pytest.mark.parametrize("architecture", ["llama", "llama-mha", "qwen3"])
@pytest.mark.parametrize(
    ("settings", "full"),
    [({"full": 1}, {1}), ({"full": 1, "place": "first"}, {0}), ({"place": "0"}, {0}), ({"full": 0}, set())],
)
def test_spans_by_layer(architecture: str, settings: dict, full: set, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    model, ids, layers = tiny.model(architecture), tiny.tokens(LENGTH), []
    original = Scorer.score

    def check(self, cut, extras):  # type: ignore[no-untyped-def]
        out, lse = original(self, cut, extras)
        view = self.view
        k, v = next(iter(view.kv.keys.values())).read(0, view.kv.n), view.kv.values.read(0, view.kv.n)
        group = view.q.shape[0] // k.shape[0]
        m, n = view.positions[:, None], torch.arange(view.kv.n)
        seen = n <= m
        if view.layer not in full:
            seen = seen & ((m - n < 40) | (n < 3))
        logits = view.q.double() @ k.repeat_interleave(group, 0).double().transpose(1, 2) * view.scale
        weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
        torch.testing.assert_close(out.double(), weights @ v.repeat_interleave(group, 0).double(), atol=1e-5, rtol=1e-4)
        layers.append(view.layer)
        return out, lse

    monkeypatch.setattr(Scorer, "score", check)
    with Stack([Masformer(window=40, sinks=3, **settings)]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids, chunk=70)
        model(ids[:, -1:], past_key_values=cache)
    assert set(layers) == {0, 1}
    for layer in run.ledger.layers:
        assert (layer.pairs == layer.dense_pairs) == (layer.layer in full)


def test_which_layers_are_full() -> None:
    facts = compat.model_facts(tiny.model("llama"))
    deep = type(facts)(**{**vars(facts), "layer_kinds": ("full", "sliding") * 6})
    assert Masformer(full=2).layers(deep) == {8, 10}
    assert Masformer(full=2, place="first").layers(deep) == {0, 2}
    assert Masformer(full=2, place="spread").layers(deep) == {2, 8}
    assert Masformer(full=3, place="spread").layers(deep) == {2, 6, 10}
    assert Masformer(full=99).layers(deep) == {0, 2, 4, 6, 8, 10}
    assert Masformer(place="2-4").layers(deep) == {2, 4}
    assert refusals([Masformer(place="2-3")], deep) == ["masformer: the model has no full-attention layer 3"]
    for full, seen in ((0, 44), (6, 1000), (3, 522)):
        assert Masformer(full=full, window=40).tokens_seen(1000, deep) == seen


def test_bad_places() -> None:
    with pytest.raises(BadParameter, match="place=middle is not last"):
        parse("masformer:place=middle")
