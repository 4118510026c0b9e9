"""NTK-attention: a prefix of any length as d^2 + d numbers for each head (Liang et al. 2024, arXiv 2406.14036)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from lengthwise.attention import _blocks, _prefix
from lengthwise.core.attend import Partial
from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import EVERYTHING, Visible
from lengthwise.core.seams import Positions, Selects, View
from lengthwise.core.spec import Method, Spec, param
from lengthwise.errors import BadInput


@dataclass(frozen=True)
class NtkAttention(Selects):
    """A learned prefix whose keys and values have been summed up, once and for all, by a feature map:

        out(q) = (sum_j exp(q.k_j / sqrt d) v_j + phi(q) Z) / (sum_j exp(q.k_j / sqrt d) + phi(q).k),
        phi(x) = elu(x / d^(1/4)) + 1

    Z [D, D] and k [D] of every head stand for a prefix of m keys and values, Z = phi(K)^T V and k = phi(K)^T 1, at a
    cost that does not depend on m; trained, for one without end. `params` is a file of trained Z and k
    (`scripts/fit_prefix.py`). `prefix` puts the first tokens of the input in their place instead, untrained: what is
    lost by the feature map can be measured on them.
    """

    params: str | None = param(None, "file of trained statistics; none: no trained prefix")
    prefix: int = param(0, "so many first tokens are read through their sums alone by all that follow")

    spec: ClassVar[Spec] = Spec(
        name="ntk-attention",
        family="attention",
        summary="a trained prefix of any length as d^2 + d numbers for each head, added to attention",
        formula="out = (sum_j exp(q.k_j/sqrt d) v_j + phi(q) Z) / (sum_j exp(q.k_j/sqrt d) + phi(q).k), "
        "phi(x) = elu(x/d^(1/4)) + 1; Z = phi(K)^T V, k = phi(K)^T 1 of a prefix, or trained",
        seams=("select",),
        papers=(43,),
        source="arXiv 2406.14036, the NTK-attention algorithm; feature map, |k| and start of the released code",
        exact_when="without params and prefix",
        refuses="params of another model; with `prefix`, methods that drop keys or give them several positions",
        simplified="the tokens of `prefix` stay in the cache, hidden; keys and queries meet the feature map rotated",
        neutral={},
        test="tests/oracle/test_ntk_attention.py",
    )

    def validate(self) -> None:
        """One prefix at most."""
        self.require(self.prefix >= 0, "prefix must be at least 0")
        self.require(self.params is None or self.prefix == 0, "give params or prefix, not both")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """The file must be of a model of this shape; tokens that are summed up need to be there, at one position."""
        reasons = []
        if self.params is not None:
            try:
                shape = _loaded(self.params, _stamp(self.params)).shape
            except BadInput as error:
                return [str(error)]
            if model is not None and shape != (len(model.layer_kinds), model.heads, model.head_dim):
                reasons.append(
                    f"{self.params} is for {shape[0]} layers of {shape[1]} heads of {shape[2]}, and {model.model_type} "
                    f"has {len(model.layer_kinds)} of {model.heads} of {model.head_dim}: train it anew"
                )
        for other in others if self.prefix else ():
            if "keep" in other.spec.seams:
                reasons.append(
                    f"the prefix is summed up when it has been read, and {other.spec.name} may drop it before"
                )
            elif isinstance(other, Positions) and other.moves_keys(model):
                reasons.append(f"keys of the prefix need one position each, and {other.spec.name} gives them several")
        return reasons

    def cuts(self, facts: ModelFacts, start: int, stop: int) -> Sequence[int]:
        """Where the prefix ends."""
        return (self.prefix,) if start < self.prefix < stop else ()

    def visible(self, view: View) -> Visible:
        """What follows the prefix, as soon as it has been read."""
        if not 0 < self.prefix <= view.start:
            return EVERYTHING
        return Visible(slots=torch.arange(self.prefix, view.kv.n))

    def extras(self, view: View) -> list[Partial]:
        """The prefix, as one more set of keys."""
        if self.params is not None:
            trained = _loaded(self.params, _stamp(self.params))
            z, k = (x[view.layer].to(view.q.device) for x in (trained.z, trained.k))
        elif 0 < self.prefix <= view.start:
            z, k = self._summed(view)
        else:
            return []
        view.receipt.pairs += view.q.shape[0] * view.q.shape[1] * (view.q.shape[2] + 1) // 2  # phi(q) Z and phi(q).k
        return [_prefix.partial(_blocks.queries(view), z, k)]

    def _summed(self, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """The statistics of the first tokens, made once."""
        if "z" not in view.state:
            keys = _blocks.keys(view)[:, : self.prefix]
            found = _prefix.summed(keys, view.kv.values.read(0, self.prefix))
            view.receipt.pairs += keys.shape[0] * self.prefix * (keys.shape[2] + 1) // 2
            view.state["z"], view.state["k"] = found
        group = view.q.shape[0] // view.state["k"].shape[0]
        z, k = (view.state[name].to(view.q.device).repeat_interleave(group, 0) for name in ("z", "k"))
        return z, k


def _stamp(path: str) -> int:
    """When the file was last changed, so that what is remembered of it is not stale."""
    return Path(path).stat().st_mtime_ns if Path(path).exists() else 0


@functools.lru_cache(maxsize=8)
def _loaded(path: str, stamp: int) -> _prefix.Prefix:
    return _prefix.load(path)
