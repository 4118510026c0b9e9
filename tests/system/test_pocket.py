"""The shipped pocket models can do what their cards say, and the script that makes them runs."""

from __future__ import annotations

import dataclasses
import importlib
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lengthwise import models
from lengthwise.bench import problems, registry
from lengthwise.bench.build import build
from lengthwise.bench.local_model import LocalModel

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "pocket"


@pytest.fixture(scope="module")
def reader() -> LocalModel:
    return LocalModel("pocket-reader")


@pytest.mark.parametrize("name", models.SHIPPED)
def test_loads_fast_is_small_and_has_a_card(name):
    models.load("pocket-reader")  # imports do not count
    times = []
    for _ in range(3):
        begun = time.process_time()
        model, tokenizer = models.load(name)
        times.append(time.process_time() - begun)
    assert min(times) < 1.0
    folder = Path(models.resolve(name).place)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 5e6
    assert name in (folder / "README.md").read_text()
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize(
    ("task", "least"),
    [
        ("needle:keys=1", 0.9),
        ("needle:keys=8", 0.85),
        ("pairs:keys=16", 0.85),
        ("multi-query", 0.9),
        ("multi-value", 0.55),
        ("copy:words=40", 0.9),
        ("trace", 0.9),
        ("common-words", 0.8),
        ("facts", 0.9),
    ],
)
def test_reader_within_its_window(reader, task, least):
    parsed = registry.parse(task)
    scores = []
    for seed in range(12):
        sample = build(parsed, reader.sizes, 500, seed=seed)
        outcome = reader.answer(sample, "dense", reader.sizes.answer_tokens(sample))
        scores.append(parsed.score(outcome.answer, sample)[parsed.spec.metric])
    assert sum(scores) / len(scores) >= least


def test_long_reader_reads_where_the_short_one_cannot(reader):
    parsed, long = registry.parse("needle:keys=4"), LocalModel("pocket-reader-4k")
    scores = {}
    for model in (reader, long):
        samples = [build(parsed, model.sizes, 3000, depth=0.2, seed=s) for s in range(6)]
        answers = [model.answer(s, "dense", 12).answer for s in samples]
        scores[model.name] = sum(parsed.score(a, s)["recall"] for a, s in zip(answers, samples, strict=True)) / 6
    assert scores["pocket-reader-4k"] >= 0.8 > scores["pocket-reader"] + 0.3


def test_reasoner_needs_its_chain_and_its_chains_differ():
    model, tokenizer = models.load("pocket-reasoner", dtype="float32")
    tokenizer.padding_side = "left"
    draw = random.Random(5)
    some = [problems.make("sum", 6, draw) for _ in range(16)]

    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]

    def answers(start: str, temperature: float = 0.0, repeat: int = 1) -> list[str]:
        prompts = [f"\nQuestion: {p.question} Answer: {start}" for p in some for _ in range(repeat)]
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        torch.manual_seed(0)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        out = model.generate(**batch, max_new_tokens=200, pad_token_id=2, eos_token_id=[1, newline], **sampling)
        return [tokenizer.decode(row[batch["input_ids"].shape[1] :]).split("\n")[0] for row in out]

    def right(texts: list[str]) -> float:
        said = [re.search(r"</think> (\d)", "</think>" * ("</think>" not in t) + t) for t in texts]
        return sum(bool(m) and m[1] == p.answer for m, p in zip(said, some, strict=True)) / len(some)

    assert right(answers("<think>")) >= 0.9
    assert right(answers("<think></think>")) <= 0.5
    chains = answers("<think>", temperature=1.0, repeat=4)
    lengths = {len(c) for c in chains}
    assert len(lengths) > 4
    assert any("check:" in c for c in chains)
    assert any("check:" not in c for c in chains)


def test_training_script_runs_every_stage(tmp_path, monkeypatch):
    """Two steps a phase: the stages go on from one another and leave models that load."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    train = importlib.import_module("train")
    for name, stage in train.STAGES.items():
        short = tuple(train.Phase(2, 2 * p.length, min(p.length, 256), p.kind) for p in stage.phases)
        monkeypatch.setitem(train.STAGES, name, dataclasses.replace(stage, phases=short))
    monkeypatch.setattr(train, "judge", lambda *_: {"256": {"needle": 0.0}})
    tokenizer = train.build(tmp_path / "tokenizer.json")
    for name in train.STAGES:
        train.train(name, 0, tmp_path, tokenizer)
    model, loaded = models.load(str(tmp_path / "reader-4k"))
    assert model.config.max_position_embeddings == 4096
    assert len(loaded) == model.config.vocab_size


def test_training_documents_mark_the_answers(tmp_path, monkeypatch):
    """Encoding piece by piece is encoding the whole, and every span is the answer to the question before it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    data, build_tokenizer = importlib.import_module("data"), importlib.import_module("tokenizer").build
    tokenizer = build_tokenizer(tmp_path / "tokenizer.json")
    writer = data.Writer(tokenizer, 3)
    for kind in data.MIX:
        doc = writer.retrieval(400, kind, dense=True)
        text = tokenizer.decode(doc.ids, skip_special_tokens=True)
        assert tokenizer.encode(text, add_special_tokens=False).ids == [i for i in doc.ids if i > 2]
        assert doc.spans
        for tag, start, stop in doc.spans:
            assert tag == kind or tag.startswith("value")
            assert tokenizer.decode(doc.ids[:start]).rsplit("\n", 1)[1].startswith("Question: ")
            assert stop <= len(doc.ids)
            assert min(doc.weights[start:stop]) >= 1.0


def test_training_help():
    done = subprocess.run([sys.executable, SCRIPTS / "train.py", "--help"], capture_output=True, text=True, check=True)
    assert "reader-4k" in done.stdout
