"""Disks that fill up, files that cannot be read, memory that is not there, processes that are killed.

Every time: one clear line, the model goes on as if nothing had been, saved sessions load, and nothing is left behind.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import child
import lengthwise
import tiny
from lengthwise.core import saved
from lengthwise.core.arena import Disk
from lengthwise.core.attach import Run
from lengthwise.core.pagefile import PageFile
from lengthwise.core.session import Session
from lengthwise.errors import SessionError, StoreError

IDS = tiny.tokens(200)
ABOUT = {"model": "m"}
INFLLM = "infllm:init=4,local=32,block=8,top=2,reps=2,chunk=16,cached=4"
STACKS = ["offload:hot=8,pages=2", "int8:residual=8 + offload:hot=8,pages=0", INFLLM]


def on_disk(text: str, folder: Path) -> str:
    return f"{text},folder={folder}"


def fails(run: Run, work: Callable[[], Any]) -> str:
    """`work` fails in one line; plain passes and a new cache of the run give what they gave before."""
    model: Any = run.model
    with torch.no_grad():
        plain, wanted = model(IDS).logits, step(run, run.prefill(IDS))
        with pytest.raises(StoreError) as caught:
            work()
        assert torch.equal(model(IDS).logits, plain)
        assert torch.equal(step(run, run.prefill(IDS)), wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file_of(cache: Session) -> PageFile:
    arena: Any = cache.layers[0].rows[0].values._arena
    file = (arena if isinstance(arena, Disk) else arena.inner)._file
    assert isinstance(file, PageFile)
    return file


def step(run: Run, cache: Session) -> Any:
    with torch.no_grad():
        return run.model(IDS[:, -1:], past_key_values=cache).logits


@pytest.mark.parametrize("text", STACKS)
def test_a_folder_that_is_not_there(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    with lengthwise.stack(on_disk(text, folder)).on(tiny.model("llama")) as run:
        with pytest.raises(StoreError, match=f"no files can be kept in {folder} .*folder=DIR"):
            run.prefill(IDS)
        folder.mkdir()
        run.prefill(IDS)


@pytest.mark.parametrize("text", STACKS)
def test_a_disk_that_fills_up(text: str, tmp_path: Path) -> None:
    """In a child whose files may not grow beyond some bytes, at the first token and in the middle."""
    places = [tmp_path / "kv", tmp_path / "saved"]
    places[0].mkdir()
    with lengthwise.stack(on_disk(text, places[0])).on(tiny.model("llama")) as run:
        cache = run.prefill(IDS)
        want = step(run, cache)
        cache = run.prefill(IDS)
        saved.save(cache, places[1] / "s", ABOUT)
        del cache

        def limited(room: int) -> None:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            try:
                run.prefill(IDS)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

        def work() -> list[str]:
            said = [fails(run, lambda room=room: limited(room)) for room in (0, 5000, 3 << 20)]
            assert torch.equal(step(run, saved.load(run, places[1] / "s", ABOUT)), want)
            assert not list(places[0].iterdir())
            return said

        for line in child.run(work):
            assert f"cannot be written to {places[0]} (File too large)" in line
            assert "free some space" in line


def cut_short(file: PageFile) -> None:
    os.ftruncate(file._file.fileno(), 100)


def unreadable(file: PageFile) -> None:
    with open(os.devnull, "wb") as other:
        os.dup2(other.fileno(), file._file.fileno())


@pytest.mark.parametrize(("harm", "why"), [(cut_short, "the file was cut short"), (unreadable, "Bad file descriptor")])
@pytest.mark.parametrize("text", STACKS)
def test_a_file_that_cannot_be_read_back(text: str, harm: Callable[[PageFile], None], why: str, tmp_path: Path) -> None:
    with lengthwise.stack(on_disk(text, tmp_path)).on(tiny.model("llama")) as run:

        def work() -> None:
            cache = run.prefill(IDS)
            saved.save(cache, tmp_path / "s", ABOUT)
            for slot in cache.layers:
                for lane in slot.rows[0].lanes():
                    if hasattr(lane._arena, "_cached"):
                        lane._arena._cached.clear()
            harm(file_of(cache))
            try:
                with pytest.raises(StoreError):  # neither saved over the good one
                    saved.save(cache, tmp_path / "s", ABOUT)
                step(run, cache)
            finally:
                with pytest.raises(SessionError, match="half way"):
                    step(run, cache)
                saved.load(run, tmp_path / "s", ABOUT)

        said = fails(run, work)
        assert f"in {tmp_path} cannot be read back ({why})" in said
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_nothing_else_is_lost_when_one_cache_fails(tmp_path: Path) -> None:
    """The file is shared: extents of the cache that failed are used again, and another cache's are untouched."""
    with lengthwise.stack(on_disk(STACKS[0], tmp_path)).on(tiny.model("llama")) as run:
        want = step(run, run.prefill(IDS))
        other = run.prefill(IDS)

        def work() -> bool:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_of(other)._file.seek(0, 2), hard))
            with pytest.raises(StoreError):
                run.prefill(IDS.repeat(1, 30))
            return torch.equal(step(run, other), want)

        assert child.run(work)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not hold to RLIMIT_AS")
@pytest.mark.parametrize("text", ["dense", "int8:residual=8", "streaming-llm:window=40"])
def test_no_memory_for_a_reservation(text: str) -> None:
    with lengthwise.stack(text).on(tiny.model("llama")) as run:

        def work() -> str:
            limit = child.resident("VmSize") + (100 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            if text != "dense":  # holds little, whatever is to come
                assert torch.isfinite(step(run, run.prefill(IDS, cache=run.cache(1 << 34)))).all()
                return ""
            return fails(run, lambda: run.prefill(IDS, cache=run.cache(1 << 34)))

        said = child.run(work)
    assert ("no memory for 17,179,869,184 tokens" in said) == (text == "dense")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_while_it_spills(how: signal.Signals, tmp_path: Path) -> None:
    """The file has no name, so there is nothing to sweep: neither while it is used nor after."""
    ready, go = os.pipe()

    def work() -> None:
        with lengthwise.stack(on_disk(STACKS[0], tmp_path)).on(tiny.model("llama")) as run:
            cache = run.prefill(IDS)
            assert file_of(cache)._file.seek(0, 2) > 5000
            os.write(go, b"x")
            while True:
                run.prefill(IDS)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pid, pipe = child.start(work)
    assert os.read(ready, 1) == b"x"
    assert not list(tmp_path.iterdir())
    os.kill(pid, how)
    assert child.finish(pid, pipe) is None
    assert not list(tmp_path.iterdir())
    os.close(ready)
    os.close(go)
