"""Everything that depends on the transformers version: finding a model's parts, taking over its attention and back.

One attention function and one mask function are registered under NAME. While a model is attached its configs name
them, its rotary module is a `Switch`, and hooks on its decoder tell which session, if any, a forward pass belongs to.
A forward pass without a session runs exactly as before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from lengthwise.core import fused
from lengthwise.core.facts import LayerKind, ModelFacts, facts_of_config
from lengthwise.core.rope import Apply, Identity, Rope
from lengthwise.core.session import LayerSlot, Session
from lengthwise.core.together import Together, TogetherSlot
from lengthwise.errors import BadInput, LengthwiseError, SessionError

NAME = "lengthwise"
KNOWN = frozenset(
    {"llama", "qwen2", "qwen3", "mistral", "phi3", "gemma2", "gemma3_text", "gpt_neox", "olmo2", "cohere", "granite"}
)  # architectures under contract tests; others are probed when they are attached
NO_ROTARY_ON_SOME_LAYERS = frozenset({"cohere2", "smollm3", "llama4_text", "exaone4"})


@dataclass
class Anatomy:
    """The parts of a model that an attachment touches."""

    decoder: nn.Module
    attentions: list[nn.Module]
    apply_rotary: Apply
    configs: list[Any]
    head: nn.Module | None = None


@dataclass
class Attachment:
    """What was changed on a model, so that it can be put back; shared by all runs on it."""

    anatomy: Anatomy
    before: list[tuple[Any, str | None]]
    rotary: nn.Module
    runs: int = 0
    plain_passes: int = 0
    ours: bool = False  # whether the last forward pass of the decoder had a session
    hooks: list[Any] = field(default_factory=list)
    swapped: list[nn.Module] = field(default_factory=list)


@dataclass
class Pass:
    """The forward pass in progress: its session (None: a plain pass) and the attention it would have used."""

    session: Session | Together | None
    original: str


_current: ContextVar[Pass | None] = ContextVar("lengthwise_pass", default=None)
_attached: WeakKeyDictionary[nn.Module, Attachment] = WeakKeyDictionary()


def _inside() -> bool:
    """Whether the forward pass in progress has a session."""
    now = _current.get()
    return now is not None and now.session is not None


def _raw() -> bool:
    """Whether queries and keys of the forward pass in progress are to be left un-rotated."""
    now = _current.get()
    return now is not None and now.session is not None and now.session.run.plans["full"].raw


class Switch(nn.Module):
    """Stands in for the rotary module: un-rotated, with the stack's frequencies, or as it was, by the pass."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.identity = Identity(original)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's outputs, of the rotary module that the pass wants."""
        now = _current.get()
        if now is None or now.session is None:
            return self.original(*args, **kwargs)
        plan = now.session.run.plans["full"]
        if plan.raw:
            return self.identity(*args, **kwargs)
        layer_type = args[2] if len(args) > 2 else kwargs.get("layer_type")
        if layer_type == "sliding_attention" or plan.position is None:
            return self.original(*args, **kwargs)
        return plan.rope.module(*args, **kwargs)


def examine(model: PreTrainedModel) -> tuple[Anatomy | None, list[str]]:
    """The parts of `model`, or the reasons why no stack can be attached to it."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        return None, [f"{name} is not a transformers model"]
    config = model.config.get_text_config(decoder=True)
    decoders = [
        m for m in model.modules() if isinstance(getattr(m, "rotary_emb", None), nn.Module) and hasattr(m, "layers")
    ]
    if len(decoders) != 1:
        what = "no rotary embedding that its layers share" if not decoders else "several decoders"
        return None, [f"{name} ({config.model_type}) has {what}: positions cannot be taken over"]
    decoder = decoders[0]
    attentions = [m for m in decoder.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "layer_idx")]
    facts = facts_of_config(model.config)
    reasons = []
    others = sorted(
        {t for t in getattr(config, "layer_types", None) or [] if t not in ("full_attention", "sliding_attention")}
    )
    if others:
        reasons.append(
            f"{config.model_type} has layers of type {', '.join(others)}, which keep no keys and values to act on"
        )
    if len(attentions) != len(facts.layer_kinds):
        reasons.append(
            f"{config.model_type} has {len(attentions)} attention modules for {len(facts.layer_kinds)} layers"
        )
    if any(getattr(m, "sinks", None) is not None for m in attentions):
        reasons.append(f"{config.model_type} has learned attention sinks, which partial attention does not carry yet")
    if config.model_type in NO_ROTARY_ON_SOME_LAYERS:
        reasons.append(f"{config.model_type} leaves some layers without rotary embedding, which is not supported yet")
    apply = next((f for m in attentions if (f := fused.original_rotary(sys.modules[type(m).__module__]))), None)
    if apply is None:
        reasons.append(f"{config.model_type} does not apply its rotary embedding through apply_rotary_pos_emb")
    if reasons or apply is None:
        return None, reasons
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    configs.update({id(m.config): m.config for m in attentions})
    return Anatomy(decoder, attentions, apply, list(configs.values()), model.get_output_embeddings()), []


def model_facts(model: PreTrainedModel) -> ModelFacts:
    """Facts of a loaded model: its config, dtype and device."""
    weight = next(model.parameters())
    return facts_of_config(model.config, dtype_bytes=weight.element_size(), device=weight.device.type)


def ropes(anatomy: Anatomy, facts: ModelFacts) -> dict[LayerKind, Rope]:
    """The model's own rotary embedding for each kind of layer."""
    attachment = _attached.get(anatomy.decoder)
    rotary = attachment.rotary if attachment else anatomy.decoder.rotary_emb
    assert isinstance(rotary, nn.Module)
    if hasattr(rotary, "inv_freq"):
        return {"full": Rope(rotary, anatomy.apply_rotary), "sliding": Rope(rotary, anatomy.apply_rotary)}
    return {
        "full": Rope(rotary, anatomy.apply_rotary, "full_attention"),
        "sliding": Rope(rotary, anatomy.apply_rotary, "sliding_attention"),
    }


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The language-model head on hidden states [..., H] -> [..., V], with the config's scale and softcap."""
    out = model.get_output_embeddings()(hidden)
    config = model.config.get_text_config(decoder=True)
    if (scale := getattr(config, "logit_scale", None)) is not None:
        out = out * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        out = out / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        out = cap * torch.tanh(out / cap)
    return out  # type: ignore[no-any-return]


def attach(anatomy: Anatomy) -> Attachment:
    """Take over the model's attention; a second run on the same model shares the attachment."""
    attachment = _attached.get(anatomy.decoder)
    if attachment is None:
        rotary = anatomy.decoder.rotary_emb
        assert isinstance(rotary, nn.Module)
        before = [(c, c._attn_implementation_internal) for c in anatomy.configs]
        attachment = Attachment(anatomy, before, rotary)
        for config in anatomy.configs:
            config._attn_implementation_internal = NAME
        anatomy.decoder.rotary_emb = Switch(rotary)
        original = getattr(anatomy.attentions[0].config, "_attn_implementation_internal", None)
        original = next((o for c, o in before if c is anatomy.attentions[0].config), original) or "eager"
        attachment.hooks = [
            anatomy.decoder.register_forward_pre_hook(
                _before_pass(attachment, original), with_kwargs=True, prepend=True
            ),
            anatomy.decoder.register_forward_hook(_after_pass, with_kwargs=True, always_call=True),
        ]
        attachment.swapped = fused.swap(anatomy.decoder, _inside)
        if anatomy.head is not None:
            attachment.swapped += fused.swap(anatomy.head, lambda: attachment.ours)
        fused.take_rotary(sys.modules[type(anatomy.attentions[0]).__module__], _inside, _raw)
        _attached[anatomy.decoder] = attachment
    attachment.runs += 1
    return attachment


def detach(attachment: Attachment) -> None:
    """End one run; the last one puts everything back as it was."""
    attachment.runs -= 1
    if attachment.runs:
        return
    for hook in attachment.hooks:
        hook.remove()
    for config, value in attachment.before:
        config._attn_implementation_internal = value
    fused.restore(attachment.swapped)
    fused.give_rotary_back(sys.modules[type(attachment.anatomy.attentions[0]).__module__])
    attachment.anatomy.decoder.rotary_emb = attachment.rotary
    del _attached[attachment.anatomy.decoder]


def _before_pass(attachment: Attachment, original: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        attachment.ours = isinstance(cache, (Session, Together))
        if not isinstance(cache, (Session, Together)):
            attachment.plain_passes += 1
            _current.set(Pass(None, original))
            return
        if cache.run.anatomy.decoder is not module:
            raise SessionError("this cache belongs to a run on another model")
        ids = kwargs.get("input_ids")
        ids = ids if ids is not None or not args else args[0]
        inputs = ids if ids is not None else kwargs["inputs_embeds"]
        mask = kwargs.get("attention_mask")
        mask = mask.get("full_attention") if isinstance(mask, dict) else mask
        if kwargs.get("output_attentions"):
            raise BadInput("attention weights are not returned under a stack: sum them with run.watching(cache)")
        keeps = cache.run.plans["full"].keeps
        if ids is None and keeps is not None and keeps.needs_surprise:
            raise BadInput(f"{keeps.spec.name} scores tokens, so it needs input_ids, not inputs_embeds")
        cache.begin(mask, inputs.shape[0], inputs.shape[1])
        _current.set(Pass(cache, original))

    return hook


def _after_pass(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    now = _current.get()
    _current.set(None)
    if now is None or now.session is None or output is None:
        return
    now.session.finish()
    keeps = now.session.run.plans["full"].keeps
    if keeps is not None and keeps.needs_surprise:
        ids = kwargs.get("input_ids")
        now.session.learn(logits_of(now.session.run.model, output[0]), ids if ids is not None else args[0])


def _attention(
    module: nn.Module, query: Tensor, key: Any, value: Any, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    if not isinstance(key, (LayerSlot, TogetherSlot)):
        now = _current.get()
        original = now.original if now is not None else "sdpa"
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(original, eager)
        return function(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    scaling = kwargs.get("scaling")
    scale = float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5
    with torch.no_grad():
        out = key.session.attend(key, query, scale, kwargs.get("softcap"))
    if torch.is_grad_enabled() and query.requires_grad:
        out.requires_grad_().register_hook(_refuse_gradients)
    return out, None


def _refuse_gradients(gradient: Tensor) -> None:
    raise LengthwiseError("a stack reads and writes, it does not train: no gradient passes through its attention")


def _mask(*args: Any, **kwargs: Any) -> Any:
    now = _current.get()
    if now is not None and now.session is not None:
        return None
    original = now.original if now is not None else "sdpa"
    function = ALL_MASK_ATTENTION_FUNCTIONS.get(original)
    return function(*args, **kwargs) if function is not None else None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
