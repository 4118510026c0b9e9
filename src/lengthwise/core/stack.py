"""A stack: methods that claim seams together. Who owns what, why it would be refused, and how it is put on a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lengthwise.core.facts import ModelFacts
from lengthwise.core.grammar import format_stack, parse
from lengthwise.core.spec import SEAMS, SHARED_SEAMS, Method
from lengthwise.errors import StackRefused

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lengthwise.core.attach import Run


def refusals(methods: Sequence[Method], model: ModelFacts | None = None) -> list[str]:
    """Every reason why `methods` cannot run together (and, if given, on `model`); [] means they can."""
    reasons = []
    names = [m.spec.name for m in methods]
    reasons += [
        f"'{name}' is given {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    for seam in SEAMS:
        owners = [m.spec.name for m in methods if seam in m.spec.seams]
        if seam not in SHARED_SEAMS and len(set(owners)) > 1:
            reasons.append(f"{' and '.join(dict.fromkeys(owners))} both own the seam '{seam}' ({SEAMS[seam]})")
    acting = [name for m, name in zip(methods, names, strict=True) if set(m.spec.seams) - {"prompt"}]
    if model is not None and model.layer_kinds and not model.full_layers and acting:
        reasons.append(f"{model.model_type} has no full-attention layer for {' and '.join(acting)} to act on")
    for method in methods:
        others = [m for m in methods if m is not method]
        reasons += [f"{method.spec.name}: {reason}" for reason in method.check(model, others)]
    return reasons


class Stack:
    """An immutable sum of methods. `str(stack)` is its canonical text, which `stack()` reads back."""

    def __init__(self, methods: Sequence[Method]) -> None:
        self.methods = tuple(methods)
        reasons = refusals(self.methods)
        if reasons:
            raise StackRefused(str(self), reasons)

    def __str__(self) -> str:
        return format_stack(list(self.methods))

    def __repr__(self) -> str:
        return f"Stack({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stack) and self.methods == other.methods

    def __hash__(self) -> int:
        return hash(self.methods)

    def tokens_held(self, length: int, model: ModelFacts) -> int:
        """Upper bound on the tokens a full layer holds after `length` tokens."""
        return min((m.tokens_held(length, model) for m in self.methods), default=length)

    def on(self, model: PreTrainedModel, *, threads: tuple[int, int] | None = None) -> Run:
        """Attach to `model`: a context manager that leaves the model as it found it. Raises StackRefused.

        `threads`: those that torch uses for (prefill, decode) while attached; None: as they are set.
        """
        from lengthwise.core.attach import Run

        return Run(self, model, threads)


def stack(text: str | Method | Sequence[Method] | Stack) -> Stack:
    """A stack from the grammar (`"lm-infinite + int8"`), from one method, or from several.

    Raises UnknownMethod, BadParameter, or StackRefused with all reasons.
    """
    if isinstance(text, Stack):
        return text
    if isinstance(text, str):
        return Stack(parse(text))
    return Stack([text] if isinstance(text, Method) else text)


def explain(text: str, model: ModelFacts | None = None) -> dict[str, Any]:
    """Which method owns which seam, the order in which they are asked, and every refusal: {seams, order, refusals}."""
    methods = parse(text)
    asked: list[tuple[str, str]] = [
        ("prompt", "what of the input is put before the model"),
        ("keep", "before a block is added: which held tokens stay"),
        ("position", "the block's keys are rotated for every frame and added"),
        ("select", "which held slots the block sees; selections intersect"),
        ("blocks", "and which blocks of them each group of heads sees"),
        ("score", "the block's scores become weights"),
        ("observe", "the weights pass by"),
        ("format", "tokens that left the hot part are coded"),
        ("tier", "and moved to their tier"),
    ]
    seams = {seam: [m.spec.name for m in methods if seam in m.spec.seams] for seam, _ in asked}
    order = [{"seam": seam, "methods": seams[seam], "when": when} for seam, when in asked if seams[seam]]
    return {"stack": format_stack(methods), "seams": seams, "order": order, "refusals": refusals(methods, model)}
