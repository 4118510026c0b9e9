"""Tensors that grow in place: never copied, never twice in memory, and no more in memory than was written."""

from __future__ import annotations

import mmap
import resource
import sys

import pytest
import torch
import transformers as tf

import child
import lengthwise
from lengthwise.core import growing
from lengthwise.core.frames import NATIVE
from lengthwise.core.growing import Growing
from lengthwise.core.store import KV, Layout
from lengthwise.errors import StoreError

MB = 1 << 20
CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def filled(outer: int, n: int, dim: int = 64, step: int = 1000) -> Growing:
    """Slots that hold their own number, written a step at a time."""
    out = Growing(outer, (dim,), torch.float32, CPU)
    extend(out, n, step)
    return out


def extend(out: Growing, n: int, step: int = 1000) -> None:
    while out.n < n:
        a = out.n
        out.resize(min(n, a + step))
        out.tensor[:, a : out.n] = torch.arange(a, out.n)[None, :, None]


def holds(out: Growing, numbers: torch.Tensor) -> bool:
    return bool((out.tensor[:, : out.n, ::7] == numbers[None, :, None]).all()) and out.n == len(numbers)


def test_nothing_moves_and_only_what_was_written_counts() -> None:
    out = filled(3, 2000)
    where = out.tensor.data_ptr()
    for n in (2001, 9000, 40_000):
        extend(out, n)
        assert out.tensor.data_ptr() == where
        page = mmap.PAGESIZE
        assert out.nbytes() == 3 * -(-n * 256 // page) * page
    assert holds(out, torch.arange(40_000))


def test_a_small_one_is_an_ordinary_tensor() -> None:
    """Pages would take a multiple of what it holds."""
    out = filled(4, 65)
    assert out._mapping is None
    assert 65 * 4 * 256 <= out.nbytes() <= 1.5 * 65 * 4 * 256


@linux
def test_a_reservation_is_not_memory() -> None:
    def work() -> tuple[int, int]:
        filled(8, 5000)
        out = Growing(8, (128,), torch.bfloat16, CPU)
        risen = child.peak(lambda: out.reserve(10_000_000, 1 << 40))
        return risen, out.nbytes()

    risen, held = child.run(work)
    assert risen < 4 * MB
    assert held == 0


@linux
@pytest.mark.parametrize("ahead", [1 << 20, 1 << 12])
def test_there_is_never_a_second_copy(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not when it outgrows its reservation, which it does several times with the small one."""
    monkeypatch.setattr(growing, "_AHEAD", ahead)

    def work() -> tuple[int, bool]:
        filled(8, 5000)
        kept = []
        risen = child.peak(lambda: kept.append(filled(8, 50_000)))
        return risen, holds(kept[0], torch.arange(50_000))

    risen, right = child.run(work)
    assert right
    assert risen + 8 * MB >= 50_000 * 8 * 256
    assert risen < 1.15 * 50_000 * 8 * 256 + 8 * MB  # one of eight slices at a time


@linux
def test_keeping_few_gives_memory_back() -> None:
    def work() -> list[tuple[int, int, bool, int]]:
        filled(8, 5000).keep(torch.arange(0, 5000, 2))
        before, out, got = child.resident(), filled(8, 30_000), []
        for slots in (torch.arange(0, 30_000, 2), torch.arange(5, 15_000, 10), torch.arange(0)):
            numbers = out.tensor[0, slots, 0].clone()
            risen = child.peak(lambda slots=slots: out.keep(slots))
            got.append((child.resident() - before, out.nbytes(), holds(out, numbers), risen))
        return got

    for rss, held, right, risen in child.run(work):
        assert right
        assert risen < 16 * MB
        assert abs(rss - held) < 16 * MB
        assert held <= 15_000 * 8 * 256 * 1.1
    assert held == 0


@linux
def test_a_bounded_store_is_flat_in_memory_at_ten_times_the_length() -> None:
    def work() -> list[int]:
        kv = KV({NATIVE: Layout()}, Layout(), 8, 64, torch.float32, CPU)
        seen, before, out = 0, child.resident(), []
        for times in (3, 30):
            while seen < times * 4096:
                if kv.n > 3072:
                    kv.keep(torch.cat([torch.arange(4), torch.arange(kv.n - 3068, kv.n)]))
                x = torch.full((8, 1024, 64), float(seen))
                kv.append({NATIVE: x}, x, torch.arange(seen, seen + 1024))
                seen += 1024
            out.append(child.resident() - before)
        return out

    short, long = child.run(work)
    assert short < 1.2 * 2 * 4096 * 8 * 256 + 8 * MB
    assert long - short < 10 * MB


@linux
@pytest.mark.parametrize("why", ["limit", "strict"])
def test_where_a_reservation_counts_as_use_it_grows_by_copying(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "strict":
        monkeypatch.setattr(growing, "_strict_overcommit", lambda: True)

    def work() -> tuple[bool, bool, str]:
        if why == "limit":
            now = child.resident("VmSize")
            resource.setrlimit(resource.RLIMIT_AS, (now + 4096 * MB, resource.RLIM_INFINITY))
        out = filled(4, 20_000)
        out.keep(torch.arange(0, 20_000, 3))
        try:
            Growing(4, (64,), torch.float32, CPU).reserve(1 << 40, 1 << 50)
        except StoreError as error:
            said = str(error)
        return out._mapping is None, holds(out, torch.arange(0, 20_000, 3)), said

    copied, right, said = child.run(work)
    assert copied
    assert right
    assert "no memory for 1,099,511,627,776 tokens" in said
    assert "\n" not in said


@linux
@pytest.mark.slow
def test_a_bounded_stack_is_flat_in_memory_at_ten_times_the_length() -> None:
    """The whole process, through a model: 100 MB of keys and values pass by, a window stays."""
    config = tf.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=2048, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(config).eval()

    def work() -> list[int]:
        out = []
        with lengthwise.stack("streaming-llm:window=1020,sinks=4").on(model) as run:
            cache = run.cache()
            for length in (2500, 25_000):
                run.prefill(torch.ones(1, length, dtype=torch.long), cache=cache)
                out.append(child.resident())
                assert run.ledger.layers[0].held_tokens <= run.stack.tokens_held(length, run.facts)
        return out

    short, long = child.run(work)
    assert 22_500 * 2 * run_bytes(config) > 80 * MB
    assert long - short < 20 * MB


def run_bytes(config: tf.LlamaConfig) -> int:
    """Bytes of one token in one layer."""
    return 2 * config.num_key_value_heads * config.head_dim * 4
