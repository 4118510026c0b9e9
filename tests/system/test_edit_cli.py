"""`lengthwise edit` on a tiny model: what it prints and writes, and that asking goes on from the edited reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import tiny as tiny_models
from lengthwise.cli import app
from lengthwise.cli.edit import place
from lengthwise.errors import BadInput, LengthwiseError

TEXT = "\n".join(f"def step_{i}(x):\n    return x * {i} + {i * 7 % 13}" for i in range(24))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model whose tokens are bytes and a few merges."""
    tokenizer = tiny_models.tokenizer([TEXT], 340, "<e>")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.15, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def reading(model: str, tmp_path: Path) -> tuple[str, Path]:
    """A file that was read with --save."""
    file = tmp_path / "a.py"
    file.write_text(TEXT)
    run("ask", str(file), "-q", "What?", "--stack", "dense", "--save", str(tmp_path / "r"), "-m", model)
    return str(tmp_path / "r"), file


def run(*arguments: str, code: int = 0) -> Any:
    more = ["--max-new-tokens", "3"] if arguments[0] == "ask" else []
    result = CliRunner().invoke(app, [*arguments, *more])
    if code == 0:
        assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def test_asking_goes_on_from_the_edited_reading(reading: tuple[str, Path], model: str) -> None:
    folder, file = reading
    found = json.loads(
        run(
            "edit", folder, str(file), "--replace", "x * 5", "--with", "x - 123", "-m", model, "--check", "--json"
        ).stdout
    )
    assert file.read_text() == TEXT.replace("x * 5", "x - 123")
    assert found["read"] < 10
    assert found["moved"] > 200
    assert found["flops"] < 0.15 * found["flops_again"]
    assert found["compared"] == 32
    assert 0 <= found["agreed"] <= 32
    assert found["divergence"] >= 0
    again = json.loads(
        run("ask", str(file), "-q", "What?", "--stack", "dense", "--save", folder, "-m", model, "--json").stdout
    )
    assert again["ledger"]["tokens_read"] < 60
    assert any("had been read before" in note for note in again["ledger"]["notes"])


def test_inserting_deleting_and_another_file(reading: tuple[str, Path], model: str, tmp_path: Path) -> None:
    folder, file = reading
    shown = run("edit", folder, str(file), "--at", "0", "--insert", "# top\n", "-m", model).stdout
    assert "less than reading it again" in shown
    assert file.read_text() == "# top\n" + TEXT
    other = tmp_path / "b.py"
    at = str(len(TEXT) - 10)
    run("edit", folder, str(file), "--at", at, "--delete", "5", "--output", str(other), "-m", model)
    assert file.read_text() == "# top\n" + TEXT
    assert other.read_text() == ("# top\n" + TEXT)[: int(at)] + ("# top\n" + TEXT)[int(at) + 5 :]
    run("ask", str(other), "-q", "What?", "--stack", "dense", "--save", folder, "-m", model)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--replace", "nowhere"], "does not occur"),
        (["--replace", "return"], "occurs 24 times"),
        (["--replace", ""], "does not occur"),
        ([], "say what to change"),
        (["--replace", "x * 5", "--at", "3"], "say what to change"),
        (["--replace", "x * 5", "--delete", "3"], "go with --at"),
        (["--at", "3"], "--at goes with"),
        (["--at", "100000", "--insert", "x"], "outside of the text"),
        (["--at", "0", "--delete", str(len(TEXT))], "nothing would be left"),
    ],
)
def test_edits_that_cannot_be_made(reading: tuple[str, Path], model: str, arguments: list[str], says: str) -> None:
    folder, file = reading
    result = run("edit", folder, str(file), *arguments, "-m", model, code=2)
    assert isinstance(result.exception, BadInput)
    assert says in str(result.exception)
    assert file.read_text() == TEXT


def test_readings_that_cannot_be_edited(reading: tuple[str, Path], model: str, tmp_path: Path) -> None:
    folder, file = reading
    edit = ["--at", "0", "--insert", "x", "-m", model]

    def refused(*arguments: str) -> str:
        result = run(*arguments, code=2)
        assert isinstance(result.exception, LengthwiseError)
        return str(result.exception)

    assert "holds no reading" in refused("edit", str(tmp_path), str(file), *edit)
    (tmp_path / "c.py").write_text(TEXT + "\n")
    assert "of another text" in refused("edit", folder, str(tmp_path / "c.py"), *edit)
    (tmp_path / "d.py").write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert "name another file by --output" in refused("edit", folder, str(tmp_path / "d.py"), *edit)
    coded = str(tmp_path / "coded")
    run("ask", str(file), "-q", "What?", "--stack", "int8:residual=16,group=8", "--save", coded, "-m", model)
    assert "int8 codes keys" in refused("edit", coded, str(file), *edit)
    other = LlamaForCausalLM.from_pretrained(model)
    other.model.embed_tokens.weight.data *= 2
    other.save_pretrained(tmp_path / "other")
    tiny_models.tokenizer([TEXT], 340, "<e>").save_pretrained(tmp_path / "other")
    edit[-1] = str(tmp_path / "other")
    assert "of another model" in refused("edit", folder, str(file), *edit)
    path = Path(folder) / "session.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert "not a readable session" in refused("edit", folder, str(file), *edit[:-1], model)
    assert file.read_text() == TEXT


def test_place() -> None:
    assert place("abcabc", "cab", "X", None, 0, "") == (2, 5, "X")
    assert place("abcabc", None, "", 1, 2, "yz") == (1, 3, "yz")
