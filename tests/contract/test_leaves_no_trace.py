"""After a run, however it ended, the model is as it was; while one is open, plain use of the model is untouched."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import lengthwise
import tiny
from lengthwise.core import compat
from lengthwise.core.attach import Run
from lengthwise.errors import LengthwiseError, SessionError

STACKS = {  # one that leaves positions to the model, one that scales them, two that rotate themselves, and a chain
    "int8": "int8:residual=8",
    "yarn": "yarn:factor=2",
    "lm-infinite": "lm-infinite:window=24,sinks=4 + int4:residual=16",
    "sirllm": "sirllm:sinks=2,entropy=20,recent=20",
    "infllm": "infllm:init=4,local=16,block=8,top=2,reps=2,chunk=8",
}
IDS = tiny.tokens(70)


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    hooks = [k for k in vars(nn.Module()) if "hook" in k]
    return {
        "config": model.config.to_dict(),
        "attention": [c._attn_implementation for c in configs.values()],
        "modules": [(name, type(m), id(m)) for name, m in model.named_modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "hooks": [
            {k: list(getattr(m, k)) for k in hooks if hasattr(getattr(m, k), "__iter__")} for m in model.modules()
        ],
        "buffers": {name: (id(b), b.clone().tolist()) for name, b in model.named_buffers()},
        "parameters": [(name, id(p), p._version) for name, p in model.named_parameters()],
        "functions": {
            name: id(f)
            for m in model.modules()
            for name, f in vars(sys.modules[type(m).__module__]).items()
            if callable(f) and "rotary" in name
        },
        "generation": model.generation_config.to_dict(),
        "mode": model.training,
    }


def output(model: PreTrainedModel) -> tuple[Tensor, list[int]]:
    with torch.no_grad():
        return model(IDS).logits, model.generate(IDS, max_new_tokens=3, do_sample=False)[0].tolist()  # type: ignore[operator]


def unchanged(model: PreTrainedModel, before: dict[str, Any], was: tuple[Tensor, list[int]]) -> None:
    assert snapshot(model) == before
    assert not compat._attached
    now = output(model)
    assert torch.equal(now[0], was[0])
    assert now[1] == was[1]


def read(run: Run, ids: Tensor = IDS) -> Tensor:
    cache, chunk = run.cache(), 18
    with torch.no_grad():
        return torch.cat([run.model(part, past_key_values=cache).logits for part in ids.split(chunk, 1)], 1)


@pytest.mark.parametrize("attention", ["eager", None])
@pytest.mark.parametrize("text", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "gpt-neox", "cohere"])
def test_nothing_stays(architecture: str, text: str, attention: str | None) -> None:
    model = tiny.model(architecture, attention=attention)
    before, was = snapshot(model), output(model)
    with lengthwise.stack(text).on(model) as run:
        assert not torch.equal(read(run), was[0])
        while_attached = output(model)
    assert torch.equal(while_attached[0], was[0])
    assert while_attached[1] == was[1]
    unchanged(model, before, was)


@pytest.mark.parametrize("text", STACKS.values(), ids=STACKS)
def test_an_exception_inside(text: str, llama: PreTrainedModel) -> None:
    before, was = snapshot(llama), output(llama)
    with pytest.raises(ZeroDivisionError), lengthwise.stack(text).on(llama) as run:  # noqa: PT012
        read(run)
        _ = 1 / 0
    unchanged(llama, before, was)


class Interrupt(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Interrupt])
@pytest.mark.parametrize("text", STACKS.values(), ids=STACKS)
def test_a_forward_that_fails_half_way(text: str, error: type[BaseException], llama: PreTrainedModel) -> None:
    """The cache of the pass that failed is spent and says so; the run, other caches and the model go on."""
    before, was = snapshot(llama), output(llama)

    def fail(*_: Any) -> None:
        raise error

    with lengthwise.stack(text).on(llama) as run, torch.no_grad():
        whole = read(run)
        cache, other = run.cache(), run.cache()
        llama(IDS[:, :18], past_key_values=cache)
        llama(IDS[:, :18], past_key_values=other)
        hook = llama.model.layers[1].mlp.register_forward_hook(fail)
        with pytest.raises(error):
            llama(IDS[:, 18:36], past_key_values=cache)
        hook.remove()
        now = output(llama)
        assert torch.equal(now[0], was[0])
        assert now[1] == was[1]
        with pytest.raises(SessionError, match="failed half way"):
            llama(IDS[:, 18:36], past_key_values=cache)
        rest = torch.cat([llama(p, past_key_values=other).logits for p in IDS[:, 18:].split(18, 1)], 1)
        assert torch.equal(rest, whole[:, 18:])
        hook = llama.model.layers[0].mlp.register_forward_hook(fail)
        with pytest.raises(error):
            llama(IDS)
        hook.remove()
        assert torch.equal(read(run), whole)
    unchanged(llama, before, was)


def test_a_refused_input_leaves_the_cache_usable(llama: PreTrainedModel) -> None:
    with lengthwise.stack(STACKS["sirllm"]).on(llama) as run, torch.no_grad():
        whole, cache = read(run), run.cache()
        llama(IDS[:, :18], past_key_values=cache)
        right = torch.tensor([[1] * 30 + [0] * 6])
        for bad in (right, torch.ones(1, 1, 18, 36)):
            with pytest.raises(LengthwiseError):
                llama(IDS[:, 18:36], attention_mask=bad, past_key_values=cache)
        with pytest.raises(LengthwiseError):
            llama(IDS[:, 18:], past_key_values=cache)
        rest = torch.cat([llama(p, past_key_values=cache).logits for p in IDS[:, 18:].split(18, 1)], 1)
        assert torch.equal(rest, whole[:, 18:])


@pytest.mark.parametrize(("one", "two"), itertools.combinations(STACKS.values(), 2))
def test_two_runs_at_once(one: str, two: str, llama: PreTrainedModel) -> None:
    """Interleaved chunk by chunk, with plain passes between, each stack gives what it gives alone."""
    before, was = snapshot(llama), output(llama)
    alone = []
    for text in (one, two):
        with lengthwise.stack(text).on(llama) as run:
            alone.append(read(run))
    with lengthwise.stack(one).on(llama) as a, lengthwise.stack(two).on(llama) as b, torch.no_grad():
        caches, got = (a.cache(), b.cache()), ([], [])
        for part in IDS.split(18, 1):
            for cache, out in zip(caches, got, strict=True):
                out.append(llama(part, past_key_values=cache).logits)
                assert torch.equal(llama(IDS).logits, was[0])
    assert torch.equal(torch.cat(got[0], 1), alone[0])
    assert torch.equal(torch.cat(got[1], 1), alone[1])
    unchanged(llama, before, was)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_runs_end_in_any_order(order: tuple[int, ...], llama: PreTrainedModel) -> None:
    before, was = snapshot(llama), output(llama)
    runs = [lengthwise.stack(text).on(llama) for text in list(STACKS.values())[:3]]
    alone = []
    for run in runs:
        run.__enter__()
        alone.append(read(run))
    ended: list[int] = []
    for i in order:
        runs[i].__exit__(None, None, None)
        ended.append(i)
        for j, run in enumerate(runs):
            if j in ended:
                with pytest.raises(SessionError, match="ended"):
                    read(run)
            else:
                assert torch.equal(read(run), alone[j])
        now = output(llama)
        assert torch.equal(now[0], was[0])
    unchanged(llama, before, was)


@pytest.mark.parametrize("text", STACKS.values(), ids=STACKS)
def test_a_cache_after_its_run(text: str, llama: PreTrainedModel) -> None:
    with lengthwise.stack(text).on(llama) as run:
        cache = run.prefill(IDS, chunk=18)
    with pytest.raises(SessionError, match="has ended"), torch.no_grad():
        llama(IDS[:, -1:], past_key_values=cache)
    with pytest.raises(SessionError, match="has ended"):
        llama.generate(IDS, past_key_values=cache, max_new_tokens=2)  # type: ignore[operator]
    with lengthwise.stack("dense").on(llama) as other:  # nor while another run is attached
        read(other)
        with pytest.raises(SessionError, match="has ended"), torch.no_grad():
            llama(IDS[:, -1:], past_key_values=cache)


def test_a_run_can_be_entered_again(llama: PreTrainedModel) -> None:
    before, was = snapshot(llama), output(llama)
    run = lengthwise.stack(STACKS["lm-infinite"]).on(llama)
    with run:
        first = read(run)
    with run:
        assert torch.equal(read(run), first)
    unchanged(llama, before, was)


def test_a_cache_given_to_another_model(llama: PreTrainedModel) -> None:
    """A cache of one model in the hands of another, attached or not, is an error, never a silent no-op."""
    other = tiny.model("qwen2")
    with lengthwise.stack("dense").on(llama) as run:
        read(run)
        with pytest.raises(LengthwiseError), torch.no_grad():
            other(IDS, past_key_values=run.cache())
        with lengthwise.stack("dense").on(other) as second:
            read(second)
            with pytest.raises(LengthwiseError), torch.no_grad():
                other(IDS, past_key_values=run.cache())


def test_nothing_is_attached_when_refused(llama: PreTrainedModel) -> None:
    before, was = snapshot(llama), output(llama)
    with pytest.raises(LengthwiseError):
        lengthwise.stack("streaming-llm").on(llama)
    unchanged(llama, before, was)


def test_threads_are_used_and_put_back(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill with two threads, decode with one, and as before afterwards."""
    before, used = torch.get_num_threads(), []
    monkeypatch.setattr(llama.lm_head, "forward", lambda x: used.append(torch.get_num_threads()) or x)
    with lengthwise.stack("dense").on(llama, threads=(2, 1)) as run, torch.no_grad():
        cache = run.cache()
        llama(tiny.tokens(9), past_key_values=cache)
        llama(tiny.tokens(1), past_key_values=cache)
    assert used == [2, 1]
    assert torch.get_num_threads() == before
