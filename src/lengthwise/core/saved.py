"""Sessions saved, loaded and forked: what every layer holds, in one safetensors file, replaced whole or not at all.

The header's metadata lists every section with its checksum, and is sealed by a digest of its own. A file is written
beside the old one, layer by layer, reaches the disk, and only then takes its name; so after a crash at any point there
is the old state or the new one, and what is torn or altered is refused. Saves are not incremental: evictions, moves to
the cold part and a method's own state change earlier sections under most stacks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lengthwise.core.session import Session
from lengthwise.errors import SessionError

if TYPE_CHECKING:
    from lengthwise.core.attach import Run

VERSION = "2"
_DTYPES = {  # safetensors' names
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
    torch.uint8: "U8", torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL",
}  # fmt: skip
_AGAIN = "delete it to read the text again"


def save(session: Session, path: Path, about: dict[str, Any]) -> None:
    """Write `session` to `path`; `about` is what `load` will insist on (model, stack, text).

    Raises SessionError, and leaves what was at `path` as it was, when the file cannot be written whole.
    """
    session.check_whole()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        try:
            with partial.open("wb") as file:
                _write(file, session, about)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        kept = "; what had been saved before is as it was" if path.exists() else ""
        raise SessionError(
            f"{path} could not be written ({error.strerror}): free some space or save elsewhere{kept}"
        ) from error


def load(run: Run, path: Path, about: dict[str, Any], expected: int = 0) -> Session:
    """Read a session of the same model, stack and text back. Raises SessionError when it is of another or damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("version") != VERSION:
                raise SessionError(f"{path} was written by another version of Lengthwise: {_AGAIN}")
            if header.get("seal") != _seal(header):
                raise SessionError(f"{path} is damaged (its header): {_AGAIN}")
            found = json.loads(header["about"])
            other = [key for key in about if found.get(key) != about[key]]
            if other:
                raise SessionError(f"{path} is of another {' and '.join(other)}: use another folder, or delete it")
            return _revive(run, _Sections(file, header, path), json.loads(header["session"]), expected)
    except (SafetensorError, OSError) as error:
        raise SessionError(f"{path} is not a readable session ({error}): {_AGAIN}") from error


def fork(session: Session, expected: int = 0) -> Session:
    """A copy of `session` that goes its own way."""
    session.check_whole()
    other, small = _empty(session.run, _meta(session), expected), _small(session)
    for mine, its in zip(session.layers, other.layers, strict=True):
        for kv, copy in zip(mine.rows, its.rows, strict=True):
            copy.restore(kv.state())
    _adopt(other, {name: tensor.clone() for name, tensor in small.items()})
    return other


class _Sections:
    """The tensors of an open file by name, each checked as it is read."""

    def __init__(self, file: Any, header: dict[str, str], path: Path) -> None:
        self._file, self._path = file, path
        self._sums: dict[str, list[Any]] = {name: rest for name, *rest in json.loads(header["sections"])}

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Those whose name starts with `prefix`, without it. Raises SessionError for a section that was altered."""
        return {name.removeprefix(prefix): self._read(name) for name in self._sums if name.startswith(prefix)}

    def _read(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        if [*_described(tensor), f"{zlib.crc32(_bytes(tensor)):08x}"] != self._sums[name]:
            raise SessionError(f"{self._path} is damaged (section {name}): {_AGAIN}")
        return tensor


def _write(file: BinaryIO, session: Session, about: dict[str, Any]) -> None:
    """The header with empty checksums, to make room for it; the sections; the header as it must be."""
    outline = [(name, *_described(tensor), tensor.nbytes) for name, tensor in _sections(session, outline=True)]
    meta = {"version": VERSION, "about": json.dumps(about, sort_keys=True), "session": json.dumps(_meta(session))}

    def header(sums: list[str]) -> bytes:
        sections = [[name, dtype, shape, s] for (name, dtype, shape, _), s in zip(outline, sums, strict=True)]
        strings = {**meta, "sections": json.dumps(sections)}
        entries: dict[str, Any] = {"__metadata__": {**strings, "seal": _seal(strings)}}
        at = 0
        for name, dtype, shape, size in outline:
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)  # safetensors wants its data aligned
        return len(text).to_bytes(8, "little") + text

    file.write(header(["0" * 8] * len(outline)))
    sums = []
    for (name, *_), (also, tensor) in zip(outline, _sections(session, outline=False), strict=True):
        assert name == also
        data = _bytes(tensor)
        sums.append(f"{zlib.crc32(data):08x}")
        file.write(data)
    file.seek(0)
    file.write(header(sums))


def _sections(session: Session, *, outline: bool) -> Iterator[tuple[str, Tensor]]:
    """Everything that a session consists of, one layer at a time in memory, or only its outline."""
    for slot in session.layers:
        for row, kv in enumerate(slot.rows):
            for name, tensor in (kv.outline() if outline else kv.state()).items():
                yield f"kv.{slot.index}.{row}.{name}", tensor
    yield from _small(session).items()


def _small(session: Session) -> dict[str, Tensor]:
    """What a session holds beside keys and values."""
    tensors: dict[str, Tensor] = {}
    for (layer, row, method), state in session.states.items():
        for key, value in state.items():
            kind = "tensor" if isinstance(value, Tensor) else "int"
            tensors[f"state.{layer}.{row}.{method}.{key}.{kind}"] = torch.as_tensor(value)
    memory = session.surprise
    for row, values in enumerate(memory.values):
        tensors[f"surprise.{row}"], tensors[f"turns.{row}"] = values, memory.turns[row]
    if memory.last_logits is not None:
        tensors["last_logits"] = memory.last_logits
    return tensors


def _meta(session: Session) -> dict[str, Any]:
    seen, decoded = session.get_seq_length(), session.last_was_decode
    return {"pads": session.pads, "turn": session.turn, "seen": seen, "decoded": decoded}


def _revive(run: Run, sections: _Sections, meta: dict[str, Any], expected: int) -> Session:
    session = _empty(run, meta, expected)
    for slot in session.layers:
        for row, kv in enumerate(slot.rows):
            kv.restore(sections.under(f"kv.{slot.index}.{row}."))
    small = {f"{kind}{name}": t.clone() for kind in _SMALL for name, t in sections.under(kind).items()}
    _adopt(session, small)
    return session


_SMALL = ("state.", "surprise.", "turns.", "last_logits")


def _empty(run: Run, meta: dict[str, Any], expected: int) -> Session:
    """A session that has read what `meta` says, with empty lanes."""
    session = run.cache(expected)
    session.pads, session.turn, session.last_was_decode = meta["pads"], meta["turn"], meta["decoded"]
    rows = len(meta["pads"] or [])
    device = next(run.model.parameters()).device
    like = torch.empty(rows, run.facts.kv_heads, 0, run.facts.head_dim, dtype=run.model.dtype, device=device)
    for slot in session.layers:
        slot.seen = meta["seen"]
        slot.lazy_initialization(like, like)
    session.end = meta["seen"]
    return session


def _adopt(session: Session, small: dict[str, Tensor]) -> None:
    """Put what `_small` gave into another session."""
    for name, tensor in small.items():
        if name.startswith("state."):
            _, layer, row, method, key, kind = name.split(".")
            session.states[int(layer), int(row), method][key] = tensor if kind == "tensor" else int(tensor)
    memory, rows = session.surprise, range(len(session.pads or []))
    memory.values = [small[f"surprise.{row}"] for row in rows if f"surprise.{row}" in small]
    memory.turns = [small[f"turns.{row}"] for row in rows if f"turns.{row}" in small]
    memory.last_logits = small.get("last_logits")


def _described(tensor: Tensor) -> tuple[str, list[int]]:
    return _DTYPES[tensor.dtype], list(tensor.shape)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _seal(header: dict[str, str]) -> str:
    """A digest of the metadata but for the seal itself."""
    rest = {key: value for key, value in header.items() if key != "seal"}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16).hexdigest()


def _sweep(path: Path) -> None:
    """Remove what processes that were killed while they saved to `path` have left."""
    for left in path.parent.glob(f"{path.name}.*.partial"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and int(pid) != os.getpid():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                left.unlink(missing_ok=True)
            except PermissionError:
                continue  # another user's, alive


def _sync_folder(folder: Path) -> None:
    """Have the new name reach the disk too, where folders can be opened and synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
