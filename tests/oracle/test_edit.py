"""An edited cache against one made by hand: a float64 Llama whose held keys and values are cut and joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lengthwise
import tiny
from lengthwise.core import edit, saved
from lengthwise.core.attach import Run
from lengthwise.core.session import Session
from lengthwise.errors import BadInput, SessionError
from reference import Held, Reference

IDS = tiny.tokens(101)[0]
EDITS = {
    "replaced by more": (30, 37, 12),
    "replaced by fewer": (30, 43, 5),
    "replaced by as many": (30, 37, 7),
    "inserted": (63, 63, 9),
    "deleted": (20, 41, 0),
    "at the start": (0, 11, 3),
    "start deleted": (0, 11, 0),
    "at the end": (90, 101, 4),
    "end deleted": (90, 101, 0),
    "appended": (101, 101, 6),
    "nothing": (50, 50, 0),
}


def by_hand(model: Any, ids: Tensor, start: int, stop: int, new: Tensor) -> Reference:
    """What followed the edit keeps its un-rotated keys and its values, and only stands elsewhere."""
    old, out = Reference(model), Reference(model)
    old.read(ids)
    if start:
        out.read(ids[:start])
    if len(new):
        out.read(new)
    for mine, its in zip(out.held, old.held, strict=True):
        tail = Held(its.layer, its.k, its.v, its.positions)
        tail.keep(torch.arange(stop, len(ids)))
        mine.k, mine.v = torch.cat([mine.k, tail.k], 1), torch.cat([mine.v, tail.v], 1)
        mine.positions = torch.arange(mine.k.shape[1])
    out.read_so_far = out.held[0].k.shape[1]
    return out


def read(run: Run, cache: Session, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([run.model(p[None], past_key_values=cache).logits[0] for p in ids.split(5)])


@pytest.mark.parametrize("name", ["llama", "llama-mha"])
@pytest.mark.parametrize("spot", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("stack", ["dense", "offload:hot=16,pages=1"])
def test_equals_a_cache_joined_by_hand(name: str, spot: tuple[int, int, int], stack: str) -> None:
    model, (start, stop, count) = tiny.model(name), spot
    new, after = tiny.tokens(40, seed=5)[0, :count], tiny.tokens(12, seed=6)[0]
    want = by_hand(model, IDS, start, stop, new).read_all(after, 5)
    with lengthwise.stack(stack).on(model) as run:
        cache = run.cache()
        read(run, cache, IDS)
        before = run.ledger.tokens_read
        done = edit.replace(cache, IDS, start, stop, new)
        assert run.ledger.tokens_read - before == done.read == count
        assert (done.dropped, done.moved) == (stop - start, 0 if count == stop - start else 101 - stop)
        assert cache.get_seq_length() == 101 + count - (stop - start)
        got = read(run, cache, after)
    torch.testing.assert_close(got.double(), want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_moved_keys_are_those_of_a_new_reading(name: str) -> None:
    """In the first layer keys depend on their token alone, so that the turn must be exact; whatever the layout."""
    model, new = tiny.model(name), tiny.tokens(9, seed=5)[0]
    after = torch.cat([IDS[:30], new, IDS[33:]])
    with lengthwise.stack("dense").on(model) as run:
        cache, fresh = run.cache(), run.cache()
        read(run, cache, IDS)
        if edit.refusals(run):
            with pytest.raises(SessionError, match="sliding-window"):
                edit.replace(cache, IDS, 30, 33, new)
            assert "sliding" in run.plans
            return
        edit.replace(cache, IDS, 30, 33, new)
        read(run, fresh, after)
        mine, its = (c.layers[0].rows[0] for c in (cache, fresh))
        assert torch.equal(mine.positions, its.positions)
        for key, lane in mine.keys.items():
            torch.testing.assert_close(lane.read(0, 107), its.keys[key].read(0, 107), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mine.values.read(0, 107), its.values.read(0, 107), atol=1e-5, rtol=1e-4)
        # deeper values are those that were read beside the old tokens
        deep = [c.layers[1].rows[0].values.read(39, 107) for c in (cache, fresh)]
        assert (deep[0] - deep[1]).abs().max() > 1e-3


@pytest.mark.parametrize("stack", ["yarn:factor=4", "dynamic-ntk:factor=4,length=64"])
def test_other_frequencies(stack: str) -> None:
    """Frequencies of the stack turn the keys too, and a factor on cos and sin is not applied twice."""
    model, new = tiny.model("llama"), tiny.tokens(9, seed=5)[0]
    with lengthwise.stack(stack).on(model) as run:
        cache, fresh = run.cache(), run.cache()
        read(run, cache, IDS)
        edit.replace(cache, IDS, 30, 33, new)
        read(run, fresh, torch.cat([IDS[:30], new, IDS[33:]]))
        (mine,), (its,) = (c.layers[0].rows[0].keys.values() for c in (cache, fresh))
        torch.testing.assert_close(mine.read(0, 107), its.read(0, 107), atol=1e-5, rtol=1e-4)


def test_two_edits_and_a_saved_session(tmp_path: Any) -> None:
    model = tiny.model("llama")
    first, second = tiny.tokens(4, seed=7)[0], tiny.tokens(6, seed=8)[0]
    with lengthwise.stack("dense").on(model) as run:
        cache = run.cache()
        read(run, cache, IDS)
        edit.replace(cache, IDS, 80, 82, first)  # the later one first: the earlier one does not move it
        ids = torch.cat([IDS[:80], first, IDS[82:]])
        saved.save(cache, tmp_path / "s", {})
        loaded = saved.load(run, tmp_path / "s", {})
        for session in (cache, loaded):
            edit.replace(session, ids, 10, 25, second)
        after = tiny.tokens(8, seed=9)[0]
        assert torch.equal(read(run, cache, after), read(run, loaded, after))
        assert cache.layers[0].rows[0].evicted == 0


@pytest.mark.parametrize(
    ("old", "new", "want"),
    [
        ([1, 2, 3, 4], [1, 9, 4], (1, 3, 2)),
        ([1, 2, 3], [1, 2, 3], (3, 3, 3)),
        ([1, 1, 1], [1, 1, 1, 1], (3, 3, 4)),
        ([1, 1, 1, 1], [1, 1], (2, 4, 2)),
        ([], [5], (0, 0, 1)),
        ([5, 6], [7, 6], (0, 1, 1)),
        ([5, 6], [5, 7, 8], (1, 2, 3)),
    ],
)
def test_where_texts_differ(old: list[int], new: list[int], want: tuple[int, int, int]) -> None:
    a, b = (torch.tensor(x, dtype=torch.long) for x in (old, new))
    start, stop, end = edit.span(a, b)
    assert (start, stop, end) == want
    assert [*old[:start], *new[start:end], *old[stop:]] == new


@pytest.mark.parametrize(
    ("stack", "says"),
    [
        ("streaming-llm:window=40", "streaming-llm evicts tokens"),
        ("int8:residual=16", "int8 codes keys"),
        ("infllm:init=4,local=32,block=8,top=2,cached=4", "infllm keeps notes"),
        ("longheads:chunk=8,length=40", "longheads keeps notes"),
        ("self-extend:window=32", "self-extend holds the near keys"),
    ],
)
def test_stacks_whose_caches_cannot_be_edited(stack: str, says: str) -> None:
    with lengthwise.stack(stack).on(tiny.model("llama")) as run:
        cache = run.prefill(IDS[None, :60])
        with pytest.raises(SessionError, match=f"cannot be edited: {says}"):
            edit.replace(cache, IDS[:59], 3, 5, IDS[:1])


def test_what_does_not_fit() -> None:
    model = tiny.model("llama")
    with lengthwise.stack("dense").on(model) as run:
        cache = run.cache()
        read(run, cache, IDS)
        with pytest.raises(SessionError, match="holds 1 texts of 101 tokens, not one of 100"):
            edit.replace(cache, IDS[:100], 3, 5, IDS[:1])
        two = run.prefill(IDS[None, :9].repeat(2, 1))
        with pytest.raises(SessionError, match="holds 2 texts"):
            edit.replace(two, IDS[:8], 3, 5, IDS[:1])
        for start, stop, new in ((5, 3, IDS[:1]), (0, 102, IDS[:1]), (0, 101, IDS[:0])):
            with pytest.raises(BadInput, match="cannot be replaced"):
                edit.replace(cache, IDS, start, stop, new)
