"""A thousand prefills of mixed length leave no memory behind."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

import lengthwise
import tiny

STACKS = [
    "dense",
    "int8:residual=16 + streaming-llm:sinks=4,window=64",
    "offload:hot=32",
    "infllm:init=4,local=64,block=16,top=2,reps=2,chunk=16,to=disk",
]


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_thousand_prefills() -> None:
    model = tiny.model("llama")
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 700, (1000,), generator=draw).tolist()
    after = []
    for i, length in enumerate(lengths):
        with lengthwise.stack(STACKS[i % len(STACKS)]).on(model) as run:
            cache = run.prefill(tiny.tokens(length, seed=i), chunk=256)
            with torch.no_grad():
                model(tiny.tokens(1), past_key_values=cache)
        if i % 100 == 99:
            gc.collect()
            after.append(resident())
    # the first hundreds warm up the allocator; the caches of one stack alone are 3 MB in a hundred prefills
    assert max(after[5:]) - max(after[:3]) < 8 << 20, [round(x / 1e6) for x in after]
