"""`lengthwise think` as a user meets it: answers, JSON, files of problems, resuming, interruptions, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import lengthwise
import lengthwise.cli as cli
from fake_server import FakeServer, Reply
from lengthwise.bench.store import read_rows
from lengthwise.errors import BadInput
from lengthwise.thinking import __main__ as fitting
from lengthwise.thinking import all_strategies
from lengthwise.thinking.many import read_problems, same_answer
from scripted import Scripted


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An 80-column terminal, a folder of its own."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("LENGTHWISE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """A sampler that adds two numbers in so many steps, in place of a model."""

    def script(question: str, number: int) -> str:
        if "fail" in question:
            raise BadInput("the model is out of order")
        a, b = question.split("+")
        return "step " * int(a) + f"</think>{int(a) + int(b)}"

    sampler = Scripted(script)
    monkeypatch.setattr("lengthwise.thinking.samplers.open_sampler", lambda *args, **options: sampler)
    return sampler


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, ["think", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["think", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    return err.removeprefix("lengthwise: error: ")


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


SUMS = [{"problem": f"{a}+1", "answer": a + 1} for a in range(1, 7)]


def test_help_has_examples_and_fits_80_columns() -> None:
    page = run("--help")
    assert "$ lengthwise think" in page
    assert max(map(len, page.splitlines())) <= 80


def test_the_pocket_reasoner_answers() -> None:
    page = run("What is 3+4+5 mod 10?", "--temperature", "0")
    assert page.splitlines()[0] == "2"
    assert "closed" in page
    assert "Ledger" in page


def test_the_function_is_at_the_top_of_the_package() -> None:
    from lengthwise.thinking import think

    assert lengthwise.think is think


def test_answer_chains_and_ledger(scripted: Scripted) -> None:
    page = run("3+4", "--strategy", "short-m@k:m=1,k=2")
    assert page.splitlines()[0] == "7"
    assert "in 2 chains" in page
    assert "short-m@k:m=1,k=2 on scripted" in " ".join(page.split())


def test_json_is_the_thought(scripted: Scripted) -> None:
    thought = json.loads(run("3+4", "--json", "--strategy", "budget:99"))
    assert (thought["version"], thought["answer"], thought["strategy"]) == (1, "7", "budget:tokens=99")
    assert thought["spent"]["thinking_tokens"] == thought["chains"][0]["thinking_tokens"] == 4


def test_a_problem_from_standard_input(scripted: Scripted) -> None:
    result = CliRunner().invoke(cli.app, ["think", "-"], input="3+4")
    assert result.stdout.splitlines()[0] == "7"


def test_strategies_are_listed_with_their_parameters() -> None:
    page = run("--strategies")
    for name in all_strategies():
        assert f"\n{name}  " in "\n" + page
    assert "tokens=2048  most tokens of thinking" in page
    listed = {row["name"]: row for row in json.loads(run("--strategies", "--json"))}
    assert set(listed) == set(all_strategies())
    assert listed["budget"]["parameters"][0]["name"] == "tokens"


# --- files


def test_a_file_of_problems(scripted: Scripted, tmp_path: Path) -> None:
    last = {"id": "x", "messages": [{"role": "user", "content": "9+1"}], "answer": "11"}
    page = run("--file", write(tmp_path / "p.jsonl", *SUMS, last), "--out", "r.jsonl")
    assert "6 of 7 right: 85.7% (95 %" in page
    rows = {row["id"]: row for row in read_rows(Path("r.jsonl"))}
    assert [rows[str(n)]["answer"] for n in range(1, 7)] == [str(n + 1) for n in range(1, 7)]
    assert (rows["x"]["right"], rows["x"]["expected"], rows["x"]["spent"]["thinking_tokens"]) == (False, "11", 10)
    assert scripted.live == 0


def test_problems_are_worked_on_at_the_same_time(scripted: Scripted, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", {"problem": "50+1"}, {"problem": "2+1"}, {"problem": "9+1"}, {"problem": "1+1"})
    run("--file", file, "--concurrency", "2")
    order = [json.loads(line)["id"] for line in Path("think.jsonl").read_text().splitlines()]
    assert order == ["2", "3", "4", "1"]
    Path("think.jsonl").unlink()
    run("--file", file, "--concurrency", "1")
    order = [json.loads(line)["id"] for line in Path("think.jsonl").read_text().splitlines()]
    assert order == ["1", "2", "3", "4"]


def test_broken_lines_are_named_and_the_rest_goes_on(scripted: Scripted, tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.jsonl", {"problem": "1+1"}, '{"problem": ', "", {"question": "?"}, {"problem": 3}, [1],
        {"id": 1, "problem": "2+1"}, {"messages": []}, {"problem": "3+1", "answer": [4]}, {"problem": "4+1"},
    )  # fmt: skip
    result = CliRunner().invoke(cli.app, ["think", "--file", file, "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [b["line"] for b in report["broken"]] == [2, 4, 5, 6, 7, 8, 9]
    assert "not JSON" in report["broken"][0]["why"]
    assert "its id '1' is that of line 1" in report["broken"][4]["why"]
    assert (report["problems"], report["done"], report["failed"]) == (2, 2, [])
    assert "p.jsonl:2 is left out" in " ".join(result.stderr.split())


def test_a_problem_that_fails_is_named_and_tried_again(scripted: Scripted, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", {"problem": "1+1"}, {"problem": "fail", "id": "bad"}, {"problem": "2+1"})
    report = json.loads(run("--file", file, "--json", code=1))
    assert report["failed"] == [{"id": "bad", "line": 2, "error": "the model is out of order"}]
    assert report["done"] == 2
    asked = len(scripted.asked)
    scripted.script = lambda q, n: "</think>now"
    assert json.loads(run("--file", file, "--json"))["resumed"] == 2
    assert len(scripted.asked) == asked + 1


def test_when_all_fail_the_rest_is_not_tried(scripted: Scripted, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", *({"problem": f"fail {n}"} for n in range(20)))
    report = json.loads(run("--file", file, "--json", "--concurrency", "2", code=1))
    assert len(report["failed"]) + report["not_tried"] == 20
    assert 3 <= len(report["failed"]) <= 4


def test_what_failed_comes_last_so_that_every_run_gets_on(scripted: Scripted, tmp_path: Path) -> None:
    rows = [*({"problem": f"fail {n}"} for n in range(6)), {"problem": "1+1"}]
    file = write(tmp_path / "p.jsonl", *rows)
    given = ["think", "--file", file, "--concurrency", "1"]
    first = CliRunner().invoke(cli.app, given)
    assert "4 were not tried: too many failed in a row" in " ".join(first.stderr.split())
    assert "1 of 7 problems done" not in first.stdout
    second = CliRunner().invoke(cli.app, given)
    third = CliRunner().invoke(cli.app, given)
    assert "1 of 7 problems done" in third.stdout, (second.output, third.output)


def test_rows_are_problems_with_the_answer_that_was_expected(scripted: Scripted, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", {"problem": "1+1", "answer": 3})
    run("--file", file, "--out", "rows.jsonl")
    (problem,), broken = read_problems("rows.jsonl")
    assert (problem.answer, broken) == ("3", [])  # not the 2 that the model said
    assert json.loads(run("--file", "rows.jsonl", "--out", "again.jsonl", "--json"))["right"] == 0


def test_a_stack_is_named(scripted: Scripted) -> None:
    assert "plain on scripted, which reads by int8" in run("1+1", "--stack", "int8")
    assert json.loads(run("1+1", "--stack", "int8", "--json"))["stack"] == "int8"


def test_a_finished_file_is_not_run_again(scripted: Scripted, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", *SUMS)
    run("--file", file)
    asked = len(scripted.asked)
    before = Path("think.jsonl").read_bytes()
    report = json.loads(run("--file", file, "--json"))
    assert (report["resumed"], report["right"], report["known"]) == (6, 6, 6)
    assert len(scripted.asked) == asked
    assert Path("think.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        ["--strategy", "budget:3"],
        ["--seed", "2"],
        ["--most-answer", "9"],
        ["-t", "1"],
        ["--stack", "int8"],
        ["--dtype", "bfloat16"],
        ["--think-open", "<a>", "--think-close", "</a>"],
    ],
)
def test_other_runs_are_kept_apart_in_one_file(scripted: Scripted, tmp_path: Path, change: list[str]) -> None:
    file = write(tmp_path / "p.jsonl", *SUMS)
    run("--file", file)
    assert json.loads(run("--file", file, "--json", *change))["resumed"] == 0
    assert len(read_rows(Path("think.jsonl"))) == 12
    assert json.loads(run("--file", file, "--json"))["resumed"] == 6


def test_a_changed_problem_is_run_again(scripted: Scripted, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", *SUMS)
    run("--file", file)
    write(tmp_path / "p.jsonl", {"problem": "5+5"}, *SUMS[1:])
    assert json.loads(run("--file", file, "--json"))["resumed"] == 5


def test_half_a_row_that_a_crash_left_is_dropped(scripted: Scripted, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", *SUMS)
    run("--file", file)
    whole = Path("think.jsonl").read_bytes()
    Path("think.jsonl").write_bytes(whole[:-40])
    assert json.loads(run("--file", file, "--json"))["resumed"] == 5
    assert len(read_rows(Path("think.jsonl"))) == 6


def start(file: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "lengthwise",
        "think",
        "--file",
        file,
        "--out",
        "r.jsonl",
        "-c",
        "1",
        "--seed",
        "1",
    ]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    end = time.monotonic() + 60
    while not (Path("r.jsonl").exists() and Path("r.jsonl").read_bytes().count(b"\n") >= 2):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_lost_when_it_is_stopped(tmp_path: Path, number: int) -> None:
    rows = [{"problem": f"What is {n % 10}+4+5+6+7+8+9 mod 10?", "answer": (n + 39) % 10} for n in range(200)]
    file = write(tmp_path / "p.jsonl", *rows)
    child = start(file)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    done = len(read_rows(Path("r.jsonl")))
    assert 2 <= done < 200
    if number == signal.SIGINT:
        assert child.returncode == 130
        assert f"interrupted; {done} of 200 problems are in r.jsonl" in " ".join(err.split())
    write(tmp_path / "p.jsonl", *rows[: done + 1])
    assert json.loads(run("-f", file, "-o", "r.jsonl", "-c", "1", "--seed", "1", "--json"))["resumed"] == done


# --- endpoints


def test_an_endpoint_answers(tmp_path: Path) -> None:
    with FakeServer(Reply(thinking="two and two", answer="4")) as server:
        thought = json.loads(run("2+2?", "--endpoint", server.url, "--model", "fake", "--json"))
    assert (thought["answer"], thought["chains"][0]["thinking"].strip()) == ("4", "two and two")


def test_an_endpoint_that_cannot_be_continued_refuses_what_needs_it(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(Reply(thinking="two", answer="4")) as server:
        says = fails(capsys, "2+2?", "--endpoint", server.url, "--model", "fake", "--strategy", "more-think")
    assert "more-think needs what fake at" in says


def test_an_endpoint_without_logprobs_refuses_what_needs_them(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(Reply(thinking="two", answer="4", logprobs=False)) as server:
        says = fails(capsys, "2+2?", "--endpoint", server.url, "--model", "fake", "--strategy", "early-exit")
    assert "log-probabilities of the tokens written" in says


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give a problem, or a file"),
        (["a", "--file", "b"], "give a problem, or a file"),
        (["a", "--out", "b"], "--out goes with --file"),
        ([" ", "-m", "no-such/model"], "the problem is empty"),
        (["--file", "p.jsonl", "--out", "./p.jsonl"], "rows go to another file"),
        (["a", "-t", "inf"], "the temperature must be a number"),
        (["a", "--strategy", "short-m@q"], "there is no strategy 'short-m@q'; did you mean 'short-m@k'"),
        (["a", "--strategy", "budget:many"], "tokens=many is not int"),
        (["a", "--strategy", "short-m@k:m=4,k=3"], "short-m@k"),
        (["a", "--strategy", "budget:4 + budget:5"], "'budget' is given twice"),
        (["a", "--strategy", "zero-think + budget"], "zero-think leaves no thinking for budget"),
        (["a", "--strategy", "stop-temperature", "--endpoint", "http://localhost:1"], "name the model of the endpoint"),
        (
            ["a", "--endpoint", "http://localhost:1", "-m", "x", "--stack", "int8"],
            "--stack and --dtype are for a local",
        ),
        (["a", "--continuation", "vllm"], "are for an endpoint"),
        (["a", "--think-open", "<a>"], "give --think-open and --think-close"),
        (["a", "--extract", "all"], "--extract is one of auto, boxed"),
        (["a", "--top-p", "0"], "--top-p is above 0"),
        (["a", "--temperature", "-1"], "greater than or equal to 0"),
        (["--file", "none.jsonl"], "there is no file none.jsonl"),
        (["a", "-m", "smolm2"], "did you mean 'smollm2'"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert says in fails(capsys, *arguments)


def test_a_model_without_a_thinking_section(capsys: pytest.CaptureFixture[str], scripted: Scripted) -> None:
    scripted.tags = None
    assert "budget needs a thinking section, and none was found" in fails(capsys, "1+1", "--strategy", "budget:4")


def test_a_file_without_problems_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "has no problem" in fails(capsys, "--file", write(tmp_path / "p.jsonl", "", "x"))
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in fails(capsys, "--file", str(tmp_path / "p.jsonl"))


def test_line_breaks_of_other_scripts_are_part_of_a_problem(tmp_path: Path) -> None:
    (path := tmp_path / "p.jsonl").write_text('{"problem": "a\u2028b"}\r\n{"problem": "c"}', encoding="utf-8")
    problems, broken = read_problems(path)
    assert [p.messages[0]["content"] for p in problems] == ["a\u2028b", "c"]
    assert broken == []


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [("4,200.", "4200", True), (" Yes ", "yes", True), ("4", "5", False), ("", "", False), ("1 2 3", "1  2 3", True)],
)
def test_answers_are_compared(given: str, expected: str, same: bool) -> None:
    assert same_answer(given, expected) is same


def test_a_router_is_fitted_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"problem": f"What is {n}+{n + 1}?", "answer": 2 * n + 1} for n in range(10)]
    file = write(tmp_path / "p.jsonl", *rows)
    assert fitting.main(["fit-mode", file, "--out", "r.json", "--features", "cheap"]) in (0, 2)
    out, err = capsys.readouterr()
    assert "auc" in out or "a router needs at least 5" in err  # so few may all be right


def test_a_planner_is_fitted_on_the_command_line(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "p.jsonl", *SUMS, {"problem": "7+1", "answer": "no plan finds this"})
    given = ["fit-dots", file, "--out", "plans.json", "--plans", "think, direct", "--seed", "1"]
    assert fitting.main(given) == 0
    out = capsys.readouterr().out
    assert "problems: 7" in out
    assert "best plan direct: 6" in out  # no shorter way to the same answer
    assert "solved by no plan: 1" in out
    assert "plan: direct" in run("4+1", "--strategy", "dots:plans.json")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["fit-mode", "p.jsonl", "--out", "none/r.json"], "cannot be written"),
        (["fit-mode", "p.jsonl", "--out", "."], "cannot be written"),
        (["fit-mode", "p.jsonl", "--out", "r.json", "--concurrency", "0"], "at least one"),
        (["fit-mode", "q.jsonl", "--out", "r.json"], "answers are known"),
        (["fit-dots", "q.jsonl", "--out", "r.json"], "answers are known"),
        (["fit-dots", "p.jsonl", "--out", "r.json", "--plans", "guess"], "no plan 'guess'"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(
    more: list[str], why: str, scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "p.jsonl", *SUMS)
    write(tmp_path / "q.jsonl", {"problem": "1+1"})
    assert fitting.main(more) == 2
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1
    assert scripted.asked == []
