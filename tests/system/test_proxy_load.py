"""64 clients at once before an endpoint that misbehaves: each gets an answer or a clear error, and none hangs."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("openai")

from load import KINDS, LONG, load


def test_every_request_ends_and_cancelled_ones_stop_costing() -> None:
    got = load(clients=64, strategy="short-m@k:m=1,k=2")
    assert len(got.ended) == 64
    assert got.wrong == []  # "hung" is one of the wrong ends
    assert {e.kind for e in got.ended} == set(KINDS)
    assert got.sent_later == 0  # nothing is written when all have ended
    for ended in got.ended:
        if ended.kind in ("leave", "endless"):  # two chains of LONG tokens each would have come
            assert 0 < ended.paid < LONG / 4, ended
        if ended.kind == "leave":
            assert ended.paid - ended.sent_at_leave < LONG / 20, ended


def test_the_tokens_told_are_those_that_the_server_sent() -> None:
    got = load(clients=12, strategy="majority:k=3", kinds=("fine",))
    assert got.wrong == []
    assert all(e.told == e.paid for e in got.ended), got.ended
    assert {e.how for e in got.ended} == {"answer"}
