"""A trial of an architecture that is not under contract tests: does a neutral stack leave its outputs as they are?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import Frame
from lengthwise.core.seams import Positions
from lengthwise.core.spec import Spec

if TYPE_CHECKING:
    from lengthwise.core.attach import Run

TOKENS = 16
_known: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class TwoFrames(Positions):
    """Splits plain attention at a distance of 4: the same result through un-rotated keys, frames and merging."""

    spec: ClassVar[Spec] = Spec(
        name="two-frames",
        family="position",
        summary="plain attention in two frames",
        formula="rel(m,n) = m-n",
        seams=("position",),
    )

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        """Near and far, both as they are."""
        return Frame(high=4), Frame(low=4)


@torch.no_grad()
def trial(run: Run) -> list[str]:
    """Reasons to refuse the model of `run`, a run of TwoFrames: [] when 16 tokens give the plain model's states."""
    decoder = run.anatomy.decoder
    if decoder not in _known:
        _known[decoder] = _trial(run)
    return _known[decoder]


def _trial(run: Run) -> list[str]:
    name = f"{run.facts.model_type} is not among the tested architectures, and a trial of {TOKENS} tokens"
    device = next(run.model.parameters()).device
    ids = (torch.arange(1, TOKENS + 1) % run.model.get_input_embeddings().weight.shape[0])[None].to(device)
    decoder = run.anatomy.decoder
    try:
        plain = decoder(input_ids=ids, use_cache=False)[0].float()
        with run:
            ours = decoder(input_ids=ids, past_key_values=run.cache(), use_cache=True)[0].float()
    except Exception as error:  # whatever an unknown architecture does, the user gets a reason
        return [f"{name} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]
    off = float((ours - plain).abs().max() / plain.abs().max())
    limit = 1e-3 if run.model.dtype == torch.float32 else 5e-2
    return [] if off <= limit else [f"{name} differed from the plain model by {off:.1%}"]
