"""Plans against what runs really hold, and how far stacks reach."""

from __future__ import annotations

import pytest

import tiny
from lengthwise.core.stack import stack
from lengthwise.plan.describe import describe
from lengthwise.plan.machine import available_memory, parse_bytes, total_memory
from lengthwise.plan.plan import check_fits, plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model on disk."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.model("llama").save_pretrained(path)
    return str(path)


def test_memory_decides(folder: str) -> None:
    def verdict(length: int, stack: str, memory: int) -> str:
        return plan(folder, length, [stack], memory, timing=False).stacks[0].verdict

    assert verdict(1 << 24, "yarn:factor=65536", 10**12) == "fits"
    assert verdict(1 << 24, "yarn:factor=65536", 2 * 10**9) == "does not fit"
    assert verdict(1 << 24, "lm-infinite", 2 * 10**9) == "fits"


def test_within_the_window_nothing_breaks_down(folder: str) -> None:
    for row in plan(folder, tiny.WINDOW, timing=False).stacks:
        assert row.verdict == "fits", row
        assert row.prefill_seconds is None


@pytest.mark.parametrize(
    ("text", "reaches"),
    [
        ("dense", tiny.WINDOW),
        ("int8:group=4", tiny.WINDOW),
        ("linear:factor=4", 4 * tiny.WINDOW),
        ("yarn:factor=4", 4 * tiny.WINDOW),
        ("self-extend:group=4,window=128", (tiny.WINDOW - 128) * 4 + 128),
        ("rerope:window=128", 1 << 20),
        ("lm-infinite", 1 << 20),
        ("streaming-llm:window=100", 1 << 20),
        ("sirllm:entropy=100,recent=100", 1 << 20),
        ("dynamic-ntk", 1 << 20),
        ("xl3m", 1 << 20),
    ],
)
def test_how_far_positions_reach(folder: str, text: str, reaches: int) -> None:
    loaded = tiny.model("llama")
    slack = max(8, reaches // 50)
    assert check_fits(loaded, reaches - slack, text, 10**13) == []
    beyond = check_fits(loaded, reaches + slack, text, 10**13)
    assert bool(beyond) == (reaches < 1 << 20)
    assert all(reason.startswith("beyond the trained window of 512 tokens") for reason in beyond)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox"])
@pytest.mark.parametrize(
    "text",
    [
        "dense",
        "yarn",
        "self-extend:group=8,window=128",
        "lm-infinite:window=256",
        "streaming-llm:window=256",
        "sirllm:entropy=200,recent=200",
        "infllm:local=256,block=32,top=4,cached=8,chunk=128",
        "int8:group=4",
        "int4:group=4",
        "offload:hot=256",
        "self-extend:group=8,window=128 + int8:group=4 + offload:hot=200,to=disk",
    ],
)
def test_the_estimate_is_what_a_run_holds(name: str, text: str) -> None:
    model, length = tiny.model(name), 3000
    row = plan(model, length, [text], 10**12, timing=False).stacks[0]
    if row.verdict == "refused":
        pytest.skip("; ".join(row.reasons))
    with stack(text).on(model) as run:
        run.prefill(tiny.tokens(length + 1))
        ledger = run.ledger
    disk = sum(layer.disk_bytes for layer in ledger.layers)
    assert row.disk_bytes == pytest.approx(disk, rel=0.1)
    held = max(layer.held_tokens for layer in ledger.layers if layer.kind == "full")
    assert held <= row.tokens_held
    # the estimate also counts the block that is being added, which the ledger sees after it was moved to its tier
    assert 0.85 * ledger.peak_kv_bytes <= row.kv_bytes <= 2.3 * ledger.peak_kv_bytes


def test_check_fits_names_memory_disk_and_window(folder: str) -> None:
    assert check_fits(folder, 100) == []
    assert check_fits(folder, 100, memory=1000)[0].startswith("needs ")
    assert check_fits(folder, 1000, "dense")[0].startswith("beyond the trained window")
    assert "both own the seam" in check_fits(folder, 100, "yarn + ntk")[0]
    assert "no files can be kept in /no/such" in check_fits(folder, 5000, "offload:folder=/no/such")[0]


def test_check_fits_before_the_weights_are_counted_twice() -> None:
    loaded = tiny.model("llama")
    assert check_fits(loaded, 400, memory=100_000_000) == []
    assert plan(loaded, 400, ["dense"], 100_000_000, timing=False).stacks[0].verdict == "fits"


def test_dtype_is_that_of_the_checkpoint(folder: str) -> None:
    assert describe(folder).dtype == "float32"
    assert describe(folder, dtype="bfloat16").facts.dtype_bytes == 2
    assert describe("smollm2").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("8GiB", 8 << 30), ("1.5g", 15 * 10**8), ("500 MB", 5 * 10**8), ("64", 64), ("2kib", 2048)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_there_is_some_memory() -> None:
    assert 0 < available_memory() <= total_memory()
