"""Speculative decoding with a draft length that a head decides: fewer calls of the target, the same distribution.

A draft model q writes candidates y_1..y_K, the target p reads them in one call, and

    accept y_i with probability min(1, p(y_i) / q(y_i));  at the first rejection draw from norm(max(0, p - q)) instead,
    when all are accepted draw one more from p.

So every token is distributed as the target's. SpecDec++ stops drafting as soon as

    1 - prod_{j<=i} a_j > threshold,

a_j being the acceptance that the head (`acceptance.py`) predicts for candidate j: the chance that at least one of them
is rejected. Sources: Leviathan et al. (arXiv 2211.17192), algorithm 1; SpecDec++ (arXiv 2405.19715), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lengthwise.errors import BadInput
from lengthwise.thinking.decoding.acceptance import AcceptanceHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH = 4  # candidates of a round, where no head decides
THRESHOLD = 0.3
BOUNDS = (2, 20)  # fewest and most candidates of a round, where a head decides


@dataclass
class Receipt:
    """What a text cost. `tokens` were written; of `drafted` candidates `accepted` were kept.

    Every call of the target ends a round, so tokens = accepted + target_calls, less what lay behind the end.
    """

    tokens: int = 0
    target_calls: int = 0
    draft_calls: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def calls_per_token(self) -> float:
        """Calls of the target for every token written: 1 without a draft."""
        return self.target_calls / max(1, self.tokens)

    @property
    def discarded_per_token(self) -> float:
        """Candidates that were drafted for nothing, for every token written."""
        return (self.drafted - self.accepted) / max(1, self.tokens)


class _Reader:
    """A model and its cache, which can go back."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.cache, self.calls = model, DynamicCache(), 0

    def read(self, ids: Sequence[int], states: bool = False) -> tuple[Tensor, Tensor | None]:
        """Logits [n, V] of what the cache has not seen of `ids`, and its last hidden states [n, H] where asked for."""
        self.calls += 1
        new = torch.tensor([ids[self.cache.get_seq_length() :]], device=self.model.device)
        out = self.model(input_ids=new, past_key_values=self.cache, use_cache=True, output_hidden_states=states)
        return out.logits[0].float(), out.hidden_states[-1][0] if states else None

    def back(self, length: int) -> None:
        """Forget all but the first `length` tokens. By hand: the meaning of `crop` changed between versions."""
        if length < self.cache.get_seq_length():
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """logits [..., V] -> float64 probabilities; at temperature 0 all of it is on the first choice."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    return (logits.double() / temperature).softmax(-1)


def verify(p: Tensor, q: Tensor, drafted: Sequence[int], generator: torch.Generator) -> tuple[int, int]:
    """(candidates accepted, the token after them): p [K + 1, V] of the target, q [K, V] that the K were drawn from."""
    for i, token in enumerate(drafted):
        if float(torch.rand((), generator=generator, dtype=torch.float64)) * float(q[i, token]) >= float(p[i, token]):
            return i, _draw((p[i] - q[i]).clamp(min=0), generator)
    return len(drafted), _draw(p[len(drafted)], generator)


@torch.no_grad()
def generate(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    ids: Tensor,
    *,
    most: int,
    head: AcceptanceHead | None = None,
    threshold: float = THRESHOLD,
    bounds: tuple[int, int] = BOUNDS,
    length: int | None = None,
    temperature: float = 1.0,
    ends: Sequence[int] = (),
    seed: int = 0,
) -> tuple[Tensor, Receipt]:
    """At most `most` tokens after ids [n], up to one of `ends` (kept): (new ids [m], receipt).

    With a `head` a round has bounds[0] to bounds[1] candidates, and stops as the head says; without one it has `length`
    (4). The text is distributed as the target's own at this temperature (greedy at 0: the target's own tokens).
    Raises BadInput where the models do not go together or the text does not fit their windows.
    """
    if head is not None and length is not None:
        raise BadInput("give either a head, which decides how much is drafted, or a length")
    if not 0 < bounds[0] <= bounds[1] or (length is not None and length < 0) or temperature < 0 or most < 1:
        raise BadInput("bounds must be 1 or more and ascend; length, temperature 0 or more; most 1 or more")
    if ids.dim() != 1 or len(ids) == 0:
        raise BadInput(f"speculative decoding takes one sequence of ids [n], not {list(ids.shape)}")
    _check(target, draft, head, len(ids) + most)
    generator = torch.Generator().manual_seed(seed)
    text: list[int] = ids.tolist()
    start, receipt = len(text), Receipt()
    reader, writer = _Reader(target), _Reader(draft)
    while (left := start + most - len(text)) > 0:
        room = min(left - 1, bounds[1] if head is not None else LENGTH if length is None else length)
        drafted: list[int] = []
        q: list[Tensor] = []
        sure = 1.0
        while len(drafted) < room and not (drafted and drafted[-1] in ends):
            logits, states = writer.read([*text, *drafted], head is not None)
            if head is not None and states is not None and drafted:
                sure *= float(head(states[-1]).sigmoid())
                if len(drafted) >= bounds[0] and 1 - sure > threshold:
                    break
            q.append(probabilities(logits[-1].cpu(), temperature))
            drafted.append(_draw(q[-1], generator))
        logits, _ = reader.read([*text, *drafted])
        p = probabilities(logits[-len(drafted) - 1 :].cpu(), temperature)
        accepted, token = verify(p, torch.stack(q) if q else p[:0], drafted, generator)
        text += [*drafted[:accepted], token]
        reader.back(len(text) - 1)
        writer.back(len(text) - 1)
        receipt.drafted += len(drafted)
        receipt.accepted += accepted
        if any(t in ends for t in text[-accepted - 1 :]):
            first = next(i for i in range(len(text) - accepted - 1, len(text)) if text[i] in ends)
            del text[first + 1 :]
            break
    receipt.tokens, receipt.target_calls, receipt.draft_calls = len(text) - start, reader.calls, writer.calls
    return torch.tensor(text[start:], dtype=ids.dtype), receipt


def _draw(weights: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(weights, 1, generator=generator))


def _check(target: PreTrainedModel, draft: PreTrainedModel, head: AcceptanceHead | None, length: int) -> None:
    configs = [m.config.get_text_config(decoder=True) for m in (target, draft)]
    if configs[0].vocab_size != configs[1].vocab_size:
        sizes = " and ".join(f"{c.vocab_size:,}" for c in configs)
        raise BadInput(f"target and draft must share one tokenizer; their vocabularies have {sizes} tokens")
    for name, config in zip(("target", "draft"), configs, strict=True):
        if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
            raise BadInput(
                f"the {name} ({config.model_type}) has layers whose cache cannot go back to an earlier token"
            )
        window = getattr(config, "max_position_embeddings", length)
        if length > window:
            raise BadInput(
                f"prompt and text take {length:,} tokens, the window of the {name} is {window:,}: write less"
            )
    if head is not None and head.out.in_features != configs[1].hidden_size:
        raise BadInput(
            f"the head is for a draft with {head.out.in_features} hidden units, this one has {configs[1].hidden_size}"
        )
