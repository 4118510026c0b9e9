"""Chains from files: rows of `lengthwise think --out`, or plain text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthwise.errors import BadInput
from lengthwise.thinking.answers import answer_in
from lengthwise.thinking.chain import KNOWN_TAGS, Messages
from lengthwise.thinking.many import same_answer

FORM = '{"problem": ..., "chains": [{"thinking": ..., "text": ...}]}'


@dataclass(frozen=True)
class Source:
    """A chain of a file: what was asked (None where the file does not say), thought and written.

    `answer` is the right answer where the file has it, the chain's own otherwise; `right` says whether they are one,
    None where it is not known. `tokens` are thinking tokens, 0 where they were not counted.
    """

    id: str
    messages: Messages | None
    thinking: str
    text: str
    answer: str
    tokens: int = 0
    right: bool | None = None


def read_chains(path: str | Path) -> tuple[list[Source], list[tuple[int, str]]]:
    """The chains of a file, and (line, what is wrong) of the lines that hold none.

    A file whose first sign is '{' has a JSON object in each line, as `lengthwise think --out` writes them. Any other is
    text: its thinking sections, or all of it where it has none. Raises BadInput when it cannot be read or has no chain.
    """
    target = Path(path).expanduser()
    try:
        text = target.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {target}") from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise BadInput(f"{target} is not UTF-8 text") from error
    broken: list[tuple[int, str]] = []
    found: list[Source] = []
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.split("\n"), 1):
            try:
                found += _of_row(json.loads(line), number) if line.strip() else []
            except ValueError as error:
                broken.append((number, f"it is not JSON ({error})"))
            except BadInput as error:
                broken.append((number, str(error)))
    else:
        found = _of_text(text)
    if not found:
        why = f" (line {broken[0][0]}: {broken[0][1]})" if broken else ""
        raise BadInput(f"{target} has no chain: give text, or lines such as {FORM}{why}")
    return found, broken


def _of_row(row: Any, number: int) -> list[Source]:
    """The chains of one row; none of a row that failed."""
    if not isinstance(row, dict):
        raise BadInput(f"it must be {FORM}")
    if row.get("status") == "failed":
        return []
    chains = row.get("chains", [row] if "thinking" in row else None)
    if not isinstance(chains, list) or not all(isinstance(c, dict) for c in chains):
        raise BadInput(f"it has no chains: it must be {FORM}")
    messages = row.get("messages")
    if messages is None and isinstance(row.get("problem"), str):
        messages = [{"role": "user", "content": row["problem"]}]
    right = row.get("expected")
    out = []
    for index, chain in enumerate(chains):
        thinking, text = chain.get("thinking"), chain.get("text", "")
        if not isinstance(thinking, str) or not isinstance(text, str):
            raise BadInput('a chain\'s "thinking" and "text" must be texts')
        name = str(row.get("id", number)) + (f".{index + 1}" if len(chains) > 1 else "")
        own = chain.get("answer") or answer_in(text)
        answer = str(own if right is None else right)
        same = None if right is None else same_answer(str(own), answer)
        out.append(Source(name, messages, thinking, text, answer, int(chain.get("thinking_tokens") or 0), same))
    return out


def _of_text(text: str) -> list[Source]:
    """Every section between known tags with what follows it, or the whole text as one chain."""
    for tags in KNOWN_TAGS:
        closed = re.split(re.escape(tags.close), text)
        if len(closed) == 1:
            continue
        out = []
        for index, part in enumerate(closed[:-1]):
            thinking = part.rpartition(tags.open)[2]
            after = closed[index + 1].partition(tags.open)[0] if index + 2 < len(closed) else closed[-1]
            after = after.strip("\n")
            out.append(Source(str(index + 1), None, thinking, after, answer_in(after)))
        return out
    return [Source("1", None, text, "", "")] if text.strip() else []
