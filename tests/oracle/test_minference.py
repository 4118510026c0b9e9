"""MInference against dense masks that are built by hand, token by token; the off-line search; and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from lengthwise.attention import __main__ as program
from lengthwise.attention import _calibrate, _patterns
from lengthwise.attention._patterns import Pattern
from lengthwise.attention.minference import Minference
from lengthwise.core import compat, scoring
from lengthwise.core.grammar import parse
from lengthwise.core.stack import Stack, refusals
from lengthwise.errors import BadParameter

LENGTH = 500


def softmax_rows(q: Tensor, k: Tensor, scale: float, softcap: float | None, first: int) -> Tensor:
    """Weights [R, n] of queries q [R, D] at positions first.. over keys k [n, D]."""
    out = torch.zeros(len(q), len(k), dtype=torch.float64)
    for i in range(len(q)):
        logits = k[: first + i + 1].double() @ q[i].double() * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        out[i, : first + i + 1] = logits.softmax(0)
    return out


def by_hand(pattern: Pattern, q: Tensor, k: Tensor, scale: float, softcap: float | None) -> Tensor:
    """What each query of a head sees: bool [C, n]; queries q [C, D] stand at the last places of keys k [n, D]."""
    count, n = len(q), len(k)
    seen = torch.zeros(count, n, dtype=torch.bool)
    for a in range(0, count, 64):
        places = range(n - count + a, min(n, n - count + a + 64))
        blocks: set[int] = set()
        columns: list[int] = []
        if pattern.kind == "a-shape":
            blocks = {t // 64 for t in range(n) if t < pattern.one or places[-1] - t < pattern.two}
        elif pattern.kind == "block-sparse":
            mean = q[a : a + 64].double().mean(0)
            stop = places[-1] // 64 + 1
            score = {b: float(mean @ k[64 * b : 64 * b + 64].double().mean(0)) for b in range(stop)}
            blocks = {*sorted(score, key=lambda b: -score[b])[: pattern.one], stop - 1}
        else:
            rows = min(64, count)
            weights = softmax_rows(q[-rows:], k, scale, softcap, n - rows)
            last = range(n - rows, n)
            diagonal = [sum(float(weights[i, m - d]) for i, m in enumerate(last) if m >= d) for d in range(n)]
            forced = set(range(min(30, pattern.one)))
            order = sorted(range(n), key=lambda t: (t not in forced, -float(weights[:, t].sum())))
            columns = order[: pattern.one]
            near = set(range(min(100, pattern.two)))
            distances = sorted(range(n), key=lambda d: (d not in near, -diagonal[d]))[: pattern.two]
            blocks = {(m - d) // 64 for m in places for d in distances if m >= d}
        for m in places:
            for t in range(m + 1):
                seen[m - (n - count), t] = t // 64 in blocks or t in columns
    return seen


VARIED = [
    Pattern("vertical-slash", 40, 5),
    Pattern("a-shape", 70, 90),
    Pattern("block-sparse", 2),
    Pattern("vertical-slash", 0, 120),
]


@pytest.mark.parametrize("architecture", ["llama", "llama-mha", "gemma2"])
@pytest.mark.parametrize("varied", [True, False])
def test_every_head_sees_its_pattern(
    architecture: str, varied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids, checked = tiny.model(architecture), tiny.tokens(LENGTH), []
    method = Minference(vertical=37, slash=9)
    patterns = [Pattern("vertical-slash", 37, 9)] * 4
    if varied:
        patterns = VARIED
        _patterns.write(tmp_path / "p.json", [VARIED] * 2)
        method = Minference(patterns=str(tmp_path / "p.json"))
    original = scoring.Scorer._listed

    def check(self, lists):  # type: ignore[no-untyped-def]
        out, lse = original(self, lists)
        view = self.view
        q = view.rope.rotate(view.q, view.positions) if view.raw else view.q
        k, v = next(iter(view.kv.keys.values())).read(0, view.kv.n), view.kv.values.read(0, view.kv.n)
        for h, pattern in enumerate(patterns):
            lane = h * k.shape[0] // 4
            mask = by_hand(pattern, q[h], k[lane], view.scale, view.softcap)
            logits = q[h].double() @ k[lane].double().T * view.scale
            if view.softcap is not None:
                logits = view.softcap * torch.tanh(logits / view.softcap)
            logits = logits.masked_fill(~mask, float("-inf"))
            torch.testing.assert_close(lse[h].double(), logits.logsumexp(-1), atol=1e-5, rtol=1e-5)
            expected = logits.softmax(-1) @ v[lane].double()
            torch.testing.assert_close(out[h].double(), expected, atol=1e-5, rtol=1e-4)
        checked.append(len(view.positions))
        return out, lse

    monkeypatch.setattr(scoring.Scorer, "_listed", check)
    with Stack([method]).on(model) as run, torch.no_grad():
        cache = run.prefill(ids, chunk=170)
        model(ids[:, -1:], past_key_values=cache)
    assert checked
    assert set(checked) == {170, LENGTH - 1 - 340}  # decoding is dense


def test_columns_and_diagonals_are_sums() -> None:
    weights = torch.rand(5, 17, generator=torch.Generator().manual_seed(0))
    columns, diagonals = _patterns.columns_and_diagonals(weights)
    for t in range(17):
        assert float(columns[t]) == pytest.approx(sum(float(weights[i, t]) for i in range(5)))
        along = [float(weights[i, 12 + i - t]) for i in range(5) if 12 + i >= t]
        assert float(diagonals[t]) == pytest.approx(sum(along))


def head(n: int, dim: int = 32) -> tuple[Tensor, Tensor]:
    """Queries and keys of a head with nothing in it."""
    rng = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(1, n, dim, generator=rng), 0.1 * torch.randn(1, n, dim, generator=rng)


@pytest.mark.parametrize("planted", ["vertical-slash", "a-shape", "block-sparse"])
def test_planted_patterns_are_recalled(planted: str) -> None:
    """Columns far back, the nearest tokens, or a block that suits a block of queries: each by its own pattern best."""
    n = 1024
    q, k = head(n)
    if planted == "vertical-slash":
        k[0, [200, 333, 410, 555], 0] = q[..., 0] = 6.0
    elif planted == "a-shape":
        own = torch.arange(n) // 32
        q[0, torch.arange(n), own] = k[0, torch.arange(n), own] = 6.0
    else:
        for tile in range(16):
            q[0, 64 * tile : 64 * tile + 64, tile % 32] = 6.0
            k[0, 64 * (tile * 7 % 16) : 64 * (tile * 7 % 16) + 64, tile % 32] += 3.0
    candidates = [Pattern("vertical-slash", 34, 30), Pattern("a-shape", 64, 70), Pattern("block-sparse", 2)]
    weights = _patterns.softmax_of_last(q, k, 1.0, None, 256)[0]
    stop = torch.arange(1, 17)
    held = {p.kind: _calibrate.share_held(p, weights, q[0], k[0], stop) for p in candidates}
    assert held[planted] > 0.9
    others = {"vertical-slash": ("a-shape", "block-sparse"), "a-shape": (), "block-sparse": ("a-shape",)}
    assert all(held[other] < 0.6 for other in others[planted])
    mask = by_hand(candidates[0], q[0], k[0], 1.0, None)[-256:]
    assert held["vertical-slash"] == pytest.approx(float((weights * mask).sum() / 256), abs=1e-5)


def test_the_search_takes_the_best_candidate_and_refines_it() -> None:
    model, ids = tiny.model("llama"), tiny.tokens(400)
    candidates = [Pattern("vertical-slash", 20, 10), Pattern("a-shape", 64, 64), Pattern("block-sparse", 2)]
    found, held = _calibrate.search_patterns(model, ids, candidates=candidates)
    assert [len(layer) for layer in found] == [4, 4]
    for other in candidates:
        _, alone = _calibrate.search_patterns(model, ids, candidates=[other])
        assert all(a >= b for x, y in zip(held, alone) for a, b in zip(x, y))
    refined, more = _calibrate.search_patterns(model, ids, candidates=candidates, recall=0.97)
    assert min(min(layer) for layer in more) >= 0.97 > min(min(layer) for layer in held)
    grown = [a.one >= b.one for x, y in zip(refined, found) for a, b in zip(x, y)]
    assert all(grown)
    assert refined != found


def test_the_program_writes_a_file_that_the_method_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = tiny.model("llama"), tmp_path / "heads.json"

    def load(name: str):  # type: ignore[no-untyped-def]
        assert name == "tiny"
        return model, lambda text, **_: type("Ids", (), {"input_ids": tiny.tokens(300)})

    monkeypatch.setattr(program.models, "load", load)
    program.main(["minference", "--model", "tiny", "--length", "300", "--out", str(path), "--scale", "0.01"])
    with Stack([Minference(patterns=str(path))]).on(model) as run:
        run.prefill(tiny.tokens(300))
    assert run.ledger.acted["minference"] == 2
    other = compat.model_facts(tiny.model("llama-mha"))
    deep = type(other)(**{**vars(other), "layer_kinds": ("full",) * 3})
    assert "search them anew" in refusals([Minference(patterns=str(path))], deep)[0]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="holds no patterns"):
        parse(f"minference:patterns={tmp_path}/none.json")
    for text, message in (
        ("[]", "holds no patterns"),
        ('{"layers": [[["diagonal", 1, 1]]]}', "names"),
        ('{"layers": [[["vertical-slash", 1, 0]]]}', "names"),
    ):
        path = tmp_path / f"{len(text)}.json"
        path.write_text(text)
        with pytest.raises(BadParameter, match=message):
            Minference(patterns=str(path))
