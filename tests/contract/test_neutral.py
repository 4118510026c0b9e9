"""At its neutral settings every method equals the plain model: on every architecture, through prefill and generate."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import tiny
from lengthwise.core import compat, registry
from lengthwise.core.attach import Run
from lengthwise.core.spec import Method
from lengthwise.core.stack import Stack, refusals

NEUTRAL = {
    m.spec.name: m(**m.spec.neutral)
    for m in registry.all_methods()
    if m.spec.neutral is not None and m.spec.seams != ("prompt",)
}
LONG = 101  # longer than three sliding windows
NEW = 6
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}


def accepted() -> list[tuple[str, str]]:
    pairs = []
    for name in tiny.ARCHITECTURES:
        facts = compat.model_facts(tiny.model(name))
        pairs += [(method, name) for method, made in NEUTRAL.items() if not refusals([made], facts)]
    return pairs


@functools.cache
def plain(architecture: str, length: int) -> Tensor:
    return tiny.plain_logits(tiny.model(architecture), tiny.tokens(length))


@functools.cache
def plain_text(architecture: str, length: int) -> Tensor:
    return tiny.model(architecture).generate(tiny.tokens(length), **GREEDY)  # type: ignore[no-any-return, operator]


def attached(method: str | Method, model: PreTrainedModel, block: int | None = None) -> Run:
    run = Stack([NEUTRAL[method] if isinstance(method, str) else method]).on(model)
    if not any(getattr(m, "needs_surprise", False) for m in run.stack.methods):  # these want a pass to be one block
        run.block = min(run.block, block or run.block)
    return run


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_registry_is_covered() -> None:
    assert {"dense", "lm-infinite", "infllm", "sirllm", "yarn", "int4", "offload"} <= set(NEUTRAL)
    refused = {(m, a) for m in NEUTRAL for a in tiny.ARCHITECTURES} - set(accepted())
    assert all(a == "mistral-sliding" for _, a in refused), refused


@pytest.mark.parametrize(("method", "architecture"), accepted())
def test_logits_equal_the_plain_model(method: str, architecture: str) -> None:
    model = tiny.model(architecture)
    for length, chunk, block in ((1, 1, None), (63, 13, None), (LONG, 37, 16)):
        ids = tiny.tokens(length)
        with attached(method, model, block) as run, torch.no_grad():
            cache = run.cache()
            parts = [model(part, past_key_values=cache).logits for part in ids.split(chunk, 1)]
        close(torch.cat(parts, 1), plain(architecture, length))


@pytest.mark.parametrize(("method", "architecture"), accepted())
def test_generate_writes_the_same_tokens(method: str, architecture: str) -> None:
    model, ids = tiny.model(architecture), tiny.tokens(LONG)
    with attached(method, model, 50) as run:
        whole = model.generate(ids, past_key_values=run.cache(), **GREEDY)  # type: ignore[operator]
        went_on = model.generate(ids, past_key_values=run.prefill(ids, chunk=29), **GREEDY)  # type: ignore[operator]
    assert whole.tolist() == plain_text(architecture, LONG).tolist()
    assert went_on.tolist() == whole.tolist()
    assert run.ledger.tokens_read == LONG - 1


@pytest.mark.parametrize("method", NEUTRAL)
def test_seeded_sampling(method: str, llama: PreTrainedModel) -> None:
    ids = tiny.tokens(40)
    sampled: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True, "temperature": 0.9, "top_p": 0.95}
    torch.manual_seed(3)
    expected = llama.generate(ids, num_return_sequences=2, **sampled)  # type: ignore[operator]
    torch.manual_seed(3)
    with attached(method, llama) as run:
        got = llama.generate(ids, num_return_sequences=2, past_key_values=run.cache(), **sampled)  # type: ignore[operator]
    assert got.tolist() == expected.tolist()


class Recorder(BaseStreamer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.got: list[int] = []

    def put(self, value: Tensor) -> None:
        self.got += value.flatten().tolist()

    def end(self) -> None:
        self.got.append(-1)


class AfterThree(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.start + 3)


@pytest.mark.parametrize("method", NEUTRAL)
def test_streamer_and_stopping(method: str, llama: PreTrainedModel) -> None:
    ids = tiny.tokens(40)
    expected, got = Recorder(), Recorder()
    stop = StoppingCriteriaList([AfterThree(40)])
    llama.generate(ids, streamer=expected, stopping_criteria=stop, **GREEDY)  # type: ignore[operator]
    with attached(method, llama) as run:
        llama.generate(ids, streamer=got, stopping_criteria=stop, past_key_values=run.cache(), **GREEDY)  # type: ignore[operator]
    assert got.got == expected.got
    assert len(got.got) == 40 + 3 + 1


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "cohere"])
@pytest.mark.parametrize("method", NEUTRAL)
def test_left_padded_batch(method: str, architecture: str) -> None:
    """Every row of a left-padded batch reads as if it were alone, also when a chunk of a row is all padding."""
    if (method, architecture) not in accepted():
        pytest.skip("refused")
    model, lengths = tiny.model(architecture), (9, 40, 71)
    rows = [tiny.tokens(n, seed=n) for n in lengths]
    ids = torch.cat([torch.nn.functional.pad(r, (71 - r.shape[1], 0)) for r in rows])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(r), (71 - r.shape[1], 0)) for r in rows])
    alone = [model.generate(r, **GREEDY)[0, -NEW:].tolist() for r in rows]  # type: ignore[operator]
    with attached(method, model, 17) as run, torch.no_grad():
        logits = model(ids, attention_mask=mask, past_key_values=run.cache()).logits
        whole = model.generate(ids, attention_mask=mask, past_key_values=run.cache(), **GREEDY)  # type: ignore[operator]
        cache = run.prefill(ids, attention_mask=mask, chunk=12)
        went_on = model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)  # type: ignore[operator]
    for row, length in zip(range(3), lengths, strict=True):
        close(logits[row, -length:], tiny.plain_logits(model, rows[row])[0])
    assert whole[:, -NEW:].tolist() == alone
    assert went_on[:, -NEW:].tolist() == alone


@pytest.mark.parametrize("method", NEUTRAL)
def test_left_padded_batch_read_by_stock_chunks(method: str, llama: PreTrainedModel) -> None:
    rows = [tiny.tokens(n, seed=n) for n in (9, 40)]
    ids = torch.cat([torch.nn.functional.pad(r, (40 - r.shape[1], 0)) for r in rows])
    alone = [llama.generate(r, **GREEDY)[0, -NEW:].tolist() for r in rows]  # type: ignore[operator]
    with attached(method, llama) as run:
        got = llama.generate(  # type: ignore[operator]
            ids, attention_mask=(ids != 0).long(), past_key_values=run.cache(), prefill_chunk_size=12, **GREEDY
        )
    assert got[:, -NEW:].tolist() == alone


@pytest.mark.parametrize("method", [m for m in NEUTRAL if not getattr(NEUTRAL[m], "needs_surprise", False)])
def test_prompt_of_embeddings(method: str, llama: PreTrainedModel) -> None:
    embeds = llama.get_input_embeddings()(tiny.tokens(40)).detach()
    expected = llama.generate(inputs_embeds=embeds, **GREEDY)  # type: ignore[operator]
    with attached(method, llama) as run:
        got = llama.generate(inputs_embeds=embeds, past_key_values=run.cache(), **GREEDY)  # type: ignore[operator]
    assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("method", NEUTRAL)
@pytest.mark.parametrize("expected", [0, 20, 400])
def test_the_cache_grows(method: str, expected: int, llama: PreTrainedModel) -> None:
    """A cache reserved for less, nothing, or more than what comes holds the same."""
    ids = tiny.tokens(150)
    with attached(method, llama) as run, torch.no_grad():
        cache = run.cache(expected)
        parts = [llama(part, past_key_values=cache).logits for part in ids.split([90] + [1] * 60, 1)]
    close(torch.cat(parts, 1), plain("llama", 150))
    assert run.ledger.peak_kv_bytes < 3 * 400 * run.facts.kv_bytes_per_token * 2


@pytest.mark.parametrize("method", NEUTRAL)
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_bfloat16(method: str, architecture: str) -> None:
    """In bfloat16 a stack is no further from the float32 model than the plain model is (within a factor)."""
    if (method, architecture) not in accepted():
        pytest.skip("refused")
    model, ids = tiny.model(architecture, torch.bfloat16), tiny.tokens(LONG)
    exact = tiny.plain_logits(tiny.model(architecture), ids)
    theirs = (tiny.plain_logits(model, ids).float() - exact).abs()
    with attached(method, model) as run, torch.no_grad():
        cache = run.cache()
        ours = torch.cat([model(part, past_key_values=cache).logits for part in ids.split([50, 50, 1], 1)], 1)
    off = (ours.float() - exact).abs()
    assert off.mean() < 1.3 * theirs.mean()
    assert off.max() < 2.5 * theirs.max()


def test_bfloat16_dense_writes_the_same_tokens() -> None:
    model, ids = tiny.model("llama", torch.bfloat16), tiny.tokens(LONG)
    expected = model.generate(ids, **GREEDY)  # type: ignore[operator]
    with attached("dense", model) as run:
        assert model.generate(ids, past_key_values=run.cache(), **GREEDY).tolist() == expected.tolist()  # type: ignore[operator]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_eager_models(architecture: str) -> None:
    """The attention that a model would have used does not matter."""
    model, ids = tiny.model(architecture, attention="eager"), tiny.tokens(63)
    with attached("dense", model) as run, torch.no_grad():
        close(model(ids, past_key_values=run.cache()).logits, tiny.plain_logits(model, ids))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_losses_equal_the_plain_model(architecture: str) -> None:
    model, ids = tiny.model(architecture), tiny.tokens(LONG)
    expected = torch.nn.functional.cross_entropy(plain(architecture, LONG)[0, :-1], ids[0, 1:], reduction="none")
    with attached("dense", model) as run:
        close(run.losses(ids, chunk=37), expected)


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}])
@pytest.mark.parametrize("method", [m for m in NEUTRAL if "position" in NEUTRAL[m].spec.seams])
def test_models_that_scale_their_own_frequencies(method: str, rope: dict[str, Any]) -> None:
    """A method either refuses such a model, or leaves its frequencies as they are."""
    config = tiny.CONFIGS["llama"]()
    config.rope_parameters = {"rope_theta": 10_000.0, **rope}
    torch.manual_seed(0)
    model = type(tiny.model("llama"))(config).eval()
    if refusals([NEUTRAL[method]], compat.model_facts(model)):
        return
    ids = tiny.tokens(LONG)
    with attached(method, model) as run, torch.no_grad():
        close(model(ids, past_key_values=run.cache()).logits, tiny.plain_logits(model, ids))
