"""Code search: where code is cut, how blocks are encoded and put together, and which functions are read."""

from __future__ import annotations

import copy
import itertools
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

import lengthwise
import small_reader
from lengthwise.documents import encode
from lengthwise.errors import BadInput, BadParameter, MissingExtra
from lengthwise.prompt import _encoder, code_split
from lengthwise.prompt.code_split import CodeSplit, blocks, similarity, split, words

CODE = '''"""A module."""

import os

LIMIT = 3


@decorated
def save_report(path):
    """Write the yearly report."""
    for line in path:
        if line:
            print(line)
        else:
            raise ValueError("empty")
    return path


class Parser:
    """Reads tokens."""

    kind = "fast"

    def parseHeader(self, stream):
        try:
            match stream.read():
                case "a":
                    return 1
        except OSError:
            return None

    async def close(self): await self.stop()

print(LIMIT)
'''


class Words:
    """A look at a text of which every word is a token."""

    def __init__(self, text: str, question: str) -> None:
        self.text, self.question = text, question
        self.offsets = [(m.start(), m.end()) for m in re.finditer(r"\s*\S+", text)]


def first_lines(text: str) -> list[str]:
    return [text[a:b].strip().split("\n")[0] for (a, b), _ in split(text)]


def test_functions_methods_and_what_lies_between() -> None:
    assert first_lines(CODE) == [
        '"""A module."""', "@decorated", "class Parser:", "def parseHeader(self, stream):",
        "async def close(self): await self.stop()", "print(LIMIT)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", [CODE, "x", "\n\n", "def broken(:\n  pass\n\nthen prose\n", "a = 1", CODE * 2, CODE[:-1]]
)
def test_units_and_pieces_cover_the_text(text: str) -> None:
    found = split(text)
    assert "".join(text[a:b] for (a, b), _ in found) == text or not text.strip()
    for unit, pieces in found:
        assert (pieces[0][0], pieces[-1][1]) == unit
        assert all(p[1] == q[0] for p, q in itertools.pairwise(pieces))


def test_pieces_are_statements() -> None:
    pieces = dict(split(CODE))[split(CODE)[1][0]]
    assert [CODE[a:b].strip() for a, b in pieces] == [
        "@decorated\ndef save_report(path):", '"""Write the yearly report."""', "for line in path:", "if line:",
        'print(line)\n        else:', 'raise ValueError("empty")', "return path",
    ]  # fmt: skip


def test_the_standard_library_is_covered() -> None:
    for name in ("dataclasses", "typing", "enum"):
        text = Path(__import__(name).__file__).read_text()
        assert "".join(text[a:b] for (a, b), _ in split(text)) == text


@pytest.mark.parametrize(("count", "window", "step"), [(1, 4, 2), (4, 4, 2), (5, 4, 2), (11, 4, 3), (9, 3, 3)])
def test_blocks_are_windows_of_pieces(count: int, window: int, step: int) -> None:
    found = blocks([(10 * i, 10 * i + 10) for i in range(count)], window, step)
    covered = {c for a, b in found for c in range(a, b)}
    assert covered == set(range(10 * count))
    assert all(b - a == 10 * min(window, count) for a, b in found)
    starts = [a // 10 for a, _ in found]
    assert all(b - a <= step for a, b in itertools.pairwise(starts))


def test_names_are_taken_apart() -> None:
    assert words("getUserName2(HTTPServer, user_ids) # Parsed queries") == [
        "get", "user", "name", "http", "server", "user", "ids", "pars", "quer",
    ]  # fmt: skip


def naive_scores(text: str, question: str, window: int, step: int, pool: str) -> list[float]:
    """With dictionaries, a word at a time."""
    units = [[text[a:b] for a, b in blocks(pieces, window, step)] for _, pieces in split(text)]
    every = [block for unit in units for block in unit]
    rare = {w: math.log(1 + len(every) / sum(w in words(b) for b in every)) for b in every for w in words(b)}

    def weigh(part: str) -> dict[str, float]:
        out = {w: (1 + math.log(words(part).count(w))) * rare[w] for w in set(words(part)) if w in rare}
        length = math.sqrt(sum(x * x for x in out.values()))
        return {w: x / length for w, x in out.items()}

    def cos(a: dict[str, float], b: dict[str, float]) -> float:
        size = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
        return sum(a[w] * b.get(w, 0.0) for w in a) / size

    q, found = weigh(question), []
    for unit in units:
        parts = [weigh(block) for block in unit]
        known = {w for p in parts for w in p}
        mean = {w: sum(p.get(w, 0.0) for p in parts) / len(parts) for w in known}
        if pool == "max":
            together = {w: max(p.get(w, 0.0) for p in parts) for w in known}
        elif pool == "mean":
            together = mean
        else:
            odds = [math.exp(10 * cos(q, p)) for p in parts]
            together = {
                w: (sum(o * p.get(w, 0.0) for o, p in zip(odds, parts, strict=True)) / sum(odds) + mean[w]) / 2
                for w in known
            }
        found.append(cos(q, together))
    return found


@pytest.mark.parametrize("pool", ["max", "mean", "attention"])
@pytest.mark.parametrize(("window", "step"), [(32, 16), (3, 1)])
def test_scores_are_the_naive_ones(pool: str, window: int, step: int) -> None:
    question = "where are the lines of the yearly report written and tokens read?"
    look = Words(CODE, question)
    method = CodeSplit(window=window, step=step, pool=pool, top=1)  # type: ignore[arg-type]
    choice = method.choose(len(look.offsets), 20, look)  # type: ignore[arg-type]
    want = naive_scores(CODE, question, window, step, pool)
    assert [s for *_, s in choice.scores] == pytest.approx(want, abs=1e-5)
    ((a, b),) = choice.spans
    assert (
        CODE[look.offsets[a][0] : look.offsets[b - 1][1]].strip().startswith(first_lines(CODE)[want.index(max(want))])
    )


def test_the_best_that_fit_are_read_in_order() -> None:
    look = Words(CODE, "close the stream, print the limit, save the report")
    choice = CodeSplit(top=3).choose(len(look.offsets), 40, look)  # type: ignore[arg-type]
    assert list(choice.spans) == sorted(choice.spans)
    assert len(choice.spans) == 3
    assert sum(b - a for a, b in choice.spans) <= 40
    with pytest.raises(BadInput, match="no function fits"):
        CodeSplit().choose(len(look.offsets), 0, look)  # type: ignore[arg-type]
    assert CodeSplit().choose(len(look.offsets), len(look.offsets), look).spans == ((0, len(look.offsets)),)  # type: ignore[arg-type]


def test_a_question_without_any_known_word_takes_the_first() -> None:
    look = Words(CODE, "???")
    assert CodeSplit(top=1).choose(len(look.offsets), 30, look).spans[0][0] == 0  # type: ignore[arg-type]


def test_evidence_past_the_first_block_counts() -> None:
    """What splitting is for: the last lines of a long function decide as much as its first."""
    long = "def one():\n" + "".join(f"    a{i} = {i}\n" for i in range(90)) + "    return flush_cache()\n\n"
    other = "def two():\n" + "".join(f"    b{i} = {i}\n" for i in range(90)) + "    return None\n\n"
    scores = naive_scores(other + long, "flush the cache", 32, 16, "max")
    look = Words(other + long, "flush the cache")
    got = [s for *_, s in CodeSplit(top=1).choose(len(look.offsets), 300, look).scores]  # type: ignore[arg-type]
    assert got == pytest.approx(scores, abs=1e-5)
    assert got[1] > got[0]
    alone = split(other + long)[1][1]
    assert len(blocks(alone, 32, 16)) > 3


@torch.no_grad()
def test_the_models_own_states() -> None:
    """encoder=model: means of the plain model's last hidden states, the mean of all blocks taken away."""
    model, tokenizer = small_reader.model(), small_reader.tokenizer()
    ids, offsets = encode(CODE, tokenizer)
    with lengthwise.stack("code-split:encoder=model,window=3,step=2,top=2,pool=mean").on(model) as run:
        reader = small_reader.reader(run, CODE, "close the stream")
        choice = reader.choose(0, 300)
        units = [blocks(pieces, 3, 2) for _, pieces in split(CODE)]

    def mean(of: torch.Tensor) -> torch.Tensor:
        return model(of[None], output_hidden_states=True).hidden_states[-1][0].double().mean(0)

    def own(a: int, b: int) -> torch.Tensor:
        return ids[[i for i, (x, _) in enumerate(offsets) if a <= x < b]]

    states = [[mean(own(a, b)) for a, b in unit] for unit in units]
    middle = torch.stack([s for unit in states for s in unit]).mean(0)
    q = mean(torch.tensor(tokenizer(" close the stream")["input_ids"])) - middle
    want = []
    for unit in states:
        e = torch.stack([(s - middle) / (s - middle).norm() for s in unit]).mean(0)
        want.append(float(e @ q / e.norm() / q.norm()))
    assert [s for *_, s in choice.scores] == pytest.approx(want, abs=1e-4)


def test_through_ask() -> None:
    given: dict[str, Any] = {"model": (small_reader.model(), small_reader.tokenizer()), "max_new_tokens": 4}
    text = CODE * 3
    got = lengthwise.ask(
        [lengthwise.documents.Document("a.py", text)],
        "who writes the yearly report?",
        stack="code-split:top=1",
        **given,
    )
    assert got.evidence
    for passage in got.evidence:
        assert passage.text == text[passage.start : passage.end]
        assert text.rindex("@decorated", 0, passage.start + 12) < passage.end
    assert len(got.segments) == 3 * 6 - 2


def test_similarity_of_one_block_is_its_cosine() -> None:
    q, e = torch.tensor([1.0, 0.0]), torch.tensor([[3.0, 4.0]])
    for pool in ("max", "mean", "attention"):
        assert similarity(q, e, pool) == pytest.approx(0.6)
    assert code_split.SHARP > 0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT with room for 38 tokens of text, in a folder."""
    torch.manual_seed(4)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(small_reader.tokenizer()), max_position_embeddings=40, **sizes)
    folder = tmp_path_factory.mktemp("encoder")
    BertModel(config, add_pooling_layer=False).eval().save_pretrained(folder)
    tokenizer = copy.deepcopy(small_reader.tokenizer())
    tokenizer.pad_token = "<e>"  # sentence-transformers pads
    tokenizer.save_pretrained(folder)
    return str(folder)


def by_hand(folder: str, text: str) -> torch.Tensor:
    """The mean of an encoder's states, a window of 38 tokens at a time."""
    model, tokenizer = BertModel.from_pretrained(folder, add_pooling_layer=False).eval(), small_reader.tokenizer()
    marks = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    starts = [0, *(marks[i][0] for i in range(38, len(marks), 38)), len(text)]
    total = torch.zeros(16)
    for a, b in itertools.pairwise(starts):
        with torch.no_grad():
            states = model(torch.tensor([tokenizer(text[a:b])["input_ids"]])).last_hidden_state[0]
        total += states.mean(0) * (b - a) / len(text)
    return total


def test_an_embedding_model_of_ones_own(encoder: str) -> None:
    """Blocks longer than its window are read to their end."""
    look = Words(CODE, "who closes the stream?")
    method = CodeSplit(encoder=encoder, window=4, step=2, pool="max", top=1)
    choice = method.choose(len(look.offsets), 40, look)  # type: ignore[arg-type]
    q = by_hand(encoder, look.question)
    want = []
    for _, pieces in split(CODE):
        each = torch.stack([by_hand(encoder, CODE[a:b]) for a, b in blocks(pieces, 4, 2)])
        e = (each / each.norm(dim=1, keepdim=True)).amax(0)
        want.append(float(e @ q / e.norm() / q.norm()))
    assert [s for *_, s in choice.scores] == pytest.approx(want, abs=1e-5)
    assert any(len(small_reader.tokenizer()(CODE[a:b])["input_ids"]) > 38 for (a, b), _ in split(CODE))


def test_pieces_of_a_long_text_leave_nothing_out() -> None:
    tokenizer = small_reader.tokenizer()
    pieces = _encoder.cut(CODE, tokenizer, 20)
    assert "".join(pieces) == CODE
    assert len(pieces) > 5
    assert all(len(tokenizer(p)["input_ids"]) <= 22 for p in pieces)  # a token may split where the text is cut


def test_encoders_that_are_not_there(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Words(CODE, "close")
    with pytest.raises(BadParameter, match="encoder=word is not words, model, a folder"):
        CodeSplit(encoder="word")
    for name, message in ((f"{tmp_path}/none", "there is no folder"), (str(tmp_path), "cannot be loaded")):
        with pytest.raises(BadInput, match=message):
            CodeSplit(encoder=name).choose(len(look.offsets), 30, look)  # type: ignore[arg-type]
    (tmp_path / "modules.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    _encoder._load.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install 'lengthwise\[embed\]'"):
        CodeSplit(encoder=str(tmp_path)).choose(len(look.offsets), 30, look)  # type: ignore[arg-type]


def test_a_model_of_sentence_transformers_pools_in_its_own_way(encoder: str, tmp_path: Path) -> None:
    sentences = pytest.importorskip("sentence_transformers")
    parts = pytest.importorskip("sentence_transformers.models")
    modules = [parts.Transformer(encoder, max_seq_length=24), parts.Pooling(16, pooling_mode="max")]
    sentences.SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    model, tokenizer = BertModel.from_pretrained(encoder, add_pooling_layer=False).eval(), small_reader.tokenizer()
    with torch.no_grad():
        want = model(torch.tensor([tokenizer("close the stream")["input_ids"]])).last_hidden_state[0].amax(0)
    got = _encoder.embed(str(tmp_path), ("close the stream", CODE))
    torch.testing.assert_close(got[0], want, atol=1e-5, rtol=1e-4)
    assert _encoder._load(str(tmp_path))[1] <= 24
