"""SEA, code search in long code: split by syntax, encode the blocks, aggregate them (arXiv 2208.11271)."""

from __future__ import annotations

import ast
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lengthwise.core.seams import Choice, Look, Prompts
from lengthwise.core.spec import Spec, param
from lengthwise.errors import BadInput
from lengthwise.prompt._encoder import embed

SHARP = 10.0  # of the softmax over blocks: cosines lie too close together to choose by themselves
Span = tuple[int, int]  # lines [first, last), or characters, or tokens [start, end)


@dataclass(frozen=True)
class CodeSplit(Prompts):
    """Cuts Python code into functions and these into blocks along the syntax tree; ranks functions by their blocks.

        score = cos(q, e),   e = max_i e_i, or mean_i e_i, or (sum_i a_i e_i + mean_i e_i) / 2

    with e_i of block i, q of the question and a = softmax_i(10 cos(q, e_i)). The last, pool=attention, is the paper's
    with the question for its trained vector; with words as the encoder, pool=max finds more. A piece is a statement, or
    the head of a compound one; a block is `window` pieces, and one begins every `step`. The best functions that fit the
    window go before the model, in order.
    encoder=words: the words of names, comments and strings (get_userName is get, user, name), each weighted by how few
    blocks hold it. encoder=model: the mean of the model's own last hidden states, which reads every block. Any other
    encoder is a folder or a hub id: the paper's way, with an embedding model that was trained for it.
    """

    window: int = param(32, "pieces of a block")
    step: int = param(16, "pieces from the beginning of one block to that of the next")
    top: int = param(8, "functions that are kept, as far as they fit the window")
    encoder: str = param(
        "words",
        "what makes a block a vector: words (weighted ones), model (its mean hidden states), or an embedding model: a "
        "folder (./name) or a hub id (org/name)",
    )
    pool: Literal["max", "attention", "mean"] = param("max", "how the blocks of a function become one")

    spec: ClassVar[Spec] = Spec(
        name="code-split",
        family="prompt",
        summary="the Python functions that match the question, ranked by blocks cut along the syntax tree",
        formula="score = cos(q, e); e = max_i e_i, mean_i e_i, or "
        "(sum_i a_i e_i + mean_i e_i) / 2 with a = softmax_i(10 cos(q, e_i))",
        seams=("prompt",),
        papers=(29,),
        source="arXiv 2208.11271, sections 3.1 to 3.3; window and step of its best setting",
        exact_when="the text and the question fit the window",
        refuses="an encoder that is not there",
        simplified="Python only; the paper's attention over blocks is trained: here pool=attention has the question in "
        "place of the trained vector; by default the encoder is weighted words; what an embedding model reads is not "
        "in the ledger; text that is no Python is cut at blank lines",
        bounded=True,
        neutral={},
        test="tests/oracle/test_code_split.py",
    )

    def validate(self) -> None:
        """Blocks that move forward, leave nothing out, and something is kept."""
        self.require(1 <= self.step <= self.window, "step must be at least 1 and at most window")
        self.require(self.top >= 1, "top must be at least 1")
        known = self.encoder in ("words", "model") or "/" in self.encoder
        self.require(known, f"encoder={self.encoder} is not words, model, a folder (./name) or a hub id (org/name)")

    def choose(self, length: int, limit: int, look: Look) -> Choice:
        """The `top` functions of highest score, as far as they fit; everything when it fits."""
        if length <= limit:
            return Choice(((0, length),))
        units = [(unit, blocks(pieces, self.window, self.step)) for unit, pieces in split(look.text)]
        encode = {"words": self._by_words, "model": self._by_model}.get(self.encoder, self._by_encoder)
        scores = encode(look, [inner for _, inner in units])
        found = [(*tokens_of(*unit, look.offsets), score) for (unit, _), score in zip(units, scores, strict=True)]
        kept: list[Span] = []
        room = limit
        for a, b, _ in sorted(found, key=lambda f: -f[2]):
            if b - a <= room and len(kept) < self.top:
                kept.append((a, b))
                room -= b - a
        if not kept:
            raise BadInput(f"code-split: no function fits {limit:,} tokens; xl3m cuts anywhere")
        return Choice(tuple(sorted(kept)), tuple(found))

    def passes(self, length: int, limit: int) -> list[tuple[int, int]] | None:
        """Blocks read one by one when the model encodes them, and what is chosen."""
        last = (min(length, limit), 1)
        return [last] if length <= limit or self.encoder != "model" else [(64, math.ceil(length / 32)), last]

    def _by_words(self, look: Look, units: list[list[Span]]) -> list[float]:
        counts = [[Counter(words(look.text[a:b])) for a, b in unit] for unit in units]
        total = sum(map(len, counts))
        holding = Counter(w for unit in counts for block in unit for w in block)
        rare = {w: math.log(1 + total / n) for w, n in holding.items()}
        index = {w: i for i, w in enumerate(rare)}
        asked = Counter(w for w in words(look.question) if w in index)
        if not asked:
            return [0.0] * len(units)

        def vector(of: Counter[str]) -> Tensor:
            out = torch.zeros(len(index))
            for word, count in of.items():
                out[index[word]] = (1 + math.log(count)) * rare[word]
            return out

        return [similarity(vector(asked), torch.stack([vector(b) for b in unit]), self.pool) for unit in counts]

    def _by_model(self, look: Look, units: list[list[Span]]) -> list[float]:
        question = look.embed_question()
        found = [torch.stack([look.embed(*tokens_of(a, b, look.offsets)) for a, b in unit]) for unit in units]
        middle = torch.cat(found).mean(0)  # what all hidden states share says nothing
        return [similarity(question - middle, blocks - middle, self.pool) for blocks in found]

    def _by_encoder(self, look: Look, units: list[list[Span]]) -> list[float]:
        every = embed(self.encoder, tuple(look.text[a:b] for unit in units for a, b in unit))
        question = embed(self.encoder, (look.question,))[0]
        found = every.split([len(unit) for unit in units])
        return [similarity(question, blocks, self.pool) for blocks in found]


def similarity(question: Tensor, found: Tensor, pool: str) -> float:
    """cos of a question [D] and of what blocks [n, D] become together."""
    unit = torch.nn.functional.normalize
    q, e = unit(question, dim=0), unit(found, dim=1)
    if pool == "max":
        together = e.amax(0)
    elif pool == "mean":
        together = e.mean(0)
    else:
        together = (torch.softmax(SHARP * (e @ q), 0) @ e + e.mean(0)) / 2
    return float(unit(together, dim=0) @ q)


def split(text: str) -> list[tuple[Span, list[Span]]]:
    """Characters [start, end) of every function and of what lies between them, each with those of its pieces.

    Together they cover the text. Text that is no Python is cut at blank lines and has lines as pieces.
    """
    starts = [0, *(m.end() for m in re.finditer("\n", text))]
    lines = len(starts)
    try:
        tree = ast.parse(text)
        heads = sorted({0, *_unit_lines(tree)})
        cuts = sorted({0, *_piece_lines(tree), *heads})
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        rows = text.split("\n")
        heads = [0, *(i for i in range(1, lines) if rows[i].strip() and not rows[i - 1].strip())]
        cuts = list(range(lines))
    ends = [*starts, len(text)]
    out = []
    for first, last in pairwise([*heads, lines]):
        edges = [c for c in cuts if first <= c < last] + [last]
        pieces = [(starts[a], ends[b] if b < lines else len(text)) for a, b in pairwise(edges)]
        if text[pieces[0][0] : pieces[-1][1]].strip():
            out.append(((pieces[0][0], pieces[-1][1]), pieces))
    return out


def _unit_lines(tree: ast.AST) -> Iterator[int]:
    """The lines, from 0, on which functions, classes and what follows them begin; methods are functions."""
    body = getattr(tree, "body", [])
    for before, node in zip([None, *body], body, strict=False):
        unit = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if unit or isinstance(before, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield _first_line(node)
        if isinstance(node, ast.ClassDef):
            yield from _unit_lines(node)


def _piece_lines(tree: ast.AST) -> Iterator[int]:
    """The lines, from 0, on which statements begin, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield _first_line(node)


def _first_line(node: ast.AST) -> int:
    decorators: Sequence[ast.expr] = getattr(node, "decorator_list", ())
    line: int = (node.pattern if isinstance(node, ast.match_case) else node).lineno  # type: ignore[attr-defined]
    return min([line, *(d.lineno for d in decorators)]) - 1


def blocks(pieces: list[Span], window: int, step: int) -> list[Span]:
    """Windows of `window` neighbouring pieces, one every `step`; the last one ends with the pieces."""
    last = max(0, len(pieces) - window)
    return [(pieces[i][0], pieces[min(i + window, len(pieces)) - 1][1]) for i in [*range(0, last, step), last]]


def words(text: str) -> list[str]:
    """The words of code or prose in lower case: names are taken apart at underscores, capitals and digits."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text)
    return [re.sub(r"(?<=[a-z]{3})(ies|ed|ing|es|s)$", "", p.lower()) for p in parts if len(p) > 1]


def tokens_of(start: int, end: int, offsets: Sequence[Span]) -> Span:
    """The tokens [first, last) that end within characters [start, end), since blanks stand at the front of tokens."""
    return bisect_right(offsets, start, key=_end), bisect_right(offsets, end, key=_end)


def _end(span: Span) -> int:
    return span[1]
