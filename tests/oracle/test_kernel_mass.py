"""Block mass, and single slots beside block lists: against dense softmax, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lengthwise.core.frames import FAR
from lengthwise.errors import BadInput
from lengthwise.kernels import BlockLists, attend, block_mass, build, library

NAN = float("nan")
WAYS = ["naive", "flex", *build.ISAS]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The oracle, torch's flex_attention, and the kernel on every instruction set."""
    if request.param in ("naive", "flex"):
        monkeypatch.setenv("LENGTHWISE_KERNELS", request.param)
    elif request.param not in library.available():
        pytest.skip(f"{request.param} cannot run here")
    else:
        monkeypatch.setenv("LENGTHWISE_ISA", request.param)
    return request.param


def draw(heads: int, count: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Numbers [heads, count, dim] as a view with odd strides into a buffer of NaN."""
    x = torch.randn(heads, count, dim, generator=torch.Generator().manual_seed(seed))
    buffer = torch.full((heads + 1, count + 70, dim + 3), NAN, dtype=dtype)
    return buffer[:heads, 1 : count + 1, 2 : dim + 2].copy_(x)


@pytest.mark.parametrize(("rows", "slots"), [(1, 1), (1, 65), (64, 64), (63, 1000), (130, 700), (5, 128)])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 3, 33), (9, 3, 64)])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_mass_is_the_softmax_summed_over_blocks(
    way: str, rows: int, slots: int, heads: int, kv_heads: int, dim: int, softcap: float | None
) -> None:
    q, k = draw(heads, rows, dim), draw(kv_heads, slots, dim, seed=1)
    at = torch.arange(slots)
    q_at = torch.arange(rows) * (slots // rows) + slots % rows  # not one behind the other
    got, pairs = block_mass(q, k, q_positions=q_at, k_positions=at, scale=0.4, softcap=softcap)
    assert got.shape == (heads, rows, -(-slots // 64))
    expected, counted = torch.zeros_like(got, dtype=torch.float64), 0
    for h in range(heads):
        for i in range(rows):
            seen = int(q_at[i]) + 1
            logits = k[h * kv_heads // heads, :seen].double() @ q[h, i].double() * 0.4
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            weights = logits.softmax(0)
            counted += seen
            for b in range(-(-seen // 64)):
                expected[h, i, b] = weights[64 * b : 64 * b + 64].sum()
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=2e-4)
    assert pairs == counted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mass_in_half_precision(way: str, dtype: torch.dtype) -> None:
    q, k, at = draw(6, 70, 64, dtype), draw(2, 300, 64, dtype, seed=1), torch.arange(300)
    got, _ = block_mass(q, k, q_positions=at[-70:], k_positions=at, scale=0.2)
    wide, _ = block_mass(q.float(), k.float(), q_positions=at[-70:], k_positions=at, scale=0.2)
    torch.testing.assert_close(got, wide, atol=2e-3, rtol=2e-2)


def test_mass_of_large_scores_and_of_nothing(way: str) -> None:
    """One key far above the others; and a query that stands before every key."""
    q, k = torch.full((1, 2, 4), 30.0), torch.zeros(1, 200, 4)
    k[0, 130] = 30.0
    q_at, k_at = torch.tensor([5, 400]), torch.arange(200) + 10
    got, pairs = block_mass(q, k, q_positions=q_at, k_positions=k_at, scale=1.0)
    assert not got[0, 0].any()
    torch.testing.assert_close(got[0, 1], torch.tensor([0.0, 0.0, 1.0, 0.0]), atol=1e-30, rtol=0.0)
    assert pairs == 200


def test_threads_do_not_change_the_mass(way: str) -> None:
    q, k, at = draw(6, 200, 32), draw(3, 500, 32, seed=1), torch.arange(500)
    one, _ = block_mass(q, k, q_positions=at[-200:], k_positions=at, scale=0.3, threads=1)
    two, _ = block_mass(q, k, q_positions=at[-200:], k_positions=at, scale=0.3, threads=5)
    assert torch.equal(one, two)


def test_mass_refuses(way: str) -> None:
    q, k, at = torch.zeros(4, 3, 8), torch.zeros(2, 9, 8), torch.arange(9)
    for bad_q, bad_k, bad_at in (
        (q[:3], k, at),
        (q, k[..., :4], at),
        (q.bfloat16(), k, at),
        (q, k, at.int()),
        (q, k, at.flip(0)),
        (q, k, at[1:]),
    ):
        with pytest.raises(BadInput):
            block_mass(bad_q, bad_k, q_positions=at[:3], k_positions=bad_at, scale=1.0)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("rows", "slots", "tile"), [(100, 300, 64), (1, 65, 64), (300, 300, 128)])
def test_columns_beside_blocks(way: str, groups: int, rows: int, slots: int, tile: int) -> None:
    q, k, v = draw(4, rows, 16), draw(2, slots, 16, seed=1), draw(2, slots, 16, seed=2)
    rng = torch.Generator().manual_seed(3)
    blocks = torch.rand(groups, -(-rows // tile), -(-slots // 64), generator=rng) < 0.3
    columns = torch.rand(groups, slots, generator=rng) < 0.2
    lists = BlockLists.of(blocks, tile).with_columns(columns)
    at = torch.arange(slots)
    call = {"q_positions": at[-rows:], "k_positions": at, "scale": 0.5, "rules": ((150, 3),)}
    out, lse, pairs = attend((q,), (k,), v, lists=lists, frames=((0, FAR),), **call)  # type: ignore[arg-type]
    counted = 0
    for h in range(4):
        for i in range(rows):
            place, g = slots - rows + i, h * groups // 4
            seen = [
                n
                for n in range(place + 1)
                if (blocks[g, i // tile, n // 64] or columns[g, n]) and (place - n < 150 or n < 3)
            ]
            counted += len(seen)
            if not seen:
                assert not out[h, i].any()
                assert lse[h, i] == float("-inf")
                continue
            logits = k[h // 2, seen].double() @ q[h, i].double() * 0.5
            torch.testing.assert_close(lse[h, i].double(), logits.logsumexp(0), atol=1e-5, rtol=1e-5)
            expected = logits.softmax(0) @ v[h // 2, seen].double()
            torch.testing.assert_close(out[h, i].double(), expected, atol=1e-5, rtol=1e-4)
    assert pairs == counted


def test_columns_in_half_precision(way: str) -> None:
    q, k, v = (draw(h, 200, 64, torch.bfloat16, seed=h) for h in (4, 2, 2))
    blocks, columns = torch.zeros(2, 4, 4, dtype=torch.bool), torch.arange(200) % 3 == 0
    blocks[:, :, 1] = True
    lists, at = BlockLists.of(blocks).with_columns(columns.expand(2, -1)), torch.arange(200)
    out, _, _ = attend((q,), (k,), v, q_positions=at, k_positions=at, lists=lists, scale=0.2)
    seen = (columns | (at // 64 == 1)) & (at <= at[:, None])
    logits = q.float() @ k.float().repeat_interleave(2, 0).transpose(1, 2) * 0.2
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    torch.testing.assert_close(out.float(), weights @ v.float().repeat_interleave(2, 0), atol=2e-2, rtol=2e-2)


def test_columns_that_do_not_fit(way: str) -> None:
    x, at = torch.zeros(2, 130, 8), torch.arange(130)
    offsets, blocks = torch.tensor([[0, 1, 2, 3]]), torch.tensor([1, 1, 1], dtype=torch.int32)

    def call(columns: list[int], counts: list[int]) -> None:
        lists = BlockLists(
            offsets, blocks, columns=torch.tensor(columns, dtype=torch.int32), column_offsets=torch.tensor([counts])
        )
        attend((x,), (x,), x, q_positions=at, k_positions=at, lists=lists, scale=1.0)

    call([3, 5, 128], [0, 2, 3, 3])
    for columns, counts in (
        ([130], [0, 1, 1, 1]),  # not a slot
        ([-1], [0, 1, 1, 1]),
        ([70], [0, 1, 1, 1]),  # in a block of the list
        ([3, 3], [0, 2, 2, 2]),
        ([3, 5], [0, 1, 1, 1]),  # too many
        ([3], [0, 1, 2, 2]),
    ):
        with pytest.raises(BadInput):
            call(columns, counts)
    with pytest.raises(BadInput, match="need their offsets"):
        BlockLists(offsets, blocks, columns=blocks)
    with pytest.raises(BadInput, match="column offsets must be"):
        BlockLists(offsets, blocks, columns=blocks, column_offsets=offsets[:, 1:])
    with pytest.raises(BadInput, match="columns of block lists must be int32"):
        BlockLists(offsets, blocks, columns=blocks.long(), column_offsets=offsets)
    with pytest.raises(BadInput, match="pages are whole blocks"):
        BlockLists(offsets, blocks).with_columns(torch.ones(1, 130, dtype=torch.bool)).pages()
