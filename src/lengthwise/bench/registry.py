"""Finds tasks by name: every Task with a spec in a file of `bench/tasks`, or an entry point of another package."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil

from lengthwise.bench import tasks
from lengthwise.bench.task import Task
from lengthwise.core.grammar import parse_call
from lengthwise.errors import MethodCollision, UnknownTask, did_you_mean

ENTRY_POINTS = "lengthwise.tasks"


@functools.cache
def all_tasks() -> dict[str, type[Task]]:
    """Task name -> class, sorted by name. Raises MethodCollision when two tasks have one name."""
    found: dict[str, type[Task]] = {}
    classes: list[type[Task]] = []
    for module in pkgutil.iter_modules(tasks.__path__):
        loaded = importlib.import_module(f"{tasks.__name__}.{module.name}")
        own = [v for v in vars(loaded).values() if isinstance(v, type) and v.__module__ == loaded.__name__]
        classes += [v for v in own if issubclass(v, Task) and "spec" in vars(v)]
    classes += [point.load() for point in importlib.metadata.entry_points(group=ENTRY_POINTS)]
    for cls in classes:
        name = cls.spec.name
        if name in found:
            raise MethodCollision(f"two tasks are called '{name}': {found[name].__module__} and {cls.__module__}")
        found[name] = cls
    return dict(sorted(found.items()))


def get(name: str) -> type[Task]:
    """The task class called `name`. Raises UnknownTask, with the nearest names."""
    known = all_tasks()
    if name not in known:
        hint = did_you_mean(name, known, most=3)
        raise UnknownTask(f"there is no task '{name}'{hint} (lengthwise tasks lists them)")
    return known[name]


def parse(text: str) -> Task:
    """The task that `name:key=value,key=value` names. Raises UnknownTask or BadParameter."""
    return parse_call(text, text, get)
