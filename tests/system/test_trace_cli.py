"""`lengthwise trace`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lengthwise.cli import app, main

ONCE = " 3+4=7; 7+5=2;"


@pytest.fixture
def chains(tmp_path: Path) -> str:
    """Two chains of one problem, as think --out writes them."""
    rows = [
        {"thinking": ONCE + " check:" + ONCE, "text": " 2.", "answer": "2", "thinking_tokens": 30},
        {"thinking": ONCE, "text": " 2.", "answer": "2"},
    ]
    row = {"id": "q", "problem": "What is 3+4+5 mod 10?", "expected": "2", "chains": rows}
    path = tmp_path / "chains.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return str(path)


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["trace", *arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout


def test_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = run("--help")
    assert "$ lengthwise trace" in page
    assert max(map(len, page.splitlines())) <= 80


def test_words_without_a_model(chains: str) -> None:
    found = json.loads(run(chains, "--json"))
    assert (found["count"], found["unit"], found["answered"]) == (2, "words", 2)
    assert found["tokens"] == sum(found["by_kind"].values()) == sum(c["tokens"] for c in found["chains"])
    assert found["by_kind"]["verification"] == found["repeated"] == 14
    assert found["after_answer"] == 14
    assert all(s["importance"] is None for c in found["chains"] for s in c["steps"])
    page = run(chains)
    assert "2 chains, 38 words" in page
    assert "the answer is written in 2, and 14 words come after it" in page


def test_a_model_judges_and_prunes(chains: str, tmp_path: Path) -> None:
    out, html = tmp_path / "out" / "pruned.jsonl", tmp_path / "page.html"
    given = [chains, "-m", "pocket-reasoner", "--prune", "1", "--out", str(out), "--html", str(html)]
    found = json.loads(run(*given, "--json"))
    assert found["unit"] == "tokens"
    assert found["sure"] == 2
    first, second = found["chains"]
    assert [s["pruned"] for s in first["steps"]] == [False, False, True]
    assert first["pruned"] == first["by_kind"]["verification"] > 0
    assert isinstance(first["pruned_change"], float)
    assert second["pruned_change"] is None
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["thinking"] for r in rows] == [ONCE, ONCE]
    assert rows[0]["messages"][0]["content"] == "What is 3+4+5 mod 10?"
    assert "verification" in html.read_text()
    page = run(*given)
    assert "importance" in page
    assert "pruned:" in page
    assert run(str(out), "-m", "pocket-reasoner", "--json")  # what was written can be read


def test_one_chain_is_shown_step_by_step(tmp_path: Path) -> None:
    file = tmp_path / "chain.txt"
    file.write_text(f"<think>{ONCE} wait; 7+5=2;</think> 2.")
    page = run(str(file), "--answer", "2")
    assert "correction" in page
    assert "wait; 7+5=2;" in page
    judged = run(str(file), "-m", "pocket-reasoner", "--problem", "What is 3+4+5 mod 10?")
    assert "known" in judged
    found = json.loads(run(str(file), "-m", "pocket-reasoner", "--json"))
    assert "--problem" in found["chains"][0]["notes"][0]


def test_what_the_file_says_goes_before_what_is_given(chains: str) -> None:
    result = CliRunner().invoke(app, ["trace", chains, "--problem", "What?", "--answer", "7", "--json"])
    found = json.loads(result.stdout)
    assert [c["answer"] for c in found["chains"]] == ["2", "2"]
    assert "--problem is not used" in result.stderr
    assert "--answer is not used" in result.stderr
    given = [chains, "-m", "pocket-reasoner", "--json"]
    assert run(*given, "--problem", "What is 1+1?") == run(*given)


def test_a_broken_line_is_named_and_the_rest_goes_on(chains: str) -> None:
    with Path(chains).open("a") as file:
        file.write("{broken\n")
    result = CliRunner().invoke(app, ["trace", chains, "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["count"] == 2
    assert found["broken"][0]["line"] == 2


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--prune", "0.5"], "needs a model"),
        (["--prune", "2", "-m", "pocket-reasoner"], "not in 0 to 1"),
        (["--out", "x.jsonl"], "--prune RATIO"),
        (["--html", "CHAINS"], "different files"),
        (["--html", "x", "--out", "./x", "--prune", "1", "-m", "pocket-reasoner"], "different files"),
        (["-m", "no-such/model/x"], "no model folder"),
    ],
)
def test_refusals(chains: str, more: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", chains, *(chains if m == "CHAINS" else m for m in more)]) == 2
    assert json.loads(Path(chains).read_text())["id"] == "q"  # not written over
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1


def test_no_chain_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.jsonl"
    for text, why in (('{"a": 1}\n', "line 1: it has no chains"), ("", "has no chain")):
        file.write_text(text)
        assert main(["trace", str(file)]) == 2
        assert why in capsys.readouterr().err


def test_rows_of_think_can_be_traced(tmp_path: Path) -> None:
    problems: Any = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"problem": "What is 3+4+5 mod 10?", "answer": "2"}) + "\n")
    out = str(tmp_path / "chains.jsonl")
    given = ["think", "--file", str(problems), "--model", "pocket-reasoner", "--out", out, "--seed", "1"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = json.loads(run(out, "-m", "pocket-reasoner", "--problem", "What is 3+4+5 mod 10?", "--json"))
    (chain,) = found["chains"]
    assert chain["answer"] == "2"
    assert chain["tokens"] > 0
    assert chain["steps"][0]["importance"] is not None
