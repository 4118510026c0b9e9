"""`compare` end to end on a shipped model: rows, resuming, refusals, failures, a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lengthwise.bench.compare import Stopped, compare
from lengthwise.bench.jobs import Settings, grid, parse_depths, parse_lengths
from lengthwise.bench.local_model import LocalModel
from lengthwise.bench.runner import Runner
from lengthwise.bench.store import COSTS, VERSION, Store, read_rows
from lengthwise.cli import main
from lengthwise.errors import BadInput

COMMAND = ["compare", "--model", "pocket-reader", "--task", "needle:keys=2", "--length", "256,1k", "--trials", "2"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def reader() -> LocalModel:
    return LocalModel("pocket-reader")


def test_two_stacks_two_tasks_two_lengths(tmp_path, capsys):
    """The whole command: quality and ledger of every cell, a table, a page."""
    arguments = [*COMMAND, "--task", "multi-query", "--stack", "dense", "--stack", "rerope:window=256"]
    assert main([*arguments, "--report", "out"]) == 0
    rows = read_rows(tmp_path / "out" / "results.jsonl")
    assert len(rows) == 2 * 2 * 2 * 2
    for row in rows:
        assert row["status"] == "done"
        assert set(row["ledger"]) == set(COSTS)
        assert row["prompt_tokens"] <= row["length"]
        assert 0.8 * row["length"] <= row["prompt_tokens"]
        assert row["model_hash"]
        assert row["versions"]["torch"]
        assert row["machine"]["cores"]
        assert row["evidence"]
    inside = [r["score"] for r in rows if r["length"] == 256]
    assert sum(inside) / len(inside) > 0.8  # the model can do both inside its window
    far = {
        s: [r["score"] for r in rows if r["length"] == 1024 and r["stack"] == s] for s in ("dense", "rerope:window=256")
    }
    assert sum(far["rerope:window=256"]) > sum(far["dense"])
    out = capsys.readouterr().out
    assert "rerope:window=256" in out
    assert (tmp_path / "out" / "index.html").stat().st_size > 10_000


def test_the_same_command_runs_nothing_twice(tmp_path, capsys):
    assert main([*COMMAND, "--out", "r.jsonl"]) == 0
    before = (tmp_path / "r.jsonl").read_bytes()
    assert main([*COMMAND, "--out", "r.jsonl", "--json"]) == 0
    assert (tmp_path / "r.jsonl").read_bytes() == before
    assert main([*COMMAND, "--trials", "3", "--out", "r.jsonl"]) == 0  # only the new trials
    assert len(read_rows(tmp_path / "r.jsonl")) == 6
    assert (tmp_path / "r.jsonl").read_bytes().startswith(before)


def test_stopped_run_keeps_rows_and_goes_on(tmp_path, reader):
    jobs = grid(["dense"], ["needle:keys=2"], [256], [], 5)
    seen = []
    with pytest.raises(Stopped, match=r"3 rows are in .*r\.jsonl"):
        compare(
            reader,
            jobs,
            tmp_path / "r.jsonl",
            progress=lambda row, left: seen.append(left),
            stop=lambda: len(seen) == 3,
        )
    assert seen == [4, 3, 2]
    found = compare(reader, jobs, tmp_path / "r.jsonl")
    assert found.resumed == 3
    assert sorted(r["trial"] for r in found.rows) == [0, 1, 2, 3, 4]
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 5


def test_killed_process_leaves_whole_rows(tmp_path):
    """SIGKILL in the middle of a run; the next run goes on, every row once."""
    command = [sys.executable, "-m", "lengthwise", *COMMAND, "--length", "512", "--trials", "40", "--out", "k.jsonl"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    path = tmp_path / "k.jsonl"
    deadline = time.time() + 60
    while time.time() < deadline and not (path.exists() and path.stat().st_size > 5000):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    path.open("ab").write(b'{"version": 1, "key": "half a r')  # what a kill inside a write leaves
    had = len(read_rows(path))
    assert 0 < had < 40
    assert main([*COMMAND, "--length", "512", "--trials", "40", "--out", "k.jsonl", "--json"]) == 0
    lines = path.read_text().splitlines()
    assert len(lines) == 40
    assert len({json.loads(line)["key"] for line in lines}) == 40


def test_same_sample_for_every_stack(reader, tmp_path):
    found = compare(
        reader, grid(["dense", "streaming-llm:window=128"], ["needle"], [512], [0.5], 2), tmp_path / "r.jsonl"
    )
    by_seed = {}
    for row in found.rows:
        by_seed.setdefault(row["seed"], set()).add(row["prompt_head"] + row["prompt_tail"])
    assert [len(v) for v in by_seed.values()] == [1, 1]


def test_stack_that_follows_the_length(reader, tmp_path):
    jobs = grid(["yarn:factor={max(1, length/window)}"], ["needle:keys=1"], [512, 2048], [], 1)
    found = compare(reader, jobs, tmp_path / "r.jsonl")
    assert [r["stack_run"] for r in found.rows] == ["yarn:factor=1", "yarn:factor=4"]


def test_impossible_length_is_refused_and_the_rest_goes_on(tmp_path, capsys):
    assert main([*COMMAND, "--length", "20,256", "--out", "r.jsonl"]) == 0
    rows = read_rows(tmp_path / "r.jsonl")
    assert {(r["length"], r["status"]) for r in rows} == {(20, "refused"), (256, "done")}
    assert all("does not fit in 20 tokens" in r["error"] for r in rows if r["length"] == 20)
    assert main([*COMMAND, "--length", "20", "--out", "s.jsonl"]) == 2
    assert "nothing could be run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--task", "needl"], "did you mean 'needle'"),
        (["--task", "needle:keyz=2"], "did you mean 'keys'"),
        (["--depth", "0:2:3"], "outside 0"),
        (["--depth", "abc"], "is no depth"),
        (["--length", "1x"], "is no list of lengths"),
        (["--length", "0"], "is no list of lengths"),
        (["--stack", "yarm"], "did you mean 'yarn'"),
        (["--stack", "yarn:factor={lenght}"], "is not arithmetic"),
        (["--haystack", "nowhere.txt"], "there is no haystack"),
        (["--engine", "spark"], "the engine is local or ray"),
        (["--template", "xml"], "the template is one of"),
        (["--template", "chat"], "no chat template"),
        (["--model", "no/such/model"], "no model folder"),
    ],
)
def test_bad_input_is_one_line(change, message, capsys):
    assert main([*COMMAND, *change, "--out", "r.jsonl"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not Path("r.jsonl").exists() or not Path("r.jsonl").read_text()


def test_refused_stack_says_why_and_others_run(reader, tmp_path):
    jobs = grid(["dense", "yarn:factor=2 + linear:factor=2"], ["needle:keys=1"], [256], [], 1)
    rows = compare(reader, jobs, tmp_path / "r.jsonl").rows
    assert [r["status"] for r in rows] == ["done", "refused"]
    assert "position" in rows[1]["error"]


class Broken:
    """A subject that fails on some trials."""

    stacks = True

    def __init__(self, reader: LocalModel, fails) -> None:
        self.reader, self.fails, self.asked, self.sizes = reader, fails, 0, reader.sizes

    def about(self):
        return self.reader.about()

    def answer(self, sample, stack, most):
        self.asked += 1
        if self.fails(self.asked):
            raise RuntimeError("the lights went out\nin the hall")
        return self.reader.answer(sample, stack, most)


def test_failed_samples_are_marked_tried_again_later_and_a_dead_cell_is_left(reader, tmp_path):
    jobs = grid(["dense"], ["needle:keys=1"], [256, 300], [], 6)
    broken = Broken(reader, lambda n: n <= 3)  # the first three: the cell is given up, the next one works
    found = compare(broken, jobs, tmp_path / "r.jsonl")
    first, second = found.rows[:6], found.rows[6:]
    assert {r["status"] for r in first} == {"failed"}
    assert "the lights went out in the hall" in first[0]["error"]
    assert "not tried after 3 failures" in first[5]["error"]
    assert {r["status"] for r in second} == {"done"}
    again = compare(reader, jobs, tmp_path / "r.jsonl")
    assert again.resumed == 6
    assert {r["status"] for r in again.rows} == {"done"}
    assert len(read_rows(tmp_path / "r.jsonl")) == 12


def test_full_disk_stops_clearly_and_keeps_what_is_there(tmp_path):
    """A limit on the size of files stands for the full disk."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        "from lengthwise.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *COMMAND, "--length", "256", "--trials", "20", "--out", "d.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    rows = read_rows(tmp_path / "d.jsonl")
    assert 0 < len(rows) < 20
    assert (tmp_path / "d.jsonl").read_bytes().endswith(b"\n")
    assert main([*COMMAND, "--length", "256", "--trials", "20", "--out", "d.jsonl", "--json"]) == 0
    assert len(read_rows(tmp_path / "d.jsonl")) == 20


def test_store_refuses_what_is_not_rows(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(BadInput, match=r"x\.jsonl:1 is not a row of results"):
        Store(tmp_path / "x.jsonl")
    (tmp_path / "y.txt").write_text("one line of something else")
    with pytest.raises(BadInput, match="not a row of results"):
        Store(tmp_path / "y.txt")
    assert (tmp_path / "y.txt").read_text() == "one line of something else"


def test_rows_hold_any_line_break(tmp_path):
    store = Store(tmp_path / "x.jsonl")
    row = {"version": VERSION, "key": "k", "status": "done", "answer": "one\u2028two\x85three"}
    store.append(row)
    store.close()
    assert Store(tmp_path / "x.jsonl").rows == [row]


def test_key_depends_on_what_decides_the_result(reader):
    job, other = grid(["dense"], ["needle"], [256], [], 2)
    runner = Runner(reader, Settings())
    assert runner.key(job) != runner.key(other)
    assert runner.key(job) != Runner(reader, Settings(haystack="noise")).key(job)
    assert runner.key(job) != Runner(reader, Settings(max_new_tokens=3)).key(job)


def test_grids():
    assert parse_lengths("1k,4k") == [1024, 4096]
    assert parse_depths("0:1:5") == [0, 0.25, 0.5, 0.75, 1]
    assert parse_depths("0.1,0.9") == [0.1, 0.9]
    jobs = grid(["dense", "dense"], ["needle", "common-words"], [256, 128], [0, 1], 3)
    assert [j.length for j in jobs] == sorted(j.length for j in jobs)
    assert len(jobs) == 2 * (2 * 3 + 3)  # two lengths; the needle at two depths, the other at none
    assert [j.length for j in grid(["dense"], ["problems"], [256, 512], [0, 1], 2)] == [512, 512]
