"""Every stack reads the same through the compiled kernels and through torch alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from lengthwise import kernels
from lengthwise.core.attach import Run
from lengthwise.core.scoring import Scorer

STACKS = [
    "dense",
    "yarn:factor=2",
    "dynamic-ntk:factor=2,length=2048",
    "self-extend:group=4,window=16",
    "rerope:window=16",
    "streaming-llm:sinks=4,window=40",
    "lm-infinite:sinks=4,window=40,top_k=3,top_k_layer=0",
    "infllm:init=4,local=16,block=8,top=2,reps=2,chunk=8,cached=4",
    "int8:group=4,residual=20",
    "int4:group=4,residual=20",
    "int8:group=4,residual=20 + streaming-llm:sinks=4,window=100",
    "offload:hot=16,pages=1",
    "block-sparse:mass=0.5,top=1,sinks=64,window=64",
    "quest:budget=128,dense_layers=0",
    "minference:vertical=40,slash=30",
    "hip:top=40,sinks=64,window=64",
    "lserve:budget=256,reuse=2",
]
IDS = tiny.tokens(400)


def read(stack: str, architecture: str) -> tuple[Tensor, Run]:
    model = tiny.model(architecture)
    with torch.no_grad(), lengthwise.stack(stack).on(model) as run:
        cache, steps = run.prefill(IDS[:, :-6], chunk=90), []
        for i in range(IDS.shape[1] - 7, IDS.shape[1]):
            steps.append(model(IDS[:, i : i + 1], past_key_values=cache).logits)
    return torch.cat(steps, 1), run


@pytest.mark.skipif(kernels.backend() != "cpu", reason="no compiled kernels here")
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("stack", STACKS)
def test_same_through_kernels_and_torch(stack: str, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, run = read(stack, architecture)
    monkeypatch.setenv("LENGTHWISE_KERNELS", "naive")
    plain, torch_run = read(stack, architecture)
    # a code may fall on the other side of a half
    assert float((ours - plain).abs().max()) < (0.05 if stack.startswith("int") else 1e-4)
    for a, b in zip(run.ledger.layers, torch_run.ledger.layers, strict=True):
        assert (a.pairs, a.dense_pairs, a.held_tokens) == (b.pairs, b.dense_pairs, b.held_tokens)


@pytest.mark.skipif(kernels.backend() != "cpu", reason="no compiled kernels here")
def test_eight_bits_are_read_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[type]] = []
    original = Scorer._parts

    def spy(self, slots, part):  # type: ignore[no-untyped-def]
        parts = original(self, slots, part)
        seen.append([type(k) for _, k, _ in parts])
        return parts

    monkeypatch.setattr(Scorer, "_parts", spy)
    read("int8:group=4,residual=20", "llama")
    assert [kernels.Coded, Tensor] in seen
    assert seen[0] == [Tensor]
