"""Sessions saved, loaded and forked: what every layer holds, in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lengthwise.core.session import Session
from lengthwise.errors import SessionError

if TYPE_CHECKING:
    from lengthwise.core.attach import Run

VERSION = "1"


def save(session: Session, path: Path, about: dict[str, Any]) -> None:
    """Write `session` to `path`; `about` is what `load` will insist on (model, stack, text)."""
    tensors, meta = _snapshot(session)
    header = {"version": VERSION, "about": json.dumps(about, sort_keys=True), "session": json.dumps(meta)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, str(partial), metadata=header)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load(run: Run, path: Path, about: dict[str, Any], expected: int = 0) -> Session:
    """Read a session of the same model, stack and text back. Raises SessionError when it is of another or damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise SessionError(f"{path} is not a readable session ({error}): delete it to read the text again") from error
    if header.get("version") != VERSION:
        raise SessionError(f"{path} was written by another version of Lengthwise: delete it to read the text again")
    found = json.loads(header["about"])
    other = [key for key in about if found.get(key) != about[key]]
    if other:
        raise SessionError(f"{path} is of another {' and '.join(other)}: use another folder, or delete it")
    return _revive(run, tensors, json.loads(header["session"]), expected)


def fork(session: Session, expected: int = 0) -> Session:
    """A copy of `session` that goes its own way."""
    tensors, meta = _snapshot(session)
    return _revive(session.run, {k: t.clone() for k, t in tensors.items()}, meta, expected)


def _snapshot(session: Session) -> tuple[dict[str, Tensor], dict[str, Any]]:
    session.check_whole()
    tensors: dict[str, Tensor] = {}
    for slot in session.layers:
        for row, kv in enumerate(slot.rows):
            tensors.update({f"kv.{slot.index}.{row}.{name}": t for name, t in kv.state().items()})
    for (layer, row, method), state in session.states.items():
        for key, value in state.items():
            kind = "tensor" if isinstance(value, Tensor) else "int"
            tensors[f"state.{layer}.{row}.{method}.{key}.{kind}"] = torch.as_tensor(value)
    memory = session.surprise
    for row, values in enumerate(memory.values):
        tensors[f"surprise.{row}"], tensors[f"turns.{row}"] = values, memory.turns[row]
    if memory.last_logits is not None:
        tensors["last_logits"] = memory.last_logits
    seen = session.get_seq_length()
    return tensors, {"pads": session.pads, "turn": session.turn, "seen": seen, "decoded": session.last_was_decode}


def _revive(run: Run, tensors: dict[str, Tensor], meta: dict[str, Any], expected: int) -> Session:
    session = run.cache(expected)
    session.pads, session.turn, session.last_was_decode = meta["pads"], meta["turn"], meta["decoded"]
    rows = len(meta["pads"] or [])
    device = next(run.model.parameters()).device
    like = torch.empty(rows, run.facts.kv_heads, 0, run.facts.head_dim, dtype=run.model.dtype, device=device)
    for slot in session.layers:
        slot.seen = meta["seen"]
        slot.lazy_initialization(like, like)
        for row, kv in enumerate(slot.rows):
            prefix = f"kv.{slot.index}.{row}."
            kv.restore({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
    for name, tensor in tensors.items():
        if name.startswith("state."):
            _, layer, row_text, method, key, kind = name.split(".")
            session.states[int(layer), int(row_text), method][key] = tensor if kind == "tensor" else int(tensor)
    memory = session.surprise
    memory.values = [tensors[f"surprise.{row}"] for row in range(rows) if f"surprise.{row}" in tensors]
    memory.turns = [tensors[f"turns.{row}"] for row in range(rows) if f"turns.{row}" in tensors]
    memory.last_logits = tensors.get("last_logits")
    session.end = meta["seen"]
    return session
