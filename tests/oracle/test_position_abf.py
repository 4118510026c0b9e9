"""A larger base, and logits that grow with the position in all but the first layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from lengthwise.core import compat
from lengthwise.core.stack import refusals
from lengthwise.errors import BadParameter
from lengthwise.position.abf import Abf
from reference import Held, Reference

IDS = tiny.tokens(701)[0]  # beyond the trained window of 512


class Llama(Reference):
    """With another base, and a factor on the queries of the layers from `exempt` on."""

    def __init__(self, model: Any, base: float, exempt: int | None) -> None:
        super().__init__(model)
        self.theta = torch.tensor([base ** (-2 * i / self.dim) for i in range(self.dim // 2)], dtype=torch.float64)
        self.exempt = exempt

    def attend(self, held: Held, q: Tensor, positions: Tensor) -> Tensor:
        scaled = self.exempt is not None and held.layer >= self.exempt
        self.factor = (lambda m: math.log(m + 1, tiny.WINDOW) if m + 1 > tiny.WINDOW else 1.0) if scaled else None
        return super().attend(held, q, positions)


def read(text: str, name: str, chunks: list[int], block: int) -> Tensor:
    model = tiny.model(name)
    with lengthwise.stack(text).on(model) as run, torch.no_grad():
        run.block, cache = block, run.cache()
        return torch.cat([model(part[None], past_key_values=cache).logits[0] for part in IDS.split(chunks)])


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize(
    ("text", "base", "exempt"),
    [
        ("abf", 5e5, None),
        ("abf:base=20000,logn=true", 2e4, 2),  # both layers are exempt
        ("abf:logn=true,exempt=1", 5e5, 1),
        ("abf:logn=true,exempt=0", 5e5, 0),
    ],
)
def test_logits(name: str, text: str, base: float, exempt: int | None) -> None:
    expected = Llama(tiny.model(name), base, exempt).read_all(IDS, 350)
    for chunks, block in (([701], 1024), ([350, 150, 200, 1], 91)):
        got = read(text, name, chunks, block)
        torch.testing.assert_close(got.double(), expected, atol=3e-4, rtol=1e-4)


def test_the_factor_acts_beyond_the_window_only() -> None:
    plain, scaled = (read(f"abf:exempt=0,logn={x}", "llama", [701], 1024) for x in ("false", "true"))
    assert torch.equal(plain[: tiny.WINDOW], scaled[: tiny.WINDOW])
    assert (plain - scaled)[tiny.WINDOW + 1 :].abs().max() > 1e-3


def test_refusals() -> None:
    facts = compat.model_facts(tiny.model("llama"))
    assert refusals([Abf(base=10_000)], facts) == ["abf: base=10000 is not above the base of llama, 10000"]
    assert not refusals([Abf(base=10_001)], facts)
    for wrong in ({"base": 0.5}, {"base": None, "logn": True}, {"exempt": -1}):
        with pytest.raises(BadParameter):
            Abf(**wrong)
