"""Several sessions in one pass are as good as each alone: ragged, joining, leaving, forked, under many stacks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import tiny
from lengthwise.core import saved
from lengthwise.core.attach import Run
from lengthwise.core.session import Session
from lengthwise.core.stack import stack
from lengthwise.core.together import Together
from lengthwise.errors import BadInput, SessionError

STACKS = {
    "dense": 1e-5,
    "lm-infinite:sinks=2,window=16,limit=16": 1e-5,
    "yarn:factor=2.0": 1e-5,
    "sirllm:sinks=2,entropy=24,recent=8,decay=0.5": 1e-4,
    "lazy-eviction:budget=24,window=4": 1e-4,
    "int8:group=12,residual=8": 0.05,
}


def read(run: Run, sessions: Sequence[Session], pieces: Sequence[Tensor]) -> list[Tensor]:
    """The last hidden states [n, H] of each session's new tokens."""
    lengths = [len(p) for p in pieces]
    batch = Together(sessions, lengths)
    ids = torch.zeros(len(pieces), max(lengths), dtype=torch.long)
    for i, piece in enumerate(pieces):
        ids[i, : len(piece)] = piece
    with torch.no_grad():
        out = run.anatomy.decoder(input_ids=ids, position_ids=batch.positions(), past_key_values=batch, use_cache=True)
    return [out[0][i, :n] for i, n in enumerate(lengths)]


def alone(run: Run, pieces: Sequence[Tensor]) -> list[Tensor]:
    """One sequence read in the same pieces by a cache of its own."""
    cache, hidden, whole = run.cache(), list[Tensor](), torch.empty(0, dtype=torch.long)
    for piece in pieces:
        whole = torch.cat([whole, piece])
        for _ in run.feed(whole[None], cache, chunk=1024, hidden=hidden):
            pass
    return [h[0] for h in hidden]


@pytest.mark.parametrize("text", STACKS)
def test_rows_that_come_and_go_are_read_as_if_alone(text: str) -> None:
    model = tiny.model("llama")
    texts = [tiny.tokens(100, seed)[0] for seed in range(3)]
    cuts = [[0, 5, 6, 7, 12, 13, 14], [0, 3, 9, 10], [0, 1, 2]]  # the second joins late, the third later still
    if "eviction" not in text and "sirllm" not in text:  # those read little at once
        cuts[0] = [0, *(c + 85 for c in cuts[0][1:])]
        cuts[1].append(99)
    pieces = [[t[a:b] for a, b in pairwise(c)] for t, c in zip(texts, cuts)]
    with stack(text).on(model) as run:
        wanted = [alone(run, p) for p in pieces]
        got: list[list[Tensor]] = [[], [], []]
        sessions = [run.cache() for _ in texts]
        for turn in range(6):
            joined = [i for i in range(3) if 0 <= turn - i < len(pieces[i])]
            new = read(run, [sessions[i] for i in joined], [pieces[i][turn - i] for i in joined])
            for i, hidden in zip(joined, new):
                got[i].append(hidden)
    for mine, its in zip(got, wanted):
        assert len(mine) == len(its) > 1
        for a, b in zip(mine, its):
            torch.testing.assert_close(a, b, atol=STACKS[text], rtol=STACKS[text])


@pytest.mark.parametrize("name", ["qwen3", "gpt-neox", "gemma3", "mistral-sliding"])
def test_other_architectures(name: str) -> None:
    model = tiny.model(name)
    texts = [tiny.tokens(70, seed)[0] for seed in range(2)]
    with stack("dense").on(model) as run:
        sessions = [run.cache(), run.cache()]
        first = read(run, sessions, [texts[0][:50], texts[1][:7]])
        second = read(run, sessions, [texts[0][50:51], texts[1][7:60]])
    for i, (a, b) in enumerate([(50, 51), (7, 60)]):
        with torch.no_grad():
            whole = model.base_model(texts[i][None, :b], use_cache=False)[0][0]
        torch.testing.assert_close(torch.cat([first[i], second[i]]), whole, atol=2e-5, rtol=1e-4)
        assert a + len(second[i]) == b


@pytest.mark.parametrize("text", STACKS)
def test_a_fork_goes_its_own_way(text: str) -> None:
    model, (begun, left, right) = tiny.model("llama"), (tiny.tokens(n, n)[0] for n in (100, 9, 11))
    parts = [begun[a : a + 5] for a in range(0, 100, 5)]  # what evicts reads in small pieces
    singles = [[t[i : i + 1] for i in range(len(t))] for t in (left, right)]
    with stack(text).on(model) as run:
        wanted = [torch.cat(alone(run, [*parts, *s])[len(parts) :]) for s in singles]
        session = run.cache()
        for part in parts:
            read(run, [session], [part])
        fork = saved.fork(session)
        got: list[list[Tensor]] = [[], []]
        for a, b in zip(*singles):
            for i, hidden in enumerate(read(run, [session, fork], [a, b])):
                got[i].append(hidden)
        got[1] += [read(run, [fork], [one])[0] for one in singles[1][len(left) :]]
        for mine, its in zip(got, wanted):
            torch.testing.assert_close(torch.cat(mine), its, atol=STACKS[text], rtol=STACKS[text])


def test_the_ledger_counts_all_rows_of_a_pass() -> None:
    with stack("dense").on(tiny.model("llama")) as run:
        sessions = [run.cache(), run.cache()]
        read(run, sessions, [tiny.tokens(5)[0], tiny.tokens(8)[0]])
        receipt = run.ledger.layers[0]
        assert (receipt.held_tokens, receipt.queries) == (13, 13)
        assert receipt.pairs == receipt.dense_pairs == 4 * (15 + 36)


def test_nothing_is_left_of_a_session_that_leaves() -> None:
    with stack("int8").on(tiny.model("llama")) as run:
        stays, leaves = run.cache(), run.cache()
        read(run, [stays, leaves], [tiny.tokens(5)[0]] * 2)
        row, gone = weakref.ref(leaves.layers[0].rows[0]), weakref.ref(leaves)
        del leaves
        gc.collect()
        assert gone() is None
        assert row() is None
        read(run, [stays], [tiny.tokens(1)[0]])
        assert run.ledger.layers[0].held_tokens == 6


def test_what_cannot_be_one_pass_is_refused() -> None:
    model = tiny.model("llama")
    ids = tiny.tokens(3, batch=2)
    with stack("dense").on(model) as run, stack("dense").on(model) as other:
        one, two = run.cache(), run.cache()
        with pytest.raises(BadInput, match="only once"):
            Together([one, one], [1, 1])
        with pytest.raises(BadInput, match="at least one token"):
            Together([one, two], [1, 0])
        with pytest.raises(SessionError, match="one run"):
            Together([one, other.cache()], [1, 1])
        batch = Together([one, two], [3, 2])
        with pytest.raises(BadInput, match="no attention mask"):
            model(ids, attention_mask=torch.ones_like(ids), past_key_values=batch)
        with pytest.raises(BadInput, match="2 rows of 2 tokens"):
            model(ids[:, :2], past_key_values=batch)
        two.broken = True
        with pytest.raises(SessionError, match="failed half way"):
            read(run, [one, two], [ids[0], ids[1]])
        assert not one.broken
        two.broken = False
        assert len(read(run, [one, two], [ids[0], ids[1]])) == 2
