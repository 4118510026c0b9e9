"""The paper map: complete, honest about what is served, and findable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lengthwise.papers as papers
from lengthwise.bench.registry import all_tasks
from lengthwise.core.registry import all_methods, names
from lengthwise.papers import Paper, all_papers, search, to_json
from lengthwise.thinking.registry import all_strategies

ROOT = Path(__file__).parents[2]
ROWS = {row["id"]: row for row in papers._rows()}


def test_every_paper_is_on_the_map_once() -> None:
    assert [p.id for p in all_papers()] == list(range(268))
    assert len({p.slug for p in all_papers()}) == 268
    assert len({p.title for p in all_papers()}) == 268


def test_rows_are_one_clean_line_each() -> None:
    for row in ROWS.values():
        assert set(row) == {"id", "slug", "title", "room", "scope", "line", "why"}
        assert row["scope"] in ("in", "part", "out")
        assert row["line"].endswith("."), row["id"]
        assert len(row["line"]) <= 200, row["id"]
        for key in ("title", "line", "why"):
            assert row[key] == " ".join(row[key].split()), row["id"]
        assert bool(row["why"]) == (row["scope"] != "in"), row["id"]


def test_reasons_for_leaving_a_paper_out_are_specific() -> None:
    reasons = [row["why"] for row in ROWS.values() if row["scope"] == "out"]
    assert len(set(reasons)) >= len(reasons) - 2  # alike only where papers are alike
    assert all(len(reason.split()) >= 7 for reason in reasons)


def test_status_follows_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(scope: str, served: list[tuple[str, str]]) -> tuple[str, str]:
        row = {"id": 5, "slug": "s", "title": "T", "room": "think", "scope": scope, "line": "L."}
        paper = papers._paper({**row, "why": "" if scope == "in" else "because"}, served)
        return paper.status, paper.why

    server = [("int8", "tests/oracle/test_int8.py")]
    assert status("in", server) == ("works", "")
    assert status("in", []) == ("planned", "planned: room think")
    assert status("part", server) == ("part", "because")
    assert status("part", [])[0] == "planned"
    assert status("out", server) == ("part", "because")
    assert status("out", []) == ("not covered", "because")
    monkeypatch.setitem(papers.PARTIAL, 5, "the training half")
    assert status("in", server) == ("part", "the training half")


def test_a_paper_works_only_while_something_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "all_methods", list)
    monkeypatch.setattr(papers, "all_tasks", dict)
    monkeypatch.setattr(papers, "all_strategies", dict)
    monkeypatch.setattr(papers, "SERVED_ELSEWHERE", {30: ("lengthwise plan", "tests/oracle/test_cost.py")})
    served = [p for p in all_papers() if p.served_by]
    assert [(p.id, p.status) for p in served] == [(30, "works")]


def test_methods_and_tasks_name_papers_of_the_map() -> None:
    for spec in [
        *(m.spec for m in all_methods()),
        *(t.spec for t in all_tasks().values()),
        *(s.spec for s in all_strategies().values()),
    ]:
        assert set(spec.papers) <= set(ROWS), spec.name


def test_whatever_serves_a_paper_names_a_test_that_exists() -> None:
    servers = [server for entry in papers._servers().values() for server in entry]
    missing = {name: test for name, test in servers if not test or not (ROOT / test).is_file()}
    assert not missing


def test_commands_and_partial_entries_are_of_the_map() -> None:
    assert set(papers.SERVED_ELSEWHERE) <= set(ROWS)
    assert set(papers.PARTIAL) <= set(papers._servers())


def test_search_takes_a_number_with_or_without_its_sign() -> None:
    assert [p.id for p in search("11")] == [p.id for p in search("#11")] == [11]
    assert search("#9999") == []


def test_search_wants_every_word_and_ignores_case() -> None:
    assert search("LM-infinite")[0].id == 11
    both = {p.id for p in search("kv cache")}
    assert both == {p.id for p in search("KV")} & {p.id for p in search("cache")}
    assert search("no-such-word") == []
    assert len(search("")) == 268


def test_search_puts_titles_first() -> None:
    in_title = ["attention" in p.title.lower() for p in search("attention")]
    assert in_title == sorted(in_title, reverse=True)
    assert set(in_title) == {True, False}


def test_search_finds_papers_by_the_method_that_serves_them() -> None:
    for name in names():
        served = {p.id for p in all_papers() if name in p.served_by}
        assert served <= {p.id for p in search(name)}


def test_json_has_the_documented_keys() -> None:
    (row,) = to_json(search("#120"))
    assert list(row) == ["id", "title", "status", "served_by", "test", "line", "why"]
    assert row["status"] == "works"
    assert "lengthwise plan" in row["served_by"]
    assert json.loads(json.dumps(row)) == row


def test_papers_are_values() -> None:
    assert search("#31") == search("31")
    assert isinstance(search("31")[0], Paper)
