"""What methods declare about themselves is complete and true to the code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lengthwise import papers
from lengthwise.core import registry
from lengthwise.core.grammar import format_stack, parse
from lengthwise.core.seams import Blocks, Keeps, Observes, Positions, Scores, Selects, Stores
from lengthwise.core.spec import SEAMS, Method, format_value, parameters

METHODS = registry.all_methods()
ROOT = Path(__file__).parents[2]
BASES: dict[type, set[str]] = {
    Positions: {"position"},
    Selects: {"select"},
    Blocks: {"blocks"},
    Scores: {"score"},
    Keeps: {"keep"},
    Observes: {"observe"},
    Stores: {"format", "tier"},
}
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.spec.name)


@each_method
def test_seams_are_those_of_the_base_classes(method: type[Method]) -> None:
    claimed = set(method.spec.seams)
    assert claimed <= set(SEAMS)
    assert len(claimed) == len(method.spec.seams)
    for base, seams in BASES.items():
        assert issubclass(method, base) == bool(claimed & seams), f"{base.__name__} and {seams}"


@each_method
def test_what_is_inherited_is_overridden(method: type[Method]) -> None:
    """A seam that is claimed and never answered would be a silent no-op."""
    answers: dict[type, tuple[str, ...]] = {
        Positions: ("frames", "frequencies", "query_factor", "in_cache"),
        Selects: ("visible", "extras"),
        Blocks: ("lists",),
        Scores: ("weigh",),
        Keeps: ("keep",),
        Observes: ("observe",),
        Stores: ("codec", "arena"),
    }
    for base, names in answers.items():
        if issubclass(method, base):
            assert any(getattr(method, n) is not getattr(base, n) for n in names), base.__name__
    if "format" in method.spec.seams:
        assert method.codec is not Stores.codec  # type: ignore[attr-defined]
    if "tier" in method.spec.seams:
        assert method.arena is not Stores.arena  # type: ignore[attr-defined]
    if method.spec.bounded and method.spec.seams != ("prompt",):
        assert "keep" in method.spec.seams
        assert method.tokens_held is not Method.tokens_held


@each_method
def test_texts(method: type[Method]) -> None:
    spec = method.spec
    for text in (spec.name, spec.family, spec.summary, spec.formula, spec.exact_when, spec.refuses, spec.simplified):
        assert text.strip() == text != ""
        assert "\n" not in text
    assert spec.summary[-1] != "."
    assert method.__doc__
    assert spec.source or not spec.papers
    module = method.__module__
    if module.startswith("lengthwise."):
        assert module.split(".")[1] == spec.family
        assert module.rsplit(".", 1)[1].replace("_", "-") == spec.name
    assert registry.get(spec.name) is method


@each_method
def test_parameters(method: type[Method]) -> None:
    for row in parameters(method):
        assert row["help"], row["name"]
        assert row["default"] is not dataclasses.MISSING
    default = method()
    assert str(default) == method.spec.name
    assert default == method()
    assert hash(default) == hash(method())
    with pytest.raises(dataclasses.FrozenInstanceError):
        default.anything = 1  # type: ignore[attr-defined]


@each_method
def test_text_and_value_are_one(method: type[Method]) -> None:
    variants = [method()]
    if method.spec.neutral is not None:
        variants.append(method(**method.spec.neutral))
        variants.append(method(**{k: format_value(v) for k, v in method.spec.neutral.items()}))
        assert variants[1] == variants[2]
    for made in variants:
        assert parse(str(made)) == [made]
        spelled = ",".join(f"{f.name}={format_value(getattr(made, f.name))}" for f in dataclasses.fields(made))
        assert parse(f" {made.spec.name} : {spelled} " if spelled else made.spec.name) == [made]
    whole = " + ".join(map(str, variants))
    assert format_stack(parse(whole)) == whole


@each_method
def test_neutral(method: type[Method]) -> None:
    """A method without a neutral setting cannot be checked against the plain model: only prompts may lack one."""
    assert method.spec.neutral is not None or method.spec.seams == ("prompt",)


@each_method
def test_papers_are_on_the_map(method: type[Method]) -> None:
    known = {p.id for p in papers.all_papers()}
    assert set(method.spec.papers) <= known
    for paper in papers.all_papers():
        if paper.id in method.spec.papers:
            assert method.spec.name in paper.served_by


def test_every_method_names_a_test_that_exists() -> None:
    missing = {m.spec.name: m.spec.test for m in METHODS if not m.spec.test or not (ROOT / m.spec.test).is_file()}
    assert not missing, f"no such test file: {missing}"


def test_names_differ() -> None:
    names = [m.spec.name for m in METHODS]
    assert len(set(names)) == len(names) == len(registry.names())
