"""What cannot work is refused in one clear line, before it runs where that is possible."""

from __future__ import annotations

import copy
import importlib.metadata
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import transformers as tf
from torch import Tensor
from transformers import PreTrainedModel

import lengthwise
import tiny
from lengthwise.core import compat, registry
from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import Frame
from lengthwise.core.seams import Positions
from lengthwise.core.spec import Spec, param
from lengthwise.errors import (
    BadInput,
    BadParameter,
    LengthwiseError,
    MethodCollision,
    NothingFired,
    SessionError,
    StackRefused,
    UnknownMethod,
)

IDS = tiny.tokens(40)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("lm-infinit", UnknownMethod, ["lm-infinit", "did you mean 'lm-infinite'"]),
        ("int8 + strem-llm", UnknownMethod, ["strem-llm", "'streaming-llm'"]),
        ("zzzzzzzz", UnknownMethod, ["zzzzzzzz", "lengthwise methods"]),
        ("yarn:factr=2", BadParameter, ["yarn", "factr", "did you mean 'factor'", "beta_fast"]),
        ("dense:factor=2", BadParameter, ["dense", "factor", "none"]),
        ("yarn:factor=two", BadParameter, ["yarn", "factor=two", "float"]),
        ("yarn:factor=nan", BadParameter, ["yarn", "factor=nan"]),
        ("yarn:factor=inf", BadParameter, ["yarn", "factor"]),
        ("int8:group=2.5", BadParameter, ["int8", "group=2.5", "int"]),
        ("rerope:logn=maybe", BadParameter, ["rerope", "logn=maybe", "bool"]),
        ("infllm:rule=best", BadParameter, ["infllm", "rule=best", "published", "max"]),
        ("lm-infinite:window=true", BadParameter, ["lm-infinite", "window=true"]),
        ("yarn:factor=0.5", BadParameter, ["yarn", "factor must be at least 1"]),
        ("sirllm:decay=0", BadParameter, ["sirllm", "decay"]),
        ("infllm:cached=4", BadParameter, ["infllm", "cached must be at least top"]),
        ("self-extend:group=3,window=16", BadParameter, ["self-extend", "divide"]),
        ("yarn:factor=2,factor=3", BadParameter, ["yarn", "'factor' is given twice"]),
        ("yarn:", BadParameter, ["yarn", "nothing follows"]),
        ("yarn:factor", BadParameter, ["yarn", "'factor' is not key=value"]),
        ("yarn:factor=", BadParameter, ["yarn", "key=value"]),
        ("yarn:factor=2,", BadParameter, ["yarn", "key=value"]),
        ("", BadParameter, ["empty", "dense"]),
        ("int8 + ", BadParameter, ["'+' with no method"]),
        (" + int8", BadParameter, ["'+' with no method"]),
        ("int8 + int8", StackRefused, ["'int8' is given 2 times"]),
        ("int8 + int4", StackRefused, ["int8 and int4", "'format'"]),
        ("yarn + lm-infinite", StackRefused, ["yarn and lm-infinite", "'position'"]),
        ("infllm + offload", StackRefused, ["infllm and offload", "'tier'"]),
        ("streaming-llm + sirllm", StackRefused, ["streaming-llm and sirllm", "'position'", "'keep'"]),
    ],
)
def test_of_the_stack(text: str, error: type[LengthwiseError], says: list[str]) -> None:
    with pytest.raises(error) as caught:
        lengthwise.stack(text)
    message = str(caught.value)
    assert "\n" not in message
    for word in says:
        assert word in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lm-infinite:window=513", ["window=513", "512"]),
        ("streaming-llm:sinks=13,window=500", ["513", "512"]),
        ("rerope:window=513", ["window=513", "512"]),
        ("self-extend:window=512", ["window=512", "512"]),
        ("infllm:local=513", ["local=513", "512"]),
        ("sirllm:sinks=4,entropy=500,recent=9", ["513", "512"]),
        ("offload:to=ram", ["to=disk"]),
        ("int8:group=8", ["group=8", "12"]),
    ],
)
def test_of_stack_and_model(text: str, says: list[str], llama: PreTrainedModel) -> None:
    with pytest.raises(StackRefused) as caught:
        lengthwise.stack(text).on(llama)
    for word in says:
        assert word in str(caught.value)


def test_everything_slides() -> None:
    for text in ("yarn", "int8", "streaming-llm:window=8"):
        with pytest.raises(StackRefused, match="mistral has no full-attention layer"):
            lengthwise.stack(text).on(tiny.model("mistral-sliding"))


def build(config: Any, auto: Any = tf.AutoModelForCausalLM) -> PreTrainedModel:
    return auto.from_config(config)  # type: ignore[no-any-return]


_SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4}
_ATTENTION: dict[str, Any] = {**_SMALL, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
MODELS: dict[str, Any] = {
    "gpt2": lambda: build(tf.GPT2Config(vocab_size=32, n_embd=32, n_layer=2, n_head=2, n_positions=64)),
    "t5": lambda: build(
        tf.T5Config(vocab_size=32, d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2), tf.AutoModelForSeq2SeqLM
    ),
    "mamba": lambda: build(tf.MambaConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2, state_size=4)),
    "mamba2": lambda: build(
        tf.Mamba2Config(vocab_size=32, hidden_size=32, num_hidden_layers=2, state_size=4, num_heads=4, head_dim=16)
    ),
    "bloom": lambda: build(tf.BloomConfig(vocab_size=32, hidden_size=32, n_layer=2, n_head=2)),
    "opt": lambda: build(
        tf.OPTConfig(
            vocab_size=32,
            hidden_size=32,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=32,
        )
    ),
    "cohere2": lambda: build(tf.Cohere2Config(**_ATTENTION, sliding_window=8)),
    "smollm3": lambda: tiny.model("smollm3"),
    "bert": lambda: build(tf.BertConfig(**_SMALL, num_attention_heads=2), tf.AutoModelForMaskedLM),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_do_not_fit_are_refused_by_name(name: str) -> None:
    with pytest.raises(StackRefused) as caught:
        lengthwise.stack("dense").on(MODELS[name]())
    assert len(caught.value.reasons) >= 1
    assert name in str(caught.value)
    assert "rotary" in str(caught.value)


def test_what_is_no_model() -> None:
    with pytest.raises(StackRefused, match="Linear is not a transformers model"):
        lengthwise.stack("dense").on(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["dense", "yarn", "lm-infinite:window=24", "int8"])
def test_a_forgotten_cache(text: str, llama: PreTrainedModel) -> None:
    with (
        pytest.raises(NothingFired, match=r"past_key_values=run\.cache\(\)"),
        lengthwise.stack(text).on(llama),
    ):
        llama.generate(IDS, max_new_tokens=2, do_sample=False)  # type: ignore[operator]
    with lengthwise.stack(text).on(llama):
        pass  # nothing ran: nothing to say


def test_a_method_that_is_never_asked(llama: PreTrainedModel) -> None:
    run = lengthwise.stack("int8 + yarn").on(llama)
    with pytest.raises(NothingFired, match="yarn of 'int8 \\+ yarn' was never asked"), run:  # noqa: PT012
        run.prefill(IDS)
        assert run.receipt()["consulted"].keys() == {"int8", "yarn"}
        del run.ledger.consulted["yarn"]
        with pytest.raises(NothingFired):
            run.receipt()


def read(run: Any, ids: Tensor = IDS, cache: Any = None, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return run.model(ids, past_key_values=cache or run.cache(), **kwargs).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("text", ["dense", "lm-infinite:window=24"])
@pytest.mark.parametrize("where", ["right", "middle"])
def test_padding_on_the_wrong_side(text: str, where: str, llama: PreTrainedModel) -> None:
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, (slice(30, 40) if where == "right" else slice(10, 12))] = 0
    with lengthwise.stack(text).on(llama) as run:
        with pytest.raises(BadInput, match="padding_side = 'left'"):
            read(run, IDS.repeat(2, 1), attention_mask=mask)
        with pytest.raises(BadInput, match="padding_side = 'left'"):
            run.prefill(IDS.repeat(2, 1), attention_mask=mask, chunk=16)
        read(run)


def test_masks_that_cannot_be_honoured(llama: PreTrainedModel) -> None:
    with lengthwise.stack("dense").on(llama) as run:
        with pytest.raises(BadInput, match="4D attention mask"):
            read(run, attention_mask=torch.ones(1, 1, 40, 40).tril())
        cache = run.cache()
        read(run, cache=cache)
        with pytest.raises(BadInput, match="padding of this batch changed"):
            read(run, IDS[:, :1], cache, attention_mask=torch.tensor([[0] * 3 + [1] * 38]))
        with pytest.raises(BadInput, match="holds 1 sequences, the batch has 2"):
            read(run, IDS[:, :1].repeat(2, 1), cache)
        with pytest.raises(BadInput, match="attention mask of 3 columns does not cover 41"):
            read(run, IDS[:, :1], cache, attention_mask=torch.ones(1, 3))


def test_decoding_that_needs_other_caches(llama: PreTrainedModel) -> None:
    ways: list[dict[str, Any]] = [{"num_beams": 2}, {"num_beams": 2, "do_sample": True}]
    with lengthwise.stack("dense").on(llama) as run:
        for way in ways:
            with pytest.raises(LengthwiseError, match="beam search"):
                llama.generate(IDS, past_key_values=run.cache(), max_new_tokens=3, **way)  # type: ignore[operator]
        with pytest.raises(LengthwiseError, match="go back"):
            llama.generate(  # type: ignore[operator]
                IDS.repeat(1, 2), past_key_values=run.cache(), max_new_tokens=8, prompt_lookup_num_tokens=3
            )
        read(run)


def test_surprise_needs_ids_and_short_passes(llama: PreTrainedModel) -> None:
    embeds = llama.get_input_embeddings()(IDS[:, :10]).detach()
    with lengthwise.stack("sirllm:sinks=2,entropy=20,recent=20").on(llama) as run:
        with pytest.raises(BadInput, match=r"sirllm .*input_ids"), torch.no_grad():
            llama(inputs_embeds=embeds, past_key_values=run.cache())
        with pytest.raises(BadInput, match="at most 21"):
            read(run)
        llama.generate(IDS, past_key_values=run.cache(), max_new_tokens=2, prefill_chunk_size=21)  # type: ignore[operator]


def test_a_pass_is_never_longer_than_a_block_when_surprise_is_needed(llama: PreTrainedModel) -> None:
    """A block's surprisals are known only when the pass is over, so a pass must be one block."""
    with lengthwise.stack("sirllm:sinks=2,entropy=200,recent=20").on(llama) as run, torch.no_grad():
        run.block, cache = 16, run.cache()
        llama(IDS[:, :16], past_key_values=cache)
        with pytest.raises(BadInput, match="at most 16"):
            llama(IDS[:, 16:], past_key_values=cache)


def test_what_a_stack_cannot_give(llama: PreTrainedModel) -> None:
    """Attention weights, gradients and copies are refused, not missing."""
    with lengthwise.stack("dense").on(llama) as run:
        with pytest.raises(BadInput, match="attention weights"):
            read(run, output_attentions=True)
        loss = llama(IDS, past_key_values=run.cache()).logits.sum()
        with pytest.raises(LengthwiseError, match="no gradient"):
            loss.backward()
        llama.zero_grad()
        with pytest.raises(LengthwiseError, match="cannot be copied"):
            copy.deepcopy(run.prefill(IDS))


@dataclass(frozen=True)
class Halved(Positions):
    """A method of another package: positions halved by a factor."""

    factor: float = param(2.0, "what positions are divided by")

    spec: ClassVar[Spec] = Spec(
        name="halved", family="position", summary="s", formula="f", seams=("position",), neutral={"factor": 1.0}
    )

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float]:
        return inv_freq / self.factor, 1.0


@dataclass(frozen=True)
class Torn(Positions):
    spec: ClassVar[Spec] = Spec(name="torn", family="position", summary="s", formula="f", seams=("position",))

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        return (Frame(),)


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = types.ModuleType("a_package_of_methods")
    module.Halved, module.Torn = Halved, Torn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_package_of_methods", module)

    def install(*points: tuple[str, str]) -> None:
        found = [importlib.metadata.EntryPoint(name, value, registry.ENTRY_POINTS) for name, value in points]
        real = importlib.metadata.entry_points

        def entry_points(**kwargs: Any) -> Any:
            return found if kwargs.get("group") == registry.ENTRY_POINTS else real(**kwargs)

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
        registry._providers.cache_clear()
        registry.get.cache_clear()

    yield install
    monkeypatch.undo()
    registry._providers.cache_clear()
    registry.get.cache_clear()


def test_a_method_of_another_package(plug_in: Any, llama: PreTrainedModel) -> None:
    plug_in(("halved", "a_package_of_methods:Halved"))
    assert "halved" in registry.names()
    with lengthwise.stack("halved + int8").on(llama) as run:
        halved = read(run)
    with lengthwise.stack("linear:factor=2 + int8").on(llama) as run:
        assert torch.equal(halved, read(run))
    with pytest.raises(StackRefused, match="halved and yarn both own the seam 'position'"):
        lengthwise.stack("halved + yarn")


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (
            [("yarn", "a_package_of_methods:Halved")],
            ["yarn", "lengthwise.position.yarn", "a_package_of_methods:Halved"],
        ),
        ([("a", "one:A"), ("a", "two:B")], ["'a'", "one:A", "two:B"]),
        ([("half", "a_package_of_methods:Halved")], ["'halved'", "'half'"]),
    ],
)
def test_collisions(plug_in: Any, points: list[tuple[str, str]], says: list[str]) -> None:
    plug_in(*points)
    with pytest.raises(MethodCollision) as caught:
        registry.get("half")
    for word in says:
        assert word in str(caught.value)


def test_a_torn_entry_point(plug_in: Any) -> None:
    plug_in(("torn", "a_package_of_methods:Missing"), ("gone", "no_such_package:X"))
    for name in ("torn", "gone"):
        with pytest.raises(LengthwiseError, match=f"'{name}'.* cannot be loaded"):
            registry.get(name)
    assert registry.get("yarn").spec.name == "yarn"


def test_errors_of_one_family() -> None:
    for error in (UnknownMethod, MethodCollision, BadParameter, StackRefused, NothingFired, BadInput, SessionError):
        assert issubclass(error, LengthwiseError)


def test_an_unknown_architecture_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "KNOWN", frozenset())
    built = tiny.CONFIGS["qwen3"]()
    model = tf.AutoModelForCausalLM.from_config(built).eval()
    with lengthwise.stack("streaming-llm:window=32").on(model) as run:
        model.generate(tiny.tokens(40), max_new_tokens=2, past_key_values=run.cache())


def test_an_unknown_architecture_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM3 leaves some layers un-rotated; without the list that says so, the trial must find out."""
    monkeypatch.setattr(compat, "NO_ROTARY_ON_SOME_LAYERS", frozenset())
    model = tf.AutoModelForCausalLM.from_config(tiny.CONFIGS["smollm3"]()).eval()
    with pytest.raises(StackRefused, match="trial of 16 tokens differed"):
        lengthwise.stack("int8").on(model)
