"""A plain pass of a model through an attention function of ours: how estimators and prefixes are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from lengthwise.core import compat
from lengthwise.errors import BadInput

NAME = "lengthwise-train"
Attend = Callable[[nn.Module, Tensor, Tensor, Tensor, float], Tensor]


@contextmanager
def attending(model: PreTrainedModel, attend: Attend) -> Iterator[None]:
    """Inside, every attention layer of `model` is `attend(module, q, k, v, scale)`, through which gradients pass.

    q [B, Hq, N, D], k and v [B, Hkv, N, D] come rotated, for whole sequences without padding or cache; what returns is
    [B, Hq, N, D]. Raises BadInput for a model whose attention cannot be taken over.
    """
    anatomy, reasons = compat.examine(model)
    if anatomy is None:
        raise BadInput("; ".join(reasons))

    def function(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: object
    ) -> tuple[Tensor, None]:
        scaling = given.get("scaling")
        scale = float(scaling) if isinstance(scaling, float | int) else float(query.shape[-1]) ** -0.5
        return attend(module, query, key, value, scale).transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, function)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    before = [(c, c._attn_implementation_internal) for c in anatomy.configs]
    for config in anatomy.configs:
        config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        for config, value in before:
            config._attn_implementation_internal = value
