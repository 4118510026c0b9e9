"""Finds strategies by name, reads sums of them, and says why some cannot be one."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Sequence

from lengthwise.core.grammar import parse_call
from lengthwise.errors import MethodCollision, StackRefused, UnknownMethod, did_you_mean
from lengthwise.thinking import strategies
from lengthwise.thinking.chain import ABILITIES, Sampler
from lengthwise.thinking.strategy import CLASSES, PARTS, SHARED_PARTS, Strategy

PLAIN = "plain"


@functools.cache
def all_strategies() -> dict[str, type[Strategy]]:
    """Name -> class, sorted by name. A file of `strategies` without a leading '_' defines exactly one."""
    found: dict[str, type[Strategy]] = {}
    for module in pkgutil.iter_modules(strategies.__path__):
        if module.name.startswith("_"):
            continue
        name = module.name.replace("_at_", "@").replace("_", "-")
        loaded = importlib.import_module(f"{strategies.__name__}.{module.name}")
        own = [v for v in vars(loaded).values() if isinstance(v, type) and v.__module__ == loaded.__name__]
        kinds = [v for v in own if issubclass(v, Strategy) and "spec" in vars(v)]
        if len(kinds) != 1 or kinds[0].spec.name != name:
            raise MethodCollision(f"{loaded.__name__} must define exactly one strategy, called '{name}'")
        found[name] = kinds[0]
    return dict(sorted(found.items()))


def get(name: str) -> type[Strategy]:
    """The strategy class called `name`. Raises UnknownMethod, with the nearest names."""
    known = all_strategies()
    if name not in known:
        hint = did_you_mean(name, known)
        raise UnknownMethod(f"there is no strategy '{name}'{hint} (lengthwise think --strategies lists them)")
    return known[name]


def parse(text: str) -> list[Strategy]:
    """The strategies of `a:key=value + b:value`; 'plain' or nothing is no strategy: one chain, as the model writes it.

    Raises UnknownMethod or BadParameter.
    """
    if text.strip() in ("", PLAIN):
        return []
    parts = text.split("+")
    if PLAIN in map(str.strip, parts):
        raise UnknownMethod(f"'{PLAIN}' is no strategy beside others, but none at all: leave it out of '{text}'")
    return [parse_call(_named(part), text, get) for part in parts]


def format_strategies(given: Sequence[Strategy]) -> str:
    """The canonical text of a sum of strategies; parameters at their default are left out."""
    return " + ".join(map(str, given)) or PLAIN


def _named(part: str) -> str:
    """`budget:2048` -> `budget:tokens=2048`, by the strategy's main parameter."""
    name, colon, arguments = part.partition(":")
    kind = all_strategies().get(name.strip())
    first, comma, rest = arguments.partition(",")
    if not colon or not first.strip() or "=" in first or kind is None or not kind.spec.main:
        return part
    return f"{name}:{kind.spec.main}={first}{comma}{rest}"


def refusals(given: Sequence[Strategy], sampler: Sampler | None) -> list[str]:
    """Reasons why these strategies cannot run together, or with `sampler`; [] means they can."""
    reasons = []
    for part, meaning in PARTS.items():
        owners = [s.spec.name for s in given if part in s.spec.parts]
        if len(owners) > 1 and part not in SHARED_PARTS:
            reasons.append(f"{' and '.join(owners)} both decide {meaning.removesuffix(' (one owner)')}")
    names = [s.spec.name for s in given]
    reasons += [f"'{n}' is given twice" for n in dict.fromkeys(names) if names.count(n) > 1]
    for index, strategy in enumerate(given):
        spec = strategy.spec
        if sampler is not None:
            missing = [a for a in spec.needs if a not in sampler.able]
            reasons += [f"{spec.name} needs what {sampler.name} cannot give: {ABILITIES[a]}" for a in missing]
            if spec.needs_tags and sampler.tags is None:
                reasons.append(
                    f"{spec.name} needs a thinking section, and none was found in the chat template of {sampler.name}: "
                    "give its tags (--think-open, --think-close)"
                )
        reasons += strategy.check(sampler, [*given[:index], *given[index + 1 :]])
    return list(dict.fromkeys(reasons))


def check(given: Sequence[Strategy], sampler: Sampler | None) -> None:
    """Raise StackRefused with the reasons of `refusals`, if there are any."""
    if reasons := refusals(given, sampler):
        raise StackRefused(format_strategies(given), reasons, "strategy")


def well_formed(kind: type[Strategy]) -> list[str]:
    """What is wrong with a strategy's declaration; [] when it claims just the parts whose classes it is of."""
    claims = {part for part, of in CLASSES.items() if issubclass(kind, of)}
    wrong = [] if claims == set(kind.spec.parts) else [f"{kind.spec.name} claims {kind.spec.parts}, it is of {claims}"]
    if kind.spec.main and kind.spec.main not in {f.name for f in dataclasses.fields(kind)}:
        wrong.append(f"{kind.spec.name} has no parameter '{kind.spec.main}'")
    return wrong
