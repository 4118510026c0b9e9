"""The main job on a tiny model: answers, evidence, several questions, saved and interrupted readings, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

import lengthwise
import tiny as tiny_models
from lengthwise import auto
from lengthwise._ask import Answer, ask, ask_all
from lengthwise._reader import LEAD, Interrupted, Reader, frame
from lengthwise.cli import app
from lengthwise.core.facts import facts_of_config
from lengthwise.documents import Document, encode
from lengthwise.errors import BadInput, LengthwiseError, SessionError

WINDOW = 512
TEXT = " ".join(
    f"The {a} of {b} is {i}." for i, (a, b) in enumerate([("key", "red"), ("cat", "Oslo"), ("sum", "all")] * 90)
)
QUESTIONS = ["What is the key of red?", "Where is the cat?"]
XL3M = "xl3m:segment=100,overlap=20,zoom=40,top=2"


@pytest.fixture(scope="module")
def tiny() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A random model whose tokens are bytes and a few merges, with a window of 512."""
    tokenizer = tiny_models.tokenizer([TEXT], 340, "<e>")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        initializer_range=0.15,
        eos_token_id=0,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model")
    for part in tiny:
        part.save_pretrained(path)
    return str(path)


def documents(text: str = TEXT) -> list[Document]:
    return [Document("a.txt", text)]


def plain_answer(tiny, text: str, question: str, count: int) -> str:
    model, tokenizer = tiny
    prompt = frame(question, tokenizer)
    ids = torch.cat([prompt.head, encode(text, tokenizer)[0], prompt.after])[None]
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_within_the_window_the_answer_is_the_plain_models(tiny) -> None:
    text = TEXT[:700]
    got = ask(documents(text), QUESTIONS[0], model=tiny, max_new_tokens=12)
    assert got.stack == "dense"
    assert got.answer == plain_answer(tiny, text, QUESTIONS[0], 12)
    assert got.ledger.tokens_written > 0


def test_evidence_is_where_the_models_own_attention_is(tiny) -> None:
    """The strongest passage against attention probabilities of the unmodified model, eager."""
    model, tokenizer = tiny
    text = TEXT[:700]
    got = ask(documents(text), QUESTIONS[0], model=tiny, max_new_tokens=1)
    prompt = frame(QUESTIONS[0], tokenizer)
    ids, offsets = encode(text, tokenizer)
    full = torch.cat([prompt.head, ids, prompt.after])[None]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(full, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    mass = sum(a[0, :, -1].amax(0) for a in attentions)[len(prompt.head) : len(prompt.head) + len(ids)]
    first = got.evidence[0]
    assert first.text == text[first.start : first.end]
    shares = mass.unfold(0, 32, 1).sum(-1) / mass.sum()
    at = int((shares - first.weight).abs().argmin())
    assert abs(float(shares[at]) - first.weight) < 1e-4
    assert first.start <= offsets[at][0] < first.end
    assert first.weight > 0.8 * float(shares.max())


@torch.no_grad()
def test_probes_are_the_plain_models_probabilities(tiny) -> None:
    model, tokenizer = tiny
    ids = encode(TEXT, tokenizer)[0]
    prompts = [frame(q, tokenizer) for q in QUESTIONS]
    with lengthwise.stack(XL3M).on(model) as run:
        reader = Reader(run, tokenizer, prompts, ids, None, None, None, "tiny")
        reader._probe(50, 150, range(2))
        run.ledger.consulted["xl3m"] += 1
    for index, prompt in enumerate(prompts):
        full = torch.cat([prompt.head, ids[50:150], prompt.after])
        logp = torch.log_softmax(model(full[None]).logits[0].float(), -1)
        start = len(prompt.head) + 100 + len(prompt.lead)
        want = [float(logp[start + i - 1, t]) for i, t in enumerate(prompt.question)]
        probe = reader.probes[50, 150, index]
        assert torch.allclose(probe.question, torch.tensor(want), atol=1e-4)
        assert torch.allclose(probe.next, logp[-1], atol=1e-4)


@pytest.mark.parametrize("stack", ["dense", "auto", XL3M, "infllm:init=8,local=128,block=16,top=2,chunk=32,cached=4"])
def test_several_questions_are_answered_as_if_asked_alone(tiny, stack: str) -> None:
    text = TEXT if stack != "dense" else TEXT[:900]
    together = ask_all(documents(text), QUESTIONS, model=tiny, stack=stack, max_new_tokens=8)
    alone = [ask(documents(text), q, model=tiny, stack=stack, max_new_tokens=8) for q in QUESTIONS]
    assert [a.answer for a in together] == [a.answer for a in alone]
    assert [a.evidence for a in together] == [a.evidence for a in alone]
    assert together[0].ledger.tokens_read < sum(a.ledger.tokens_read for a in alone)


SAVED = [
    "dense",
    "int8:residual=32",
    "offload:hot=32",
    "streaming-llm:window=100",
    "sirllm:entropy=60,recent=60",
    "infllm:init=8,local=128,block=16,top=2,chunk=32,cached=4,reps=2",
    "infllm:init=8,local=128,block=16,top=2,chunk=32,cached=4,rule=max",
    XL3M,
]


@pytest.mark.parametrize("stack", SAVED)
def test_a_saved_reading_is_not_read_again(tiny, tmp_path: Path, stack: str) -> None:
    kwargs = {"model": tiny, "stack": stack, "max_new_tokens": 8, "save": tmp_path}
    first = ask(documents(), QUESTIONS[0], **kwargs)
    again = ask(documents(), QUESTIONS[0], **kwargs)
    other = ask(documents(), QUESTIONS[1], **kwargs)
    fresh = ask(documents(), QUESTIONS[1], model=tiny, stack=stack, max_new_tokens=8)
    assert again.answer == first.answer
    assert again.evidence == first.evidence
    assert other.answer == fresh.answer
    assert again.ledger.tokens_read < 0.5 * first.ledger.tokens_read


def stopper(calls: int) -> Callable[[], bool]:
    left = [calls]

    def stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    return stop


@pytest.mark.parametrize("stack", ["streaming-llm:window=100", "sirllm:entropy=60,recent=60", XL3M])
def test_an_interrupted_reading_goes_on_where_it_was(tiny, tmp_path: Path, stack: str) -> None:
    kwargs = {"model": tiny, "stack": stack, "max_new_tokens": 8}
    whole = ask(documents(TEXT * 2), QUESTIONS[0], **kwargs)
    with pytest.raises(Interrupted, match="ask again with the same --save"):
        ask(documents(TEXT * 2), QUESTIONS[0], save=tmp_path, stop=stopper(2), **kwargs)
    rest = ask(documents(TEXT * 2), QUESTIONS[0], save=tmp_path, **kwargs)
    assert rest.answer == whole.answer
    assert rest.ledger.tokens_read < whole.ledger.tokens_read


def test_a_reading_of_something_else_is_refused(tiny, tmp_path: Path) -> None:
    ask(documents(), QUESTIONS[0], model=tiny, stack="streaming-llm:window=100", max_new_tokens=2, save=tmp_path)
    with pytest.raises(SessionError, match="another text"):
        ask(documents(TEXT[1:]), QUESTIONS[0], model=tiny, stack="streaming-llm:window=100", save=tmp_path)
    with pytest.raises(SessionError, match="another stack"):
        ask(documents(), QUESTIONS[0], model=tiny, stack="streaming-llm:window=120", save=tmp_path)
    saved = tmp_path / "session.safetensors"
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(SessionError, match="not a readable session"):
        ask(documents(), QUESTIONS[0], model=tiny, stack="streaming-llm:window=100", save=tmp_path)


def test_auto_follows_its_rule() -> None:
    facts = facts_of_config(LlamaConfig(max_position_embeddings=1000))
    need = 900 * facts.kv_bytes_per_token * 32
    assert auto.choose(facts, 900, need)[0] == "dense"
    assert auto.choose(facts, 900, need - 1)[0] == "int8"
    assert auto.choose(facts, 900, need // 2)[0] == "int8 + offload"
    assert auto.choose(facts, 1001, need)[0] == "xl3m"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"question": "  "}, "empty"),
        ({"question": "why " * 600}, "do not fit the model's window"),
        ({"question": "x", "max_new_tokens": 0}, "max_new_tokens"),
        ({"question": "x", "stack": "dense", "memory": 1000}, "do not fit"),
        ({"question": "x", "stack": "xlm3"}, "did you mean 'xl3m'"),
    ],
)
def test_bad_input_is_one_clear_line(tiny, kwargs: dict, message: str) -> None:
    question = kwargs.pop("question")
    with pytest.raises(LengthwiseError, match=message) as caught:
        ask(documents(), question, model=tiny, **kwargs)
    assert "\n" not in str(caught.value)


def test_dense_beyond_the_window_is_warned_about_not_hidden(tiny) -> None:
    heard: list[str] = []
    ask(documents(), QUESTIONS[0], model=tiny, stack="dense", max_new_tokens=2, note=heard.append)
    assert any("beyond the trained window" in line for line in heard)


def test_prefill_refuses_to_ignore_a_prompt_method(tiny) -> None:
    with lengthwise.stack("xl3m").on(tiny[0]) as run, pytest.raises(BadInput, match="question apart"):
        run.prefill(torch.ones(1, 10, dtype=torch.long))


def test_the_frame_is_the_chat_template_or_a_plain_question(tiny) -> None:
    tokenizer = tiny[1]
    plain = frame("Why?", tokenizer)
    assert tokenizer.decode(plain.after) == LEAD + " Why?" + "\nAnswer:"
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}>"
    try:
        chat = frame("Why?", tokenizer)
    finally:
        tokenizer.chat_template = None
    assert tokenizer.decode(chat.head) == "["
    assert tokenizer.decode(chat.after) == LEAD + " Why?" + "]>"


def test_the_command_prints_json_alone(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(TEXT[:600])
    result = CliRunner().invoke(
        app, ["ask", str(file), "-q", "Where?", "--model", folder, "--max-new-tokens", "4", "--json"]
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {"version", "answer", "evidence", "ledger", "stack", "model"} <= set(found)
    assert all({"file", "start", "end", "text", "weight"} == set(p) for p in found["evidence"])
    assert found["evidence"][0]["file"] == str(file)


def test_the_command_prints_answer_evidence_and_ledger(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(TEXT)
    arguments = ["ask", str(file), "-q", "Where?", "-q", "Who?", "--model", folder, "--max-new-tokens", "4"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "Evidence" in result.stdout
    assert "Ledger" in result.stdout
    assert "query-key pairs scored" in result.stdout
    assert "xl3m" in result.stderr


def test_answer_is_a_value(tiny) -> None:
    got = ask(documents(TEXT[:300]), "Who?", model=tiny, max_new_tokens=2)
    assert isinstance(got, Answer)
    assert json.loads(json.dumps(got.to_json()))["stack"] == "dense"
