"""Updates of weights: put in exactly, taken out without a trace, the same from disk; merging by its formulas."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from lengthwise.errors import BadInput, BadParameter
from lengthwise.thinking.weights import Delta, between, dare_ties, edited, linear, load, replaced, save


def other(seed: int, size: float = 0.05) -> nn.Module:
    """The tiny Llama with every weight moved."""
    model, draw = copy.deepcopy(tiny.model("llama")), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=draw)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(model: nn.Module, wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, wanted[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_leaves_no_trace(dtype: torch.dtype) -> None:
    model = copy.deepcopy(tiny.model("llama")).to(dtype)
    before, places = state(model), [p.data_ptr() for p in model.parameters()]
    logits = tiny.plain_logits(model, tiny.tokens(12))
    delta = between(model, other(1).to(dtype))
    with suppress(ZeroDivisionError), edited(model, delta, 0.3):
        assert not same(model, before)
        assert not torch.equal(tiny.plain_logits(model, tiny.tokens(12)), logits)
        inside = state(model)
        with suppress(KeyError), edited(model, delta, -2.0):
            raise KeyError
        assert same(model, inside)
        raise ZeroDivisionError
    assert same(model, before)
    assert [p.data_ptr() for p in model.parameters()] == places
    assert torch.equal(tiny.plain_logits(model, tiny.tokens(12)), logits)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, 1.5, -0.5])
def test_an_edit_is_theta_plus_alpha_times_the_difference(alpha: float) -> None:
    start, end = other(2), other(3)
    a, b = state(start), state(end)
    with edited(start, between(start, end), alpha):
        for name, p in start.named_parameters():
            torch.testing.assert_close(p, a[name] + alpha * (b[name] - a[name]))
    with edited(start, between(start, end), 0.0):
        assert same(start, a)


def test_tied_weights_move_once() -> None:
    config = tiny.CONFIGS["llama"]()
    config.tie_word_embeddings = True
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model, moved = LlamaForCausalLM(config), LlamaForCausalLM(config)
    delta = between(model, moved)
    table = model.get_input_embeddings().weight.detach().clone()
    with edited(model, delta):
        assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
        torch.testing.assert_close(model.lm_head.weight, moved.lm_head.weight)
    assert torch.equal(model.lm_head.weight, table)


def test_a_cut_difference_is_the_best_of_its_rank() -> None:
    start = other(4)
    end, draw = copy.deepcopy(start), torch.Generator().manual_seed(9)
    name = "model.layers.0.self_attn.o_proj.weight"
    low = torch.randn(48, 3, generator=draw) @ torch.randn(3, 48, generator=draw)
    with torch.no_grad():
        dict(end.named_parameters())[name].add_(low)
        end.model.norm.weight.add_(1.0)  # type: ignore[union-attr, operator]
    exact, cut = between(start, end, rank=3), between(start, end, rank=1)
    assert set(exact.parts) == {name, "model.norm.weight"}
    assert exact.numbers() == 3 * (48 + 48) + 48
    torch.testing.assert_close(exact.of(name), low, atol=1e-4, rtol=1e-4)
    lost = torch.linalg.svdvals(low)[1:]
    torch.testing.assert_close((cut.of(name) - low).norm(), lost.norm(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(cut.of("model.norm.weight"), torch.ones(48))


def test_a_saved_delta_is_the_same(tmp_path: Path) -> None:
    start, end = other(5), other(6)
    for rank in (None, 2):
        delta = between(start, end, rank)
        save(delta, tmp_path / "d.safetensors")
        back = load(tmp_path / "d.safetensors")
        assert back.about == delta.about
        assert back.parts.keys() == delta.parts.keys()
        assert all(torch.equal(back.of(n), delta.of(n)) for n in delta.parts)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    start = other(7)
    with (
        pytest.raises(BadInput, match=r"no weight 'model\.nothing'"),
        edited(start, Delta({"model.nothing": torch.ones(2)})),
    ):
        pass
    with (
        pytest.raises(BadInput, match=r"'model\.norm\.weight' is 48 in the model, 7 in the update"),
        edited(start, Delta({"model.norm.weight": torch.ones(7)})),
    ):
        pass
    with pytest.raises(BadInput, match="empty"), edited(start, Delta({})):
        pass
    with pytest.raises(BadInput, match="different architectures"):
        between(start, tiny.model("gpt-neox"))
    with pytest.raises(BadInput, match="differ in shape"):
        between(start, tiny.model("llama-mha"))
    with pytest.raises(BadInput, match="same weights"):
        between(start, start)
    (tmp_path / "x").write_text("no")
    with pytest.raises(BadInput, match="not a readable safetensors"):
        load(tmp_path / "x")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, str(tmp_path / "y"))
    with pytest.raises(BadInput, match="no update of weights"):
        load(tmp_path / "y")


def test_linear_merging_is_a_weighted_mean_and_exact_at_its_ends() -> None:
    long, short = other(8), other(10)
    a, b = state(long), state(short)
    for alpha in (0.8, 0.5, 1.2):
        with replaced(long, linear(long, short, alpha)):
            for name, p in long.named_parameters():
                torch.testing.assert_close(p, alpha * a[name] + (1 - alpha) * b[name])
        assert same(long, a)
    with replaced(long, linear(long, short, 0.0)):
        assert same(long, b)
    with replaced(long, linear(long, short, 1.0)):
        assert same(long, a)


def test_dare_ties_follows_its_formula() -> None:
    base, models, weights, density = other(11), [other(12), other(13), other(14)], [0.5, 0.25, 0.25], 0.4
    got = dict(dare_ties(base, models, weights, density, seed=3))
    draw = torch.Generator().manual_seed(3)
    origin, others = state(base), [state(m) for m in models]
    for name, start in origin.items():
        mask = torch.rand(3, *start.shape, generator=draw) < density
        flat = []
        for i in range(start.numel()):  # one number at a time
            steps = [
                float(o[name].flatten()[i] - start.flatten()[i]) / density * bool(mask[k].flatten()[i])
                for k, o in enumerate(others)
            ]
            total = sum(w * s for w, s in zip(weights, steps))
            agree = [(w, s) for w, s in zip(weights, steps) if s * total > 0]
            share = sum(w for w, _ in agree)
            flat.append(float(start.flatten()[i]) + (sum(w * s for w, s in agree) / share if share else 0.0))
            if i == 200:
                break
        torch.testing.assert_close(got[name].flatten()[: len(flat)], torch.tensor(flat), atol=1e-5, rtol=1e-4)


def test_dare_ties_of_one_whole_model_is_that_model_and_seeds_repeat() -> None:
    base, end = other(15), other(16)
    with replaced(base, dare_ties(base, [end], [0.3], density=1.0)):
        for name, p in base.named_parameters():
            torch.testing.assert_close(p, dict(end.named_parameters())[name])
    first, again, others = (dict(dare_ties(base, [end], seed=s)) for s in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], others[n]) for n in first)
    kept = torch.cat([(first[n] != p).flatten() for n, p in base.named_parameters()]).float().mean()
    assert abs(float(kept) - 0.25) < 0.02
    with pytest.raises(BadParameter, match="density"):
        dare_ties(base, [end], density=0.0)
    with pytest.raises(BadParameter, match="one weight above 0"):
        dare_ties(base, [end], [0.5, 0.5])
