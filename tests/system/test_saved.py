"""Saved sessions: they go on exactly where they were, and after any accident the old or the new state loads."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import child
import lengthwise
import tiny
from lengthwise.core import saved
from lengthwise.core.attach import Run
from lengthwise.core.session import Session
from lengthwise.errors import SessionError

STACKS = [
    "dense",
    "int8:residual=16",
    "int4:residual=16,group=4 + offload:hot=20",
    "offload:hot=0,pages=2",
    "streaming-llm:window=40",
    "lm-infinite:window=24,sinks=4 + int8:residual=16",
    "sirllm:sinks=2,entropy=40,recent=40",
    "infllm:init=4,local=32,block=8,top=2,reps=2,chunk=16,cached=4",
    "infllm:init=4,local=32,block=8,top=2,chunk=16,cached=4,rule=max",
]
ABOUT = {"model": "m", "stack": "s", "text": "t"}
IDS = tiny.tokens(260)


def read(run: Run, cache: Session, a: int, b: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([run.model(p, past_key_values=cache).logits for p in IDS[:, a:b].split(15, 1)], 1)


@pytest.mark.parametrize("text", STACKS)
def test_it_goes_on_where_it_was(text: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "s.safetensors"
    with lengthwise.stack(text).on(tiny.model("llama")) as run:
        cache = run.cache()
        read(run, cache, 0, 200)
        saved.save(cache, path, ABOUT)
        twin = saved.fork(cache)
        loaded = saved.load(run, path, ABOUT, 300)
        want = read(run, cache, 200, 260)
        assert torch.equal(read(run, loaded, 200, 260), want)
        assert torch.equal(read(run, twin, 200, 260), want)
        # and once more, from one that was loaded
        saved.save(loaded, path, ABOUT)
        again = saved.load(run, path, ABOUT)
        assert torch.equal(read(run, again, 0, 30), read(run, cache, 0, 30))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_rows_of_a_batch(tmp_path: Path) -> None:
    ids, mask = IDS[:, :120].repeat(2, 1), torch.ones(2, 120, dtype=torch.long)
    mask[1, :33] = 0
    with lengthwise.stack("int8:residual=16").on(tiny.model("llama")) as run, torch.no_grad():
        cache = run.prefill(ids, attention_mask=mask, chunk=40)
        saved.save(cache, tmp_path / "s", ABOUT)
        loaded = saved.load(run, tmp_path / "s", ABOUT)
        outs = [run.model(ids[:, -1:], attention_mask=mask, past_key_values=c).logits for c in (cache, loaded)]
    assert torch.equal(*outs)


def test_what_it_is_of(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with lengthwise.stack("dense").on(tiny.model("llama")) as run:
        cache = run.prefill(IDS[:, :20])
        saved.save(cache, path, ABOUT)
        for key in ABOUT:
            with pytest.raises(SessionError, match=f"of another {key}"):
                saved.load(run, path, {**ABOUT, key: "other"})
        with pytest.raises(SessionError, match="of another model and text"):
            saved.load(run, path, {"model": "x", "stack": "s", "text": "y"})
        with pytest.raises(SessionError, match="not a readable session"):
            saved.load(run, tmp_path / "missing", ABOUT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saved, "VERSION", "1")
            saved.save(cache, path, ABOUT)
        with pytest.raises(SessionError, match="another version"):
            saved.load(run, path, ABOUT)
        cache.broken = True
        for spent in (saved.fork, lambda c: saved.save(c, path, ABOUT)):
            with pytest.raises(SessionError, match="half way"):
                spent(cache)


def everything(session: Session) -> dict[str, list[Any]]:
    tensors = {name: [str(t.dtype), t.tolist()] for name, t in saved._sections(session, outline=False)}
    return {**tensors, "meta": [saved._meta(session)]}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With several threads the last bits of a matrix product may differ from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, Any, Any]:
    """Files of two states of one session, and what is in them."""
    path = tmp_path_factory.mktemp("two") / "s"
    with lengthwise.stack(STACKS[6]).on(tiny.model("llama")) as run:
        cache, out = run.cache(), []
        for a, b in ((0, 90), (90, 130)):
            read(run, cache, a, b)
            saved.save(cache, path, ABOUT)
            out.append((path.read_bytes(), everything(cache)))
    return out[0][0], out[1][0], out[0][1], out[1][1]


def header_size(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def test_a_torn_file_is_refused(two: Any, tmp_path: Path) -> None:
    """Cut at many places, continued with zeros (what a crash may leave), and with something behind it."""
    data, path, draw = two[0], tmp_path / "s", random.Random(0)
    cuts = [0, 1, 7, 8, 9, header_size(data) - 1, header_size(data), header_size(data) + 1, len(data) - 1]
    cuts += [draw.randrange(len(data)) for _ in range(60)]
    with lengthwise.stack(STACKS[6]).on(tiny.model("llama")) as run:
        for torn in [data[:c] for c in cuts] + [data[:c] + bytes(len(data) - c) for c in cuts] + [data + b"x"]:
            path.write_bytes(torn)
            with pytest.raises(SessionError, match="delete it") as caught:
                saved.load(run, path, ABOUT)
            assert str(caught.value).count("\n") == 0
        read(run, run.cache(), 0, 20)


def test_an_altered_byte_is_found(two: Any, tmp_path: Path) -> None:
    """One bit anywhere: refused, or it does not matter (the padding of the header)."""
    data, path, draw = two[0], tmp_path / "s", random.Random(1)
    places = [draw.randrange(header_size(data)) for _ in range(250)] + [draw.randrange(len(data)) for _ in range(100)]
    refused = 0
    with lengthwise.stack(STACKS[6]).on(tiny.model("llama")) as run:
        for place in places:
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :])
            try:
                assert everything(saved.load(run, path, ABOUT)) == two[2]
            except SessionError:
                refused += 1
    assert refused > 0.98 * len(places)


def test_sections_that_changed_places_are_found(two: Any, tmp_path: Path) -> None:
    """Of equal shape and type, in the header that safetensors reads."""
    data, path = two[0], tmp_path / "s"
    header = json.loads(data[8 : header_size(data)])
    a, b = "kv.0.0.0.hot", "kv.0.0.1.hot"
    assert header[a]["shape"] == header[b]["shape"]
    header[a], header[b] = header[b], header[a]
    text = json.dumps(header).encode().ljust(header_size(data) - 8)
    path.write_bytes(data[:8] + text + data[header_size(data) :])
    with safe_open(str(path), framework="pt") as file:
        assert a in file.keys()  # noqa: SIM118
    with (
        lengthwise.stack(STACKS[6]).on(tiny.model("llama")) as run,
        pytest.raises(SessionError, match=r"section kv\.0\.0"),
    ):
        saved.load(run, path, ABOUT)


def killed_at(step: int) -> Callable[..., None]:
    """A patch that kills this process at the `step`-th event of a save."""
    left = [step]

    def event() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(name: str, module: Any) -> None:
        real = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            event()
            out = real(*args, **kwargs)
            event()
            return out

        setattr(module, name, wrapped)

    before("_bytes", saved)
    before("fsync", os)
    before("replace", Path)
    return lambda *_: None


def test_killed_at_every_step_of_a_save(two: Any, tmp_path: Path) -> None:
    path, seen = tmp_path / "s", []
    with lengthwise.stack(STACKS[6]).on(tiny.model("llama")) as run:
        path.write_bytes(two[0])
        cache = saved.load(run, path, ABOUT)
        read(run, cache, 90, 130)
        for step in range(60):
            path.write_bytes(two[0])

            def work(step: int = step) -> str:
                killed_at(step)
                saved.save(cache, path, ABOUT)
                return "done"

            if child.run(work) == "done":
                break
            now = everything(saved.load(run, path, ABOUT))
            assert now in (two[2], two[3])
            seen.append(now == two[3])
        assert seen == sorted(seen)
        assert seen.count(False) > 20
        assert seen.count(True) >= 2
        saved.save(cache, path, ABOUT)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]  # what the dead left was removed


def test_killed_at_any_moment(two: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with lengthwise.stack(STACKS[6]).on(tiny.model("llama")) as run:
        caches = []
        for data in two[:2]:
            path.write_bytes(data)
            caches.append(saved.load(run, path, ABOUT))

        def work() -> None:
            while True:
                for cache in caches:
                    saved.save(cache, path, ABOUT)

        for i in range(8):
            pid, pipe = child.start(work)
            time.sleep(0.05 + 0.013 * i)
            os.kill(pid, signal.SIGKILL)
            child.finish(pid, pipe)
            assert everything(saved.load(run, path, ABOUT)) in two[2:]
            assert len(list(tmp_path.iterdir())) <= 2


def test_a_full_disk(two: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with lengthwise.stack(STACKS[6]).on(tiny.model("llama")) as run:
        path.write_bytes(two[0])
        cache = saved.load(run, path, ABOUT)
        read(run, cache, 90, 130)

        def work() -> list[str]:
            said = []
            for room in (0, 100, 20_000, len(two[1]) - 1):
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
                try:
                    saved.save(cache, path, ABOUT)
                except SessionError as error:
                    said.append(str(error))
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                assert everything(saved.load(run, path, ABOUT)) == two[2]
                assert len(list(tmp_path.iterdir())) == 1
            saved.save(cache, path, ABOUT)
            assert everything(saved.load(run, path, ABOUT)) == two[3]
            return said

        said = child.run(work)
    assert len(said) == 4
    assert all("could not be written (File too large)" in s and "as it was" in s and "\n" not in s for s in said)


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the file, rename, fsync of the folder: else a power cut may leave a name without content."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        events.append("sync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        events.append(f"rename to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    with lengthwise.stack("dense").on(tiny.model("llama")) as run:
        saved.save(run.prefill(IDS[:, :20]), tmp_path / "s", ABOUT)
    assert events == [f"sync s.{os.getpid()}.partial", "rename to s", f"sync {tmp_path.name}"]
