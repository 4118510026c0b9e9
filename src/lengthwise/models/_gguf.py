"""Reads a GGUF file as an ordinary dense model with an ordinary fast tokenizer."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lengthwise.errors import MissingExtra
from lengthwise.models._errors import ModelError, first_line

# Vocabularies whose merges were learned with every digit on its own. transformers splits these as plain GPT-2 text
# does, which moves the space before a number: "    2" becomes other tokens than the model was trained on.
SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the progress bars and the advice of transformers; both are as before afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_gguf(path: Path) -> None:
    """Raise ModelError unless `path` starts as a GGUF file does."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file (it does not start with 'GGUF')")


def load_gguf(path: Path, dtype: Any) -> tuple[Any, Any]:
    """(model, tokenizer) of a GGUF file, every weight unpacked to `dtype` (a torch dtype or "auto").

    The model is dense and can be saved. Raises ModelError for a corrupt file or an architecture that is not
    supported, MissingExtra when gguf or accelerate is not installed.
    """
    for package in ("gguf", "accelerate"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtra(package, "gguf", "reading a GGUF file") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_gguf(path)
    options: dict[str, Any] = {}
    try:
        from transformers.utils.quantization_config import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    except ImportError:  # older transformers always unpack
        pass
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the converter has a progress bar of its own
            pre_type = _pre_tokenizer(path)
            model, info = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, output_loading_info=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except MemoryError:
        raise
    except Exception as error:  # the readers below raise what they like on a torn file
        raise ModelError(f"the GGUF file {path} cannot be read: {first_line(error)}") from error
    if info["missing_keys"]:
        raise ModelError(f"the GGUF file {path} lacks weights: {', '.join(sorted(info['missing_keys'])[:3])}")
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model.config).pop("_model_name_or_path", None)
    model.hf_quantizer = None
    if pre_type in SINGLE_DIGITS:
        split_digits(tokenizer)
    return model, tokenizer


def split_digits(tokenizer: Any) -> None:
    """Make a byte-level fast tokenizer put every digit on its own before anything else."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _pre_tokenizer(path: Path) -> str:
    """The kind of pre-tokenizer that the file names, or ''."""
    import gguf

    field = gguf.GGUFReader(path).get_field("tokenizer.ggml.pre")
    return str(field.contents()) if field is not None else ""
