"""What a method declares about itself, and the base class of all methods."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lengthwise.errors import BadParameter

if TYPE_CHECKING:
    from lengthwise.core.facts import ModelFacts

Seam = Literal["position", "select", "blocks", "score", "keep", "format", "tier", "observe", "prompt"]

SEAMS: dict[Seam, str] = {
    "position": "where a key stands, seen from a query (one owner)",
    "select": "which held keys a query sees (selections intersect)",
    "blocks": "which blocks of 64 held keys each group of heads sees (one owner)",
    "score": "the weights a query puts on the keys it sees, in place of softmax (one owner)",
    "keep": "which tokens stay in the cache (one owner)",
    "format": "in which form held keys and values are stored (one owner)",
    "tier": "on which memory tier they lie (one owner)",
    "observe": "reads scores as they pass (any number)",
    "prompt": "what of the input is put before the model (one owner)",
}
SHARED_SEAMS: frozenset[Seam] = frozenset({"select", "observe"})


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The facts about a method that the command line, the docs and the contract tests are made from.

    `papers` are ids of the paper map; `test` is the file that would fail without the mechanism.
    `bounded` says that the tokens held do not grow with the input. `neutral` are parameters under which the
    method must equal the plain model; None means that it has no such setting.
    """

    name: str
    family: str
    summary: str
    formula: str
    seams: tuple[Seam, ...]
    papers: tuple[int, ...] = ()
    source: str = ""
    exact_when: str = "never"
    refuses: str = "nothing"
    simplified: str = "nothing"
    bounded: bool = False
    neutral: dict[str, Any] | None = None
    test: str = ""


@dataclass(frozen=True)
class Configured:
    """A frozen value with hyper-parameters as fields, read from text or Python values, and a class-level `spec`."""

    spec: ClassVar[Any]

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = coerce(self.spec.name, f.name, getattr(self, f.name), hints[f.name])
            object.__setattr__(self, f.name, value)
        self.validate()

    def validate(self) -> None:
        """Raise BadParameter when a value is out of range."""

    def require(self, ok: bool, message: str) -> None:
        """Raise BadParameter with the name unless `ok`."""
        if not ok:
            raise BadParameter(f"{self.spec.name}: {message}")

    def __str__(self) -> str:
        changed = [
            f"{f.name}={format_value(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return str(self.spec.name) + (":" + ",".join(changed) if changed else "")


@dataclass(frozen=True)
class Method(Configured):
    """A method of a stack. Subclasses override the seams they claim."""

    spec: ClassVar[Spec]

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Reasons why this method cannot run on `model` or beside `others`; [] means it can."""
        return []

    def tokens_held(self, length: int, model: ModelFacts) -> int:
        """Upper bound on the tokens that a full-attention layer holds after reading `length` tokens."""
        return length

    def queries_at_once(self) -> int | None:
        """The most queries that may be scored together, when the mechanism depends on it; None: as many as fit."""
        return None

    def cuts(self, facts: ModelFacts, start: int, stop: int) -> Sequence[int]:
        """Positions between `start` and `stop` at which a block of queries must end, since other rules hold beyond."""
        return ()


def parameters(method: type[Configured]) -> list[dict[str, Any]]:
    """Name, type, default and one line of help for every hyper-parameter of `method`."""
    hints = typing.get_type_hints(method)
    return [
        {
            "name": f.name,
            "type": type_name(hints[f.name]),
            "default": f.default,
            "help": f.metadata.get("help", ""),
        }
        for f in dataclasses.fields(method)
    ]


def param(default: Any, help: str) -> Any:
    """A hyper-parameter field with its one-line help."""
    return dataclasses.field(default=default, metadata={"help": help})


def type_name(hint: Any) -> str:
    """How a parameter's type is written for a user: `int`, `float`, `one of a, b`, `int or auto`."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    args = typing.get_args(hint)
    if args:
        return " or ".join("none" if a is type(None) else type_name(a) for a in args)
    return str(getattr(hint, "__name__", hint))


def format_value(value: Any) -> str:
    """The text of a parameter value in the stack grammar; `coerce` reads it back."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    return str(value)


def coerce(method: str, name: str, value: Any, hint: Any) -> Any:
    """Read `value` (a string from the grammar, or a Python value) as the annotated type, or raise BadParameter."""
    options = typing.get_args(hint) if typing.get_origin(hint) not in (None, Literal) else (hint,)
    for option in sorted(options, key=lambda o: o is not type(None)):  # 'none' is None before it is a string
        ok, result = _read(value, option)
        if ok:
            return result
    raise BadParameter(f"{method}: {name}={format_value(value)} is not {type_name(hint)}")


def _read(value: Any, hint: Any) -> tuple[bool, Any]:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint), value
    if hint is type(None):
        return value is None or value == "none", None
    if hint is str:
        return isinstance(value, str), value
    if hint is bool:
        if isinstance(value, bool):
            return True, value
        return value in ("true", "false"), value == "true"
    if isinstance(value, bool):
        return False, None
    if hint is int:
        if isinstance(value, int):
            return True, value
        try:
            return True, parse_count(value)
        except (ValueError, AttributeError):
            return False, None
    if hint is float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            return False, None
        return math.isfinite(number), number
    return False, None


def parse_count(text: str) -> int:
    """Read a token count: `512`, `4k` (4,096), `1m` (1,048,576). Raises ValueError."""
    text = text.strip().lower().replace("_", "")
    scale = {"k": 1024, "m": 1024**2}.get(text[-1:], 1)
    return int(text[:-1] if scale > 1 else text) * scale
