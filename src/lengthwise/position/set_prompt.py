"""Set-based prompting: parallel sub-sequences whose order cannot matter (arXiv 2406.06581)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import EVERYTHING, PLAIN, Frame, Rotation, Visible
from lengthwise.core.seams import Positions, Prompts, Selects, View
from lengthwise.core.spec import Method, Spec, param
from lengthwise.errors import BadInput
from lengthwise.position._cuts import one_block_each

START, SPLIT, END = "<|start_2d|>", "<|split_2d|>", "<|end_2d|>"  # the marks of the released code


@dataclass(frozen=True)
class Shifted(Rotation):
    """Positions are lowered by shifts[i] from borders[i - 1] up to borders[i]."""

    borders: tuple[int, ...] = ()
    shifts: tuple[int, ...] = (0,)

    def of(self, positions: Tensor) -> Tensor:
        """Positions [n] -> positions [n] at which the tokens are rotated."""
        piece = torch.bucketize(positions, torch.tensor(self.borders), right=True)
        return positions - torch.tensor(self.shifts)[piece]


@dataclass(frozen=True)
class SetPrompt(Positions, Selects):
    """The sub-sequences of a set all begin at the position where the set begins, and do not see each other.

    What follows a set sees all of it, and stands behind the longest of its sub-sequences. So the model cannot tell in
    which order they came: the outputs are those of a set. `from_text` makes tokens and parts from a marked prompt;
    `ask` reads several files as a set.
    """

    parts: str | None = param(
        None, "first tokens of the sub-sequences and the end of the set, as 12-20-31; several sets: 12-20-31/40-44-48"
    )

    spec: ClassVar[Spec] = Spec(
        name="set-prompt",
        family="position",
        summary="parallel sub-sequences share their positions and do not see each other, so order cannot matter",
        formula="for x_1..x_k of a set that begins at p: pos(x_j, i) = p + i, x_j does not see x_l; "
        "behind the set: pos = p + max_j |x_j| + i, all are seen",
        seams=("position", "select"),
        papers=(240,),
        source="arXiv 2406.06581, section 3; the released code without padding",
        exact_when="every set has one sub-sequence",
        refuses="no parts; models with sliding-window layers; methods that choose what of the text is read, "
        "or score whole forward passes",
        simplified="all rows of a batch have the same parts, counted from the first token of each row",
        neutral={"parts": "1-5"},
        test="tests/oracle/test_position_set_prompt.py",
    )

    def validate(self) -> None:
        """Ascending edges, two for every set at least."""
        for edges in self.sets:
            self.require(len(edges) >= 2, f"parts={self.parts}: a set has a beginning and an end, as 12-20-31")
        flat = [edge for edges in self.sets for edge in edges]
        ascend = all(a < b for edges in self.sets for a, b in pairwise(edges)) and flat == sorted(flat)
        self.require(ascend, f"parts={self.parts}: token positions must ascend")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Parts, counted over the text as it is."""
        reasons = one_block_each(self, others)
        if self.parts is None:
            reasons.append(
                "say where sub-sequences lie, as parts=12-20-31 (lengthwise ask makes one of each of several files, "
                "from_text of lengthwise.position.set_prompt one of each marked text)"
            )
        parallel = any(len(edges) > 2 for edges in self.sets)
        if model is not None and parallel and "sliding" in model.layer_kinds:
            reasons.append(f"{model.model_type} has sliding-window layers, which read the sets in their written order")
        for other in others:
            if isinstance(other, Prompts):
                reasons.append(f"set-prompt counts the tokens of the whole text, of which {other.spec.name} leaves out")
        return reasons

    @property
    def sets(self) -> tuple[tuple[int, ...], ...]:
        """The edges of the sub-sequences of every set, in tokens."""
        try:
            return tuple(tuple(int(edge) for edge in s.split("-")) for s in (self.parts or "").split("/") if self.parts)
        except ValueError:
            self.require(False, f"parts={self.parts} is not like 12-20-31, or 12-20-31/40-44-48")
            raise

    def over(self, edges: Sequence[int]) -> SetPrompt:
        """The same with one set, whose sub-sequences begin and end at the tokens `edges`."""
        return replace(self, parts="-".join(map(str, edges)))

    def rotation(self) -> Shifted:
        """Where tokens stand."""
        borders: list[int] = []
        shifts, before = [0], 0
        for edges in self.sets:
            shifts += [before + start - edges[0] for start in edges[:-1]]
            before += edges[-1] - edges[0] - max(b - a for a, b in pairwise(edges))
            borders += edges
            shifts.append(before)
        return Shifted(borders=tuple(borders), shifts=tuple(shifts))

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        """One frame, in which both stand where the sets put them."""
        rotation = self.rotation()
        return (Frame(query=rotation.of, key=rotation),) if self.parts else PLAIN

    def cuts(self, facts: ModelFacts, start: int, stop: int) -> Sequence[int]:
        """Where sub-sequences begin and end."""
        return [edge for edges in self.sets for edge in edges if start < edge < stop]

    def visible(self, view: View) -> Visible:
        """Everything but the other sub-sequences of the set that the block is part of."""
        for edges in self.sets:
            for a, b in pairwise(edges):
                if edges[0] < a <= view.start < b:
                    held = view.kv.positions
                    return Visible(slots=((held < edges[0]) | (held >= a)).nonzero()[:, 0])
        return EVERYTHING


def from_text(prompt: str, tokenizer: Any) -> tuple[Tensor, SetPrompt]:
    """Token ids [1, n] of a marked prompt, and the method that reads its marked sub-sequences as sets.

    A set is written `<|start_2d|>one<|split_2d|>two<|end_2d|>`, as in the released code; a prompt may hold several.
    Every part is tokenized by itself, so that its tokens do not depend on its neighbours, and the marks are left out.
    Raises BadInput when marks do not match, a sub-sequence is empty or there is no set.
    """
    ids: list[int] = []
    sets: list[str] = []
    for count, piece in enumerate(prompt.split(START)):
        inside, end, text = piece.partition(END) if count else ("", END, piece)
        if not end or any(mark in text for mark in (END, SPLIT)):
            raise BadInput(f"every {START} needs one {END} behind it, with {SPLIT} between its parts only")
        if count:
            parts = [_tokens(tokenizer, part) for part in inside.split(SPLIT)]
            if not all(parts):
                raise BadInput(f"a sub-sequence between {START} and {END} is empty")
            sets.append("-".join(str(n) for n in itertools.accumulate(map(len, parts), initial=len(ids))))
            ids += itertools.chain(*parts)
        ids += _tokens(tokenizer, text, first=not count)
    if not sets:
        raise BadInput(f"the prompt marks no set: write {START}one{SPLIT}two{END}")
    return torch.tensor([ids]), SetPrompt(parts="/".join(sets))


def _tokens(tokenizer: Any, text: str, first: bool = False) -> list[int]:
    return tokenizer(text, add_special_tokens=first)["input_ids"] if text or first else []
