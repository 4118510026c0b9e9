"""Softplus attention against loops over single weights, and what the paper claims of it on a model trained with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import tiny
from lengthwise.attention._plain import attending
from lengthwise.attention.softplus import Softplus, weights_of
from lengthwise.core.frames import Frame
from lengthwise.core.grammar import parse
from lengthwise.core.scoring import Scorer
from lengthwise.core.seams import Observes, Part, View
from lengthwise.core.spec import Spec
from lengthwise.core.stack import Stack, refusals
from lengthwise.errors import BadParameter


def loop(q: Tensor, k: Tensor, seen: list[int], power: int) -> list[float]:
    """The weights of one query q [D] on keys k [S, D], one number after the other."""
    scale = math.log(len(q)) * math.log(len(seen))
    a = {}
    for n in seen:
        cosine = float(q.double() @ k[n].double() / (q.double().norm() * k[n].double().norm()))
        a[n] = math.log(1 + math.exp(scale * cosine))
    total = sum(a.values())
    a = {n: x / total for n, x in a.items()}
    if power:
        offset = 1 if len(seen) > 3 else 0
        a = {n: max(0.0, len(seen) * x - offset) ** power for n, x in a.items()}
        total = sum(a.values())
        a = {n: x / total for n, x in a.items()}
    return [a.get(n, 0.0) for n in range(len(k))]


@pytest.mark.parametrize("power", [0, 1, 3, 15])
@pytest.mark.parametrize("architecture", ["llama", "llama-mha"])
@pytest.mark.parametrize(("stack", "window"), [("", 1 << 20), ("masformer:full=0,window=40,sinks=3", 40)])
def test_the_weights_are_those_of_the_formula(
    power: int, architecture: str, stack: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids, checked = tiny.model(architecture), tiny.tokens(131), []
    original = Scorer._weighed

    def check(self, scores, cut):  # type: ignore[no-untyped-def]
        out, lse = original(self, scores, cut)
        view = self.view
        k, v = next(iter(view.kv.keys.values())).read(0, view.kv.n), view.kv.values.read(0, view.kv.n)
        group = view.q.shape[0] // k.shape[0]
        for row in (0, 1, 2, len(view.positions) // 2, len(view.positions) - 1):
            m = int(view.positions[min(row, len(view.positions) - 1)])
            seen = [n for n in range(m + 1) if m - n < window or n < 3]
            for h in (0, 3):
                weights = torch.tensor(loop(view.q[h, m - view.start], k[h // group], seen, power))
                expected = weights.double() @ v[h // group].double()
                torch.testing.assert_close(out[h, m - view.start].double(), expected, atol=1e-4, rtol=1e-3)
                checked.append(len(seen))
        return out, lse

    monkeypatch.setattr(Scorer, "_weighed", check)
    text = f"softplus:power={power}" + (f" + {stack}" if stack else "")
    with Stack(parse(text)).on(model) as run, torch.no_grad():
        cache = run.prefill(ids, chunk=60)
        model(ids[:, -1:], past_key_values=cache)
    assert {1, 2, 3} <= set(checked)
    assert (max(checked) == 131) == (not stack)
    layer = run.ledger.layers[0]
    assert (layer.pairs == layer.dense_pairs) == (not stack)


@pytest.mark.parametrize("activation", ["softplus", "exp"])
def test_rows_sum_to_one(activation: str) -> None:
    torch.manual_seed(0)
    for count in (1, 2, 3, 4, 63, 1000):
        scores = torch.rand(2, count, count) * 2 - 1
        scores[0, -1] = 0.5  # a row of equal scores has nothing above its mean
        weights = weights_of(scores, torch.ones(count, count, dtype=torch.bool).tril(), activation, 15, 64)  # type: ignore[arg-type]
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, count), atol=1e-5, rtol=0)
        assert bool((weights >= 0).all())
        assert not weights.triu(1).any()
    nothing = weights_of(torch.zeros(1, 1, 4), torch.zeros(1, 4, dtype=torch.bool), activation, 15, 64)  # type: ignore[arg-type]
    assert not nothing.any()


def test_a_key_that_stands_out_keeps_its_weight_at_any_length() -> None:
    """One key at cosine .9 among n at 0: softplus alone spreads out, the power holds."""
    held = {0: [], 15: []}  # type: dict[int, list[float]]
    for power, out in held.items():
        for n in (64, 1024, 16384):
            scores = torch.randn(1, 1, n, generator=torch.Generator().manual_seed(n)) * 0.1
            scores[..., n // 2] = 0.9
            out.append(
                float(weights_of(scores, torch.ones(1, n, dtype=torch.bool), "softplus", power, 64)[0, 0, n // 2])
            )
    assert held[0][0] > 5 * held[0][2]
    assert min(held[15]) > 0.99


def test_the_training_form_is_the_reading_form() -> None:
    """The attention that a model is trained with, and the one that the stack reads with, give the same logits."""
    model, ids = tiny.model("llama"), tiny.tokens(90)

    def attend(module, q, k, v, scale):  # type: ignore[no-untyped-def]
        group = q.shape[1] // k.shape[1]
        q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
        seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
        scores = q @ k.repeat_interleave(group, 1).transpose(2, 3)
        return weights_of(scores, seen, "softplus", 15, q.shape[-1]) @ v.repeat_interleave(group, 1)

    with attending(model, attend), torch.no_grad():
        trained = model(ids, use_cache=False).logits
    plain = tiny.plain_logits(model, ids)
    with Stack([Softplus()]).on(model) as run, torch.no_grad():
        cache = run.cache()
        read = torch.cat([model(part, past_key_values=cache).logits for part in ids.split(37, 1)], 1)
    torch.testing.assert_close(read, trained, atol=1e-3, rtol=1e-3)
    assert (read - plain).abs().max() > 0.1


@dataclass(frozen=True)
class Peek(Observes):
    """Sums up all weights that pass by."""

    spec: ClassVar[Spec] = Spec(name="peek", family="test", summary="x", formula="x", seams=("observe",))

    def observe(self, view: View, frame: Frame, slots: Tensor, weights: Tensor) -> None:
        view.state["sum"] = view.state.get("sum", 0.0) + weights.sum((0, 2))[-1]


def test_observers_see_these_weights() -> None:
    """The weights that pass by are those of this method: of one query they sum to 1 in every head, over all frames."""
    model, ids = tiny.model("llama"), tiny.tokens(80)
    for text in ("softplus", "softplus + self-extend:window=16,group=4"):
        with Stack([*parse(text), Peek()]).on(model) as run, torch.no_grad():
            cache = run.cache()
            model(ids, past_key_values=cache)
        sums = [float(state["sum"]) for (_, _, name), state in cache.states.items() if name == "peek"]
        assert sums == pytest.approx([run.facts.heads] * 2, rel=1e-4)


def test_re_weighting_of_a_softmax_model() -> None:
    """activation=exp: softmax, then the power; by hand on one row."""
    method = Softplus(activation="exp", power=2)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    a = logits.softmax(0)
    expected = (4 * a - 1).clamp(min=0) ** 2
    view = type("V", (), {"scale": 1.0, "softcap": None, "q": torch.zeros(1, 1, 1)})()
    got = method.weigh(
        view,
        [
            Part(torch.ones(1, 1, 1), logits[None, :2, None], None),
            Part(torch.ones(1, 1, 1), logits[None, 2:, None], None),
        ],
    )  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat(got, -1)[0, 0], expected / expected.sum())


def test_refusals() -> None:
    for other in ("block-sparse", "tokenselect", "longheads"):
        assert any("softplus" in r and other in r for r in refusals(parse(f"softplus + {other}"))), other
    for other in ("yarn:factor=2", "h2o", "streaming-llm", "int4", "self-extend"):
        assert not refusals(parse(f"softplus + {other}")), other
    with pytest.raises(BadParameter, match="power must be at least 0"):
        Softplus(power=-1)
