"""ThinkEdit (paper 202): what makes a model think too shortly is taken out of the heads that write it.

For each layer l, with r_l(c) the residual stream behind the attention, mean over the tokens of a chain c:

    v_l = mean over short chains of r_l  -  mean over long chains of r_l         the short-reasoning direction
    C_lh = mean over short chains and their tokens of  <o_lh W_lh, v_l / |v_l|>  what head h adds along it
    W_lh <- W_lh (I - v v^T / |v|^2)        for the heads with the largest C     (o_lh: the head's output [head_dim])

so an edited head can add nothing along v_l, and is as it was otherwise. arXiv 2503.22048, sections 3 and 4, with the
released code for the places and means. Published: short means below 100 tokens, long above 1,000; about 4 % of the
heads are edited (2 % in the first version), fully (strength 1). All of it, for chains as pairs of texts:

    v = directions(model, tokenizer, short, long)
    delta = edit(model, v, top_heads(contributions(model, tokenizer, short, v)))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lengthwise.errors import BadInput, BadParameter
from lengthwise.thinking.weights.delta import Delta

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHORT, LONG = 100, 1000  # thinking tokens
SHARE = 0.04  # of all heads

Sample = tuple[str, str]
"""(prompt, the thinking that was written after it), in the model's own form."""


def refusals(model: PreTrainedModel) -> list[str]:
    """Reasons why the heads of `model` cannot be edited; [] means they can."""
    name = type(model).__name__
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return [f"{name} does not keep its decoder layers in a list 'layers'"]
    reasons = []
    for layer in layers:
        output = getattr(getattr(layer, "self_attn", None), "o_proj", None)
        if not isinstance(output, nn.Linear):
            reasons.append(f"a layer of {name} has no linear output projection self_attn.o_proj")
        elif not hasattr(layer, "input_layernorm") or not hasattr(layer, "post_attention_layernorm"):
            reasons.append(f"{name} has no norm between its attention and its MLP, where the direction is read")
        elif hasattr(layer, "pre_feedforward_layernorm"):
            reasons.append(f"{name} has a norm behind the heads' output: a direction taken out would come back")
    return list(dict.fromkeys(reasons))


def directions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, short: Sequence[Sample], long: Sequence[Sample]
) -> Tensor:
    """The short-reasoning direction of every layer, of length 1: [layers, hidden], float32. Raises BadInput."""
    _check(model, short, long)
    of = [torch.stack([_read(model, tokenizer, c)[0] for c in chains]).mean(0) for chains in (short, long)]
    v: Tensor = of[0] - of[1]
    if not v.norm(dim=-1).min() > 0:
        raise BadInput("short and long chains look the same to the model: there is no direction between them")
    unit: Tensor = v / v.norm(dim=-1, keepdim=True)
    return unit


def contributions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, short: Sequence[Sample], v: Tensor
) -> Tensor:
    """What every head adds along `v` [layers, hidden] in short chains: [layers, heads]. Raises BadInput."""
    _check(model, short)
    heads = model.config.get_text_config(decoder=True).num_attention_heads
    total = torch.zeros(len(v), heads)
    for chain in short:
        for layer, (output, mean) in enumerate(zip(_outputs(model), _read(model, tokenizer, chain)[1])):
            # <o W, v> is linear in o: the mean of a head's output is enough
            along = mean * (v[layer].to(output.weight.device) @ output.weight.data.float()).cpu()
            total[layer] += along.view(heads, -1).sum(-1)
    return total / len(short)


def top_heads(added: Tensor, share: float = SHARE) -> list[tuple[int, int]]:
    """The (layer, head) pairs with the largest contributions, the largest first: a `share` of all, at least one."""
    if not 0 < share <= 1:
        raise BadParameter(f"the share of heads {share} is not in 0 to 1")
    best = added.flatten().argsort(descending=True)[: max(1, round(share * added.numel()))]
    return [(int(i) // added.shape[1], int(i) % added.shape[1]) for i in best]


def edit(model: PreTrainedModel, v: Tensor, heads: Sequence[tuple[int, int]], strength: float = 1.0) -> Delta:
    """The update that takes `v` [layers, hidden] out of what these heads write; rank one for each layer.

    `strength` 1 takes it out fully. Raises BadInput for models with another layout, BadParameter for heads they lack.
    """
    _check(model)
    outputs, parts = _outputs(model), {}
    count = model.config.get_text_config(decoder=True).num_attention_heads
    names = {id(module): name for name, module in model.named_modules()}
    if not heads or any(not (0 <= la < len(outputs) and 0 <= h < count) for la, h in heads):
        raise BadParameter(f"heads are pairs (layer, head) below ({len(outputs)}, {count}), at least one")
    for layer in sorted({la for la, _ in heads}):
        weight = outputs[layer].weight.data.float().cpu()
        unit = (v[layer] / v[layer].norm()).cpu()
        along = (unit @ weight).view(count, -1)
        chosen = torch.zeros(count, 1)
        chosen[[h for la, h in heads if la == layer]] = 1
        down = -strength * (along * chosen).view(1, -1)
        parts[f"{names[id(outputs[layer])]}.weight"] = (unit[:, None].contiguous(), down)
    return Delta(parts, {"made": "ThinkEdit", "heads": " ".join(f"{la}.{h}" for la, h in heads)})


def _check(model: PreTrainedModel, *samples: Sequence[Sample]) -> None:
    if reasons := refusals(model):
        raise BadInput(f"ThinkEdit does not know this model: {'; '.join(reasons)}")
    if not all(samples):
        raise BadInput("ThinkEdit needs short chains and long ones: at least one of each")


def _layers(model: PreTrainedModel) -> Sequence[nn.Module]:
    return cast("Sequence[nn.Module]", model.base_model.layers)


def _outputs(model: PreTrainedModel) -> list[nn.Linear]:
    return [cast("nn.Linear", cast("Any", layer).self_attn.o_proj) for layer in _layers(model)]


@torch.no_grad()
def _read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> tuple[Tensor, list[Tensor]]:
    """Means over the tokens of one chain: the stream behind each attention [layers, hidden], what goes into o_proj.

    As in the released code, the positions are those from which the chain's tokens are predicted: one earlier.
    """
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in sample)
    if not before or not after:
        raise BadInput("a chain without text says nothing of how the model thinks")
    places = slice(len(before) - 1, len(before) + len(after) - 1)
    stream: dict[int, Tensor] = {}
    heads: dict[int, Tensor] = {}
    with _watching(model, stream, heads, places):
        device = next(model.parameters()).device
        model(input_ids=torch.tensor([[*before, *after]], device=device), use_cache=False)
    return torch.stack([stream[i] for i in sorted(stream)]), [heads[i] for i in sorted(heads)]


@contextmanager
def _watching(
    model: PreTrainedModel, stream: dict[int, Tensor], heads: dict[int, Tensor], places: slice
) -> Iterator[None]:
    def keep(into: dict[int, Tensor], index: int) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            into[index] = given[0][0, places].float().mean(0).cpu()

        return hook

    hooks = []
    for index, layer in enumerate(_layers(model)):
        parts = cast("Any", layer)
        hooks.append(parts.post_attention_layernorm.register_forward_pre_hook(keep(stream, index)))
        hooks.append(parts.self_attn.o_proj.register_forward_pre_hook(keep(heads, index)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
