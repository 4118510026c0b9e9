"""Embeddings of texts by a model beside the one that answers: of sentence-transformers, or a plain encoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lengthwise.errors import BadInput, MissingExtra

PURPOSE = "the encoder {} of code-split"


@functools.lru_cache(maxsize=4)
def embed(name: str, texts: tuple[str, ...]) -> Tensor:
    """Embeddings [n, D] float32 of n texts. What is longer than the encoder's window is the mean of its pieces.

    `name` is a folder or a hub id. A folder without modules.json is a plain transformers encoder, whose last hidden
    states are averaged; everything else is loaded by sentence-transformers, with its own pooling. Raises MissingExtra
    without that package, BadInput when there is no such encoder.
    """
    tokenizer, window, encode = _load(name)
    found = []
    for text in texts:
        pieces = cut(text, tokenizer, window)
        weights = torch.tensor([float(len(piece)) for piece in pieces])
        found.append((encode(pieces) * (weights / weights.sum())[:, None]).sum(0))
    return torch.stack(found)


def cut(text: str, tokenizer: Any, window: int) -> list[str]:
    """The text in pieces of at most `window` tokens; nothing is left out."""
    marks = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    starts = [0, *(marks[i][0] for i in range(window, len(marks), window))]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True) if a < b] or [text]


@functools.lru_cache(maxsize=2)
def _load(name: str) -> tuple[Any, int, Callable[[Sequence[str]], Tensor]]:
    """(tokenizer, tokens of text that fit, texts -> [n, D])."""
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise BadInput(f"there is no folder {name} with an encoder")
    plain = local and not (folder / "modules.json").is_file()
    try:
        return _transformers(str(folder)) if plain else _sentences(str(folder) if local else name)
    except (MissingExtra, BadInput):
        raise
    except Exception as error:  # the readers below raise what they like
        line = str(error).strip().split("\n")[0]
        raise BadInput(f"the encoder {name} cannot be loaded: {line or type(error).__name__}") from error


def _transformers(folder: str) -> tuple[Any, int, Callable[[Sequence[str]], Tensor]]:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:  # one by one: no padding to leave out
            ids = tokenizer(text, return_tensors="pt")
            rows.append(model(ids["input_ids"]).last_hidden_state[0].mean(0))
        return torch.stack(rows)

    return tokenizer, _room(tokenizer, getattr(model.config, "max_position_embeddings", None)), encode


def _sentences(name: str) -> tuple[Any, int, Callable[[Sequence[str]], Tensor]]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtra("sentence-transformers", "embed", PURPOSE.format(name)) from error
    model = SentenceTransformer(name, device="cpu")

    def encode(texts: Sequence[str]) -> Tensor:
        found: Tensor = model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return found.float().cpu()

    return model.tokenizer, _room(model.tokenizer, model.max_seq_length), encode


def _room(tokenizer: Any, window: int | None) -> int:
    """Tokens of text that fit beside the special ones; position tables may lose two rows to padding (RoBERTa)."""
    special = 0
    with suppress(AttributeError, NotImplementedError):
        special = tokenizer.num_special_tokens_to_add()
    return max(1, int(min(window or 512, tokenizer.model_max_length)) - special - 2)
