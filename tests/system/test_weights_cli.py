"""`lengthwise weights`: models and updates on disk, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import tiny
from lengthwise import models
from lengthwise.cli import app, main

ONCE = " 3+4=7; 7+5=2;"


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["weights", *arguments, "--json"])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Three models of one architecture: long, short, base."""
    place = tmp_path_factory.mktemp("models")
    tokenizer, out = tiny.tokenizer(["one two three"], 97 + 170, "<e>"), []
    for seed, name in enumerate(("long", "short", "base")):
        model, draw = copy.deepcopy(tiny.model("llama")), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.02 * torch.randn(p.shape, generator=draw)
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
        out.append(str(place / name))
    return out[0], out[1], out[2]


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    model, _ = models.load(str(path), device="cpu")
    return {n: p.detach() for n, p in model.named_parameters()}


def rows(tmp_path: Path) -> str:
    """Chains of two questions: short and long ones, one of them wrong."""
    path = tmp_path / "chains.jsonl"
    long = {"thinking": ONCE + " check:" + ONCE + " check:" + ONCE, "text": " 2.", "answer": "2"}
    chains = [{"thinking": ONCE, "text": " 2.", "answer": "2"}, long, {"thinking": ONCE, "text": " 9.", "answer": "9"}]
    row = {"id": "a", "problem": "What is 3+4+5 mod 10?", "expected": "2", "chains": chains}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": "b", "problem": "What is 3+4+5+0 mod 10?"}) + "\n")
    return str(path)


def test_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ((), ("merge",), ("valve",), ("think-edit",), ("apply",)):
        page = CliRunner().invoke(app, ["weights", *command, "--help"]).stdout
        assert max(map(len, page.splitlines())) <= 80
        assert command or "$ lengthwise weights merge" in page


def test_merge_writes_a_model(folders: tuple[str, str, str], tmp_path: Path) -> None:
    long, short, base = folders
    found = run("merge", long, short, "--alpha", "0.25", "--out", str(tmp_path / "m"))
    assert found["method"] == "linear"
    a, b, got = weights(long), weights(short), weights(tmp_path / "m")
    for name in a:
        torch.testing.assert_close(got[name], 0.25 * a[name] + 0.75 * b[name])
    assert models.load_tokenizer(str(tmp_path / "m"))("one")["input_ids"]
    found = run("merge", long, short, "--alpha", "0.5", "--base", base, "--density", "1", "--out", str(tmp_path / "d"))
    assert found["method"] == "dare-ties"
    assert not torch.equal(weights(tmp_path / "d")["model.norm.weight"], got["model.norm.weight"])


def test_a_direction_between_models_leads_there_and_half_way(folders: tuple[str, str, str], tmp_path: Path) -> None:
    long, short, _ = folders
    delta = str(tmp_path / "d.safetensors")
    found = run("valve", long, "--to", short, "--out", delta)
    assert found["weights"] == len(weights(long))
    a, b = weights(long), weights(short)
    for alpha, wanted in ((1.0, b), (0.5, {n: (a[n] + b[n]) / 2 for n in a})):
        out = tmp_path / f"out{alpha}"
        run("apply", long, delta, "--alpha", str(alpha), "--out", str(out))
        got = weights(out)
        for name in a:
            torch.testing.assert_close(got[name], wanted[name])
    cut = run("valve", long, "--to", short, "--rank", "2", "--out", str(tmp_path / "cut.safetensors"))
    assert cut["numbers"] < found["numbers"] / 5


def test_a_direction_is_trained_on_rows(tmp_path: Path) -> None:
    file = rows(tmp_path)
    given = ["pocket-reasoner", "--rows", file, "--rank", "2", "--batch", "2", "--epochs", "1"]
    counts = {}
    for name, more in (("one", []), ("mix", ["--mix"]), ("steps", ["--stages", "2"])):
        found = run("valve", *given, *more, "--out", str(tmp_path / f"{name}.safetensors"))
        counts[name] = (found["questions"], found["chains"], found["left_out"])
        assert found["numbers"] > 0
    assert counts == {"one": (2, 2, 2), "mix": (2, 4, 2), "steps": (2, 4, 2)}
    out = tmp_path / "model"
    run("apply", "pocket-reasoner", str(tmp_path / "one.safetensors"), "--alpha", "0", "--out", str(out))
    before = weights("pocket-reasoner")
    assert all(torch.equal(p, before[n]) for n, p in weights(out).items())


def test_think_edit_finds_heads(tmp_path: Path) -> None:
    out = str(tmp_path / "e.safetensors")
    found = run(
        "think-edit", "pocket-reasoner", "--rows", rows(tmp_path), "--short", "20", "--long", "30", "--out", out
    )
    assert found["chains"] == {"short": 4, "long": 2}
    assert len(found["heads"]) == 2  # 4 % of 48
    assert found["heads"][0]["contribution"] >= found["heads"][1]["contribution"]
    run("apply", "pocket-reasoner", out, "--out", str(tmp_path / "edited"))
    before, after = weights("pocket-reasoner"), weights(tmp_path / "edited")
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {f"model.layers.{h['layer']}.self_attn.o_proj.weight" for h in found["heads"]}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["merge", "LONG", "OTHER", "--out", "NEW"], "different architectures"),
        (["merge", "LONG", "SHORT", "--out", "LONG"], "there already"),
        (["merge", "LONG", "SHORT", "--base", "SHORT", "--alpha", "1", "--out", "NEW"], "between 0 and 1"),
        (["merge", "LONG", "SHORT", "--alpha", "nan", "--out", "NEW"], "alpha is nan"),
        (["merge", "LONG", "SHORT", "--density", "0.5", "--out", "NEW"], "needs --base"),
        (["merge", "LONG", "SHORT", "--seed", "0", "--out", "NEW"], "needs --base"),
        (["merge", "LONG", "SHORT", "--base", "SHORT", "--density", "0", "--out", "NEW"], "density"),
        (["valve", "LONG", "--out", "NEW"], "--to MODEL, or --rows"),
        (["valve", "LONG", "--to", "SHORT", "--mix", "--out", "NEW"], "go with --rows"),
        (["valve", "LONG", "--to", "SHORT", "--epochs", "3", "--out", "NEW"], "go with --rows"),
        (["valve", "LONG", "--rows", "ROWS", "--rate", "nan", "--out", "NEW"], "rate and scale above 0"),
        (["valve", "LONG", "--rows", "ROWS", "--rate", "inf", "--out", "NEW"], "rate and scale above 0"),
        (["valve", "LONG", "--rows", "ROWS", "--rate", "0", "--out", "NEW"], "rate and scale above 0"),
        (["valve", "LONG", "--rows", "ROWS", "--mix", "--stages", "2", "--out", "NEW"], "take one of them"),
        (["valve", "LONG", "--rows", "ROWS", "--out", "NEW"], "no thinking section"),
        (["valve", "LONG", "--to", "LONG", "--out", "NEW"], "same weights"),
        (["apply", "LONG", "ROWS", "--out", "NEW"], "safetensors"),
        (["apply", "LONG", "ROWS", "--alpha", "inf", "--out", "NEW"], "alpha is inf"),
        (["think-edit", "pocket-reasoner", "--rows", "ROWS", "--out", "NEW"], "0 above 1,000"),
        (["think-edit", "OTHER", "--rows", "ROWS", "--out", "NEW"], "no linear output projection"),
        (["think-edit", "LONG", "--rows", "ROWS", "--short", "9", "--long", "3", "--out", "NEW"], "shorter than"),
    ],
)
def test_refusals(
    folders: tuple[str, str, str], arguments: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.model("gpt-neox").save_pretrained(tmp_path / "other")
    models.load_tokenizer(folders[0]).save_pretrained(tmp_path / "other")
    names = {"LONG": folders[0], "SHORT": folders[1], "OTHER": str(tmp_path / "other"), "NEW": str(tmp_path / "new")}
    names["ROWS"] = rows(tmp_path)
    assert main(["weights", *(names.get(a, a) for a in arguments)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert why in error
    assert not (tmp_path / "new").exists()
