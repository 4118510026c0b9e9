"""`lengthwise edit`: change a text that was read and saved, and repair its cache instead of reading it again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthwise.errors import BadInput, SessionError

if TYPE_CHECKING:
    from torch import Tensor

    from lengthwise.core.attach import Run
    from lengthwise.core.session import Session

EPILOG = """Examples:

  lengthwise ask main.py -q "What does it do?" --stack dense --save reading

  lengthwise edit reading main.py --replace "timeout=30" --with "timeout=60" --check

  lengthwise edit reading main.py --at 120 --delete 8 --insert "retries"
"""
_WRITTEN = 32  # tokens over which --check compares


def edit(
    session: Annotated[str, typer.Argument(metavar="DIR", help="The folder that was given to ask --save.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="The text that was read; the change is written to it.")],
    replace: Annotated[str | None, typer.Option("--replace", metavar="OLD", help="Text that occurs once.")] = None,
    new: Annotated[str, typer.Option("--with", metavar="NEW", help="What takes its place.")] = "",
    at: Annotated[int | None, typer.Option("--at", min=0, help="Or: the place, in characters.")] = None,
    delete: Annotated[int, typer.Option("--delete", min=0, help="Characters to delete there.")] = 0,
    insert: Annotated[str, typer.Option("--insert", metavar="TEXT", help="Text to insert there.")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="The model that read it.")] = "smollm2",
    output: Annotated[str | None, typer.Option("--output", "-o", help="Write the text here, not to FILE.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Read it all again too, and compare what is written.")] = False,
    question: Annotated[str, typer.Option("--question", "-q", help="Asked by --check.")] = "What is this text about?",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")] = False,
) -> None:
    """Edit a text that was read with --save: only what changed is read, what follows is moved to its new place."""
    from lengthwise.cli._output import print_json, seconds
    from lengthwise.documents import read_documents

    before = read_documents([file])[0].text
    start, stop, text = place(before, replace, new, at, delete, insert)
    target = Path(output or file).expanduser()
    if output is None and target.read_bytes() != before.encode():
        raise BadInput(
            f"{file} is not plain UTF-8 text, so it cannot be changed in place: name another file by --output"
        )
    after = before[:start] + text + before[stop:]
    if not after.strip():
        raise BadInput("nothing would be left of the text")
    found = _repair(Path(session) / "session.safetensors", before, after, model, question if check else None)
    target.write_bytes(after.encode())
    found["file"] = str(target)
    if as_json:
        print_json(found)
        return
    print(
        f"{found['dropped']:,} tokens dropped, {found['read']:,} read, {found['moved']:,} moved; "
        f"{found['tokens']:,} in all, in {seconds(found['seconds'])}"
    )
    print(f"computation: {1 - found['flops'] / found['flops_again']:.1%} less than reading it again")
    if check:
        print(
            f"check: reading again took {seconds(found['seconds_again'])}; the next token agrees in "
            f"{found['agreed']} of {found['compared']} places, mean KL divergence {found['divergence']:.3g} nats"
        )
    print(f"{target} and {session} hold the edited text")


def place(text: str, old: str | None, new: str, at: int | None, delete: int, insert: str) -> tuple[int, int, str]:
    """(start, end, replacement) of one edit, in characters. Raises BadInput when it cannot be made as it is asked."""
    if (old is None) == (at is None):
        raise BadInput("say what to change: --replace OLD --with NEW, or --at POSITION with --delete or --insert")
    if old is not None:
        if delete or insert:
            raise BadInput("--delete and --insert go with --at, not with --replace")
        count = text.count(old) if old else 0
        if count != 1:
            where = f"occurs {count:,} times" if count else "does not occur"
            raise BadInput(f"the text to replace {where}: give more of it, so that it fits once, or --at POSITION")
        start = text.index(old)
        return start, start + len(old), new
    assert at is not None
    if new or not (delete or insert):
        raise BadInput("--at goes with --delete N, --insert TEXT or both")
    if at + delete > len(text):
        raise BadInput(f"characters {at:,} to {at + delete:,} are outside of the text, which has {len(text):,}")
    return at, at + delete, insert


def _repair(path: Path, before: str, after: str, model: str, question: str | None) -> dict[str, Any]:
    """Load, edit and save the session; what it took and, with a question, how it compares, as the documented JSON."""
    import time

    import torch

    from lengthwise import models
    from lengthwise._reader import frame
    from lengthwise.core import edit as editing
    from lengthwise.core import saved
    from lengthwise.core.stack import stack
    from lengthwise.documents import encode
    from lengthwise.models._gguf import quiet

    if not path.is_file():
        raise SessionError(f"{path.parent} holds no reading of a whole text: make one with lengthwise ask --save")
    methods = stack(_stack_of(path))
    loaded, tokenizer = models.load(model)
    prompt = frame(question or "?", tokenizer)
    old, new = (torch.cat([prompt.head, encode(text, tokenizer)[0]]) for text in (before, after))
    about = {"model": models.fingerprint(loaded), "stack": str(methods)}
    start, stop, end = editing.span(old, new)
    with quiet(), methods.on(loaded) as run:
        if reasons := editing.refusals(run):
            raise SessionError(f"a reading under '{run.stack}' cannot be edited: {'; '.join(reasons)}")
        cache = saved.load(run, path, {**about, "text": _digest(old)}, len(new))
        begun = time.perf_counter()
        done = editing.replace(cache, old, start, stop, new[start:end])
        took = time.perf_counter() - begun
        ledger = run.ledger
        facts, size = run.facts, _parameters(run)
        pairs = facts.full_layers * facts.heads * (len(new) * (len(new) + 1) // 2)
        turned = 6 * done.moved * facts.full_layers * facts.kv_heads * facts.head_dim
        found: dict[str, Any] = {
            "version": 1,
            "dropped": done.dropped,
            "read": done.read,
            "moved": done.moved,
            "tokens": len(new),
            "seconds": round(took, 3),
            "flops": 2 * size * done.read + 4 * facts.head_dim * ledger.pairs + turned,
            "flops_again": 2 * size * len(new) + 4 * facts.head_dim * pairs,
        }
        saved.save(cache, path, {**about, "text": _digest(new)})
        if question is not None:
            found |= _compare(run, cache, new, prompt.after)
    return found


def _compare(run: Run, cache: Session, ids: Tensor, after: Tensor) -> dict[str, Any]:
    """Read the text again, write to a question, and see where the edited cache would have written the same."""
    import time

    import torch

    fresh = run.cache(len(ids) + len(after) + _WRITTEN)
    begun = time.perf_counter()
    for _ in run.feed(ids[None], fresh):
        pass
    took = time.perf_counter() - begun
    agreed, divergence, part = 0, 0.0, after[None].to(run.model.device)
    with torch.no_grad():
        for _ in range(_WRITTEN):
            want, got = (
                torch.log_softmax(run.model(part, past_key_values=c).logits[0, -1].float(), -1) for c in (fresh, cache)
            )
            agreed += int(want.argmax() == got.argmax())
            divergence += float((want.exp() * (want - got)).sum()) / _WRITTEN
            part = want.argmax()[None, None]
    return {
        "seconds_again": round(took, 3),
        "compared": _WRITTEN,
        "agreed": agreed,
        "divergence": divergence,
    }


def _stack_of(path: Path) -> str:
    """The stack under which a session was read. Raises SessionError when the file does not say."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return str(json.loads((file.metadata() or {})["about"])["stack"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise SessionError(f"{path} is not a readable session ({error}): delete it to read the text again") from error


def _digest(ids: Tensor) -> str:
    """What a saved reading says about its text."""
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:32]


def _parameters(run: Run) -> int:
    """Weights that every token read goes through: all of the decoder but its embeddings."""
    decoder = run.anatomy.decoder
    table = run.model.get_input_embeddings().weight
    return sum(p.numel() for p in decoder.parameters() if p is not table)
