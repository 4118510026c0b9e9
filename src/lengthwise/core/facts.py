"""What the rest of the house may know of a model: shapes, window, rotary layout, the kind of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

LayerKind = Literal["full", "sliding", "other"]


@dataclass(frozen=True)
class ModelFacts:
    """Read from a transformers config (and, for dtype and device, from the loaded model).

    `window` is the number of tokens that the model was trained to read (`max_position_embeddings`, or what the model's
    own YaRN makes of it);
    `head_dim` and `rotary_dim` are in elements; `sliding_window` is in tokens and holds for 'sliding' layers.
    """

    model_type: str
    layer_kinds: tuple[LayerKind, ...]
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    window: int
    rope_type: str
    rope_theta: float
    rotary_dim: int
    sliding_window: int | None = None
    dtype_bytes: int = 2
    device: str = "cpu"

    @property
    def full_layers(self) -> int:
        """Number of full-attention layers: those that methods act on."""
        return sum(kind == "full" for kind in self.layer_kinds)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token's keys and values take in one layer, uncompressed."""
        return 2 * self.kv_heads * self.head_dim * self.dtype_bytes


def facts_of_config(config: Any, *, dtype_bytes: int = 2, device: str = "cpu") -> ModelFacts:
    """Facts from a transformers config; of a composite config, its text part."""
    config = config.get_text_config(decoder=True)
    count = int(config.num_hidden_layers)
    sliding_window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:  # Mistral and Phi-3: a sliding_window means every layer slides
        slides = sliding_window is not None and getattr(config, "use_sliding_window", True)
        types = ["sliding_attention" if slides else "full_attention"] * count
    names: dict[str, LayerKind] = {"full_attention": "full", "sliding_attention": "sliding"}
    kinds = tuple(names.get(t, "other") for t in types[:count])
    rope = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in rope:
        rope = rope["full_attention"] or {}
    window = int(getattr(config, "max_position_embeddings", 0) or 0)
    if rope.get("rope_type") == "yarn":  # some configs name the factor alone
        window = max(window, int(float(rope.get("factor") or 1) * (rope.get("original_max_position_embeddings") or 0)))
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return ModelFacts(
        model_type=str(config.model_type),
        layer_kinds=kinds,
        heads=int(config.num_attention_heads),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        head_dim=head_dim,
        hidden=int(config.hidden_size),
        window=window,
        rope_type=str(rope.get("rope_type", "none")),
        rope_theta=float(rope.get("rope_theta", 0.0)),
        rotary_dim=int(head_dim * float(rope.get("partial_rotary_factor", 1.0))),
        sliding_window=sliding_window if "sliding" in kinds else None,
        dtype_bytes=dtype_bytes,
        device=device,
    )
