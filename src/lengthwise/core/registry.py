"""Finds methods by name. A method is a file of a room; its file name is its name. Imported when asked for."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil

from lengthwise.core.spec import Method
from lengthwise.errors import MethodCollision, UnknownMethod, did_you_mean

ROOMS = ("position", "attention", "cache", "prompt")
ENTRY_POINTS = "lengthwise.methods"


@functools.cache
def _providers() -> dict[str, str]:
    """Method name -> 'package.module' (a room's file) or 'package.module:Class' (an entry point of another package)."""
    found: dict[str, str] = {}

    def add(name: str, target: str) -> None:
        if name in found:
            raise MethodCollision(f"two methods are called '{name}': {found[name]} and {target}; rename one of them")
        found[name] = target

    for room in ROOMS:
        package = importlib.import_module(f"lengthwise.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                add(module.name.replace("_", "-"), f"lengthwise.{room}.{module.name}")
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        add(point.name, point.value)
    return found


def names() -> list[str]:
    """Every method name, sorted."""
    return sorted(_providers())


@functools.cache
def get(name: str) -> type[Method]:
    """The method class called `name`. Raises UnknownMethod, with the nearest names."""
    providers = _providers()
    if name not in providers:
        hint = did_you_mean(name, providers)
        raise UnknownMethod(f"there is no method '{name}'{hint} (lengthwise methods lists them)")
    module_name, _, attribute = providers[name].partition(":")
    if attribute:
        try:
            method = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise UnknownMethod(f"the method '{name}' of {providers[name]} cannot be loaded: {error}") from error
    else:
        module = importlib.import_module(module_name)
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module_name]
        found = [v for v in own if issubclass(v, Method) and "spec" in vars(v)]
        if len(found) != 1:
            raise MethodCollision(f"{module_name} must define exactly one method, it defines {len(found)}")
        method = found[0]
    if method.spec.name != name:
        raise MethodCollision(f"{providers[name]} calls itself '{method.spec.name}' but is registered as '{name}'")
    return method  # type: ignore[no-any-return]


def all_methods() -> list[type[Method]]:
    """Every method class, by name."""
    return [get(name) for name in names()]
