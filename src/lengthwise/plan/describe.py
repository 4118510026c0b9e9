"""What a model is, from its name or its config alone: no weights are read, nothing is downloaded but a config file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthwise.core.facts import ModelFacts, facts_of_config
from lengthwise.errors import BadParameter, MissingExtra
from lengthwise.models import PACKAGED, ModelError, is_ready, resolve
from lengthwise.models._errors import first_line
from lengthwise.models._gguf import quiet
from lengthwise.models._load import _on_hub

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lengthwise.core.compat import Anatomy

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
HEADER_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

CONFIGS: dict[str, dict[str, Any]] = {
    "smollm2": {
        "model_type": "llama",
        "head_dim": 64,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rope_parameters": {"rope_theta": 100_000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "vocab_size": 49_152,
    }
}
"""The configs of packaged models, so that they can be planned for before they are downloaded."""


@dataclass(frozen=True)
class Described:
    """A model without its weights. `reasons` say why no stack can be attached to it; [] and an anatomy mean it can.

    `parameters` is their number, `weight_bytes` what they take in `dtype`; `loaded` says that they are in memory
    already. `skeleton` is the model on the meta device, or the loaded model itself.
    """

    name: str
    config: Any
    facts: ModelFacts
    dtype: str
    parameters: int
    loaded: bool
    skeleton: PreTrainedModel | None
    anatomy: Anatomy | None
    reasons: list[str]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self.parameters * DTYPES[self.dtype]


def describe(model: str | PreTrainedModel, *, dtype: str | None = None, device: str | None = None) -> Described:
    """The facts of a packaged name, a folder, a GGUF file, a hub id, or of a model that is loaded already.

    `dtype` and `device` are by default those that `lengthwise.models.load` would choose. Raises UnknownModel,
    ModelError, MissingExtra or BadParameter.
    """
    from lengthwise.core import compat

    if not isinstance(model, str):
        facts = compat.model_facts(model)
        anatomy, reasons = compat.examine(model)
        own = str(model.dtype).removeprefix("torch.")
        return Described(
            name=str(getattr(model.config, "_name_or_path", "") or facts.model_type),
            config=model.config,
            facts=facts,
            dtype=own if own in DTYPES else "float32",
            parameters=sum(p.numel() for p in model.parameters()),
            loaded=True,
            skeleton=model,
            anatomy=anatomy,
            reasons=reasons,
        )
    config, saved = _config(model)
    chosen = dtype or saved
    if chosen not in DTYPES:
        raise BadParameter(f"dtype '{chosen}' is not one of {', '.join(DTYPES)}")
    skeleton, reasons = _skeleton(config)
    anatomy = None
    if skeleton is not None:
        anatomy, reasons = compat.examine(skeleton)
    facts = facts_of_config(config, dtype_bytes=DTYPES[chosen], device=device or _device())
    return Described(
        name=model,
        config=config,
        facts=facts,
        dtype=chosen,
        parameters=_parameters(config, skeleton),
        loaded=False,
        skeleton=skeleton,
        anatomy=anatomy,
        reasons=reasons,
    )


def _config(name: str) -> tuple[Any, str]:
    """(config, the dtype that the model would be loaded in)."""
    from transformers import AutoConfig

    source = resolve(name)
    if source.kind == "packaged" and not is_ready(name):
        if name not in CONFIGS:
            raise ModelError(f"'{name}' is not downloaded yet: lengthwise download {name}")
        return AutoConfig.for_model(**CONFIGS[name]), PACKAGED[name].dtype
    options: dict[str, Any] = {"local_files_only": True}
    place = source.place
    if source.kind == "gguf":
        try:
            __import__("gguf")
        except ImportError as error:
            raise MissingExtra("gguf", "gguf", "reading a GGUF file") from error
        path = Path(place)
        place, options["gguf_file"] = str(path.parent), path.name
    elif source.kind == "hub":
        options["local_files_only"] = not _on_hub(name)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(place, **options)
    except MemoryError:
        raise
    except Exception as error:  # the readers below raise what they like
        raise ModelError(f"the config of {name} cannot be read: {first_line(error)}") from error
    if source.kind == "packaged":
        return config, PACKAGED[name].dtype
    text = config.get_text_config(decoder=True)
    said = getattr(config, "dtype", None) or getattr(text, "dtype", None)
    dtype = str(said).removeprefix("torch.") if said is not None else ""
    if dtype in DTYPES:
        return config, dtype
    return config, _header_dtype(Path(place)) if source.kind == "folder" else "float32"


def _header_dtype(folder: Path) -> str:
    """The dtype of the first weight in a folder of safetensors, from the file's header alone."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a dict)
                    return HEADER_DTYPES.get(tensors.get_slice(name).get_dtype(), "float32")
        except Exception as error:  # a torn file raises the reader's own error
            raise ModelError(f"{file} cannot be read: {first_line(error)}") from error
    return "float32"


def _skeleton(config: Any) -> tuple[PreTrainedModel | None, list[str]]:
    """The model without memory for its weights, or the reason why there is none."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"), quiet():
            return AutoModelForCausalLM.from_config(config), []
    except Exception as error:  # an architecture that this transformers does not have, or whose sizes do not agree
        return None, [f"{config.model_type} is no language model that transformers can build: {first_line(error)}"]


def _parameters(config: Any, skeleton: PreTrainedModel | None) -> int:
    if skeleton is not None:
        return sum(p.numel() for p in skeleton.parameters())
    from lengthwise.plan.cost import parameters

    return parameters(config)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
