"""The command line as a user meets it: output, JSON, exit codes, and one line for every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lengthwise.cli as cli
import tiny
from lengthwise._ask import Answer
from lengthwise.bench.summary import Cell
from lengthwise.cli import weights
from lengthwise.core.ledger import Ledger
from lengthwise.core.registry import names
from lengthwise.evidence import Passage
from lengthwise.papers import all_papers
from lengthwise.plan import roofline
from lengthwise.plan.plan import Plan, StackPlan

COMMANDS = tuple(str(command.name) for command in cli.app.registered_commands)
WEIGHTS = tuple(f"weights {command.name}" for command in weights.app.registered_commands)
GROUPS = ("weights",)
PRINT_NO_RESULT = ("proxy", *GROUPS)
DOCS = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An 80-column terminal, a cache of its own, a machine that needs no measuring."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LENGTHWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LENGTHWISE_DEBUG", raising=False)
    rates = roofline.Rates(1e11, 1e11, 1e10, 1e10)
    line = roofline.Roofline("cpu", "a test", 1e10, rates, rates)
    monkeypatch.setattr("lengthwise.plan.plan.load_or_measure", lambda device: line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model on disk."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.model("llama").save_pretrained(path)
    return str(path)


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def run_json(*arguments: str, code: int = 0):
    return json.loads(run(*arguments, "--json", code=code))


# --- help, version, start


@pytest.mark.parametrize("command", [*COMMANDS, *GROUPS, *WEIGHTS])
def test_help_has_examples_and_fits_80_columns(command: str) -> None:
    page = run(*command.split(), "--help")
    assert f"$ lengthwise {command} " in page or f"$ lengthwise {command}\n" in page
    assert ("--json" in page) == (command not in PRINT_NO_RESULT)
    assert max(map(len, page.splitlines())) <= 80


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    page = capsys.readouterr().out
    assert all(f" {command} " in page for command in (*COMMANDS, *GROUPS))


def test_version() -> None:
    assert re.fullmatch(r"lengthwise \d+\.\d+\.\d+\S*\n", run("--version"))


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from lengthwise.cli import main; main(['--help']); main(['plan', '--help']); "
        "main(['think', '--help']); main(['think', '--strategies']); main(['proxy', '--help']); "
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'httpx', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# --- methods, explain, papers


def test_methods_lists_all_of_them() -> None:
    page = run("methods")
    assert all(name in page for name in names())
    assert max(map(len, page.splitlines())) <= 80
    specs = run_json("methods")
    assert [spec["name"] for spec in specs] == names()
    assert all({"seams", "papers", "formula", "neutral", "parameters"} <= set(spec) for spec in specs)


@pytest.mark.parametrize("name", names())
def test_every_method_can_be_shown(name: str) -> None:
    page = run("methods", name)
    (spec,) = run_json("methods", name)
    assert page.startswith(f"{name} ({spec['family']})")
    assert all(parameter["name"] in page for parameter in spec["parameters"])
    assert all(f"#{paper}" in page for paper in spec["papers"])


def test_explain_says_who_owns_what() -> None:
    result = run_json("explain", "lm-infinite + int8:group=32")
    assert result["seams"]["position"] == ["lm-infinite"]
    assert result["seams"]["format"] == ["int8"]
    assert [step["seam"] for step in result["order"]] == ["keep", "position", "select", "format"]
    assert result["refusals"] == []
    assert result["stack"] == "lm-infinite + int8:group=32"
    assert "It can run" in run("explain", "lm-infinite + int8:group=32")


def test_explain_prints_every_reason_and_exits_with_2() -> None:
    result = run_json("explain", "yarn + ntk + int8 + int4", code=2)
    assert len(result["refusals"]) == 2
    page = " ".join(run("explain", "yarn + ntk + int8 + int4", code=2).split())
    assert all(" ".join(reason.split()) in page for reason in result["refusals"])


def test_explain_on_a_model_reads_its_config_alone(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    assert run_json("explain", "lm-infinite", "--model", folder)["refusals"] == []
    (reason,) = run_json("explain", "streaming-llm", "--model", folder, code=2)["refusals"]
    assert f"the trained window of {tiny.WINDOW}" in reason
    assert run_json("explain", "infllm", "--model", "smollm2")["refusals"] == []


def test_explain_says_what_the_architecture_lacks(tmp_path: Path) -> None:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 9, "n_positions": 16}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}), encoding="utf-8")
    result = run_json("explain", "dense", "--model", str(tmp_path), code=2)
    assert "positions cannot be taken over" in result["refusals"][0]


def test_papers_are_searched() -> None:
    assert len(run_json("papers")) == len(all_papers())
    (one,) = run_json("papers", "11")
    assert one["id"] == 11
    assert one["served_by"] == ["lm-infinite"]
    assert set(one) == {"id", "title", "status", "served_by", "test", "line", "why"}
    assert "run it with" in run("papers", "11")
    works = run_json("papers", "--status", "works")
    assert works
    assert all(paper["status"] == "works" for paper in works)
    assert {p["status"] for p in run_json("papers", "--status", "not-covered")} == {"not covered"}
    assert f"{len(works)} works" in run("papers", "--status", "works")
    assert run_json("papers", "no-paper-has-this-word") == []
    assert run("papers", "no-paper-has-this-word") == ""
    assert max(map(len, run("papers").splitlines())) <= 80


# --- plan


def test_plan_says_what_fits(folder: str) -> None:
    result = run_json("plan", "--model", folder, "--length", "8k", "--memory", "8GB")
    assert (result["length"], result["window"], result["memory"]) == (8192, tiny.WINDOW, 8 * 10**9)
    verdicts = {s["stack"].partition(":")[0]: s["verdict"] for s in result["stacks"]}
    assert verdicts["dense"] == "breaks down"
    assert verdicts["yarn"] == verdicts["lm-infinite"] == verdicts["infllm"] == verdicts["xl3m"] == "fits"
    assert result["kv_bytes"] == 8192 * result["kv_bytes_per_token"]
    page = run("plan", "--model", folder, "--length", "8k", "--memory", "8GB")
    assert "dense breaks down" in page
    assert max(map(len, page.splitlines())) <= 80


def test_plan_of_a_model_that_is_not_downloaded() -> None:
    result = run_json(
        "plan", "--length", "128k", "--stack", "dense", "--stack", "yarn + ntk", "--stack", "int8 + offload"
    )
    assert result["parameters"] == 134_515_008
    assert result["kv_bytes_per_token"] == 2 * 3 * 64 * 2 * 30
    dense, refused, offload = result["stacks"]
    assert dense["verdict"] == offload["verdict"] == "breaks down"
    assert refused["verdict"] == "refused"
    assert refused["reasons"]
    assert offload["disk_bytes"] > 10 * offload["kv_bytes"] / 2
    assert dense["prefill_seconds"] > 0


def test_experts_have_memory_but_no_flops(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    config = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], **sizes, **experts}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = run_json("plan", "--model", str(tmp_path), "--length", "1k")
    assert result["prefill_flops"] is None
    assert result["notes"]
    assert result["stacks"][0]["verdict"] == "fits"
    assert "experts" in run("plan", "--model", str(tmp_path), "--length", "1k")


# --- doctor, download


def test_doctor_is_well() -> None:
    result = run_json("doctor")
    assert result["ok"]
    assert result["self_test"]["ok"]
    assert result["self_test"]["error"] <= 1e-5
    assert not result["models"]["smollm2"]["present"]
    page = run("doctor")
    assert "The core works." in page
    assert "lengthwise download smollm2" in page
    assert max(map(len, page.splitlines())) <= 80


def test_doctor_fails_when_the_core_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ImportError("torch is\nbroken")

    monkeypatch.setattr("lengthwise.core.stack.stack", broken)
    result = run_json("doctor", code=1)
    assert not result["ok"]
    assert [c["text"] for c in result["checks"] if c["state"] == "fails"] == ["ImportError: torch is broken"]
    assert "does not work" in run("doctor", code=1)


def test_download_reports_a_verified_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tmp_path / "cache" / "models" / "smollm2"

    def fetch(name: str, *, progress) -> Path:
        made.mkdir(parents=True, exist_ok=True)
        (made / "weights").write_text("new", encoding="utf-8")
        progress("fetching")
        return made

    monkeypatch.setattr("lengthwise.models.download", fetch)
    monkeypatch.setattr("lengthwise.models.verify", lambda name: made)
    result = run_json("download")
    assert (result["path"], result["files"], result["verified"]) == (str(made), 1, True)
    assert "verified" in run("download", "--force")
    assert os.listdir(made.parent) == ["smollm2"]


# --- docs/json.md


def documented(section: str) -> set[str]:
    """The names in the first column of a section's tables."""
    text = DOCS.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name.strip(" `") for cell in cells for name in cell.split(",")}


def test_json_page_has_every_field(folder: str) -> None:
    assert set(run_json("plan", "--model", folder, "--length", "1k")) <= documented("plan")
    assert {f.name for f in fields(Plan)} | {f.name for f in fields(StackPlan)} <= documented("plan")
    assert set(run_json("explain", "dense")) == documented("explain")
    assert set(run_json("methods")[0]) == documented("methods")
    assert set(run_json("doctor")) == documented("doctor")
    assert set(Ledger().to_json()) == documented("ledger")
    assert set(run_json("tasks", "needle")) == documented("tasks")
    cell = {f.name for f in fields(Cell)} - {"scores"}
    assert cell | {"version", "results", "cells"} == documented("compare")
    passage = Passage("a.txt", 0, 1, "a", 0.5)
    answer = Answer("a", [passage], Ledger(), "dense", "smollm2").to_json()
    listed = {name.removeprefix("evidence[]").removeprefix(".") for name in documented("ask")}
    assert set(answer) | set(passage.to_json()) == listed


def nested(*values: dict) -> set[str]:
    """The names of all fields of these objects."""
    return {name for value in values for name in value}


def test_json_page_has_every_field_of_think_and_trace(tmp_path: Path) -> None:
    problems, rows = str(tmp_path / "problems.jsonl"), str(tmp_path / "rows.jsonl")
    Path(problems).write_text('{"problem": "What is 3+4 mod 10?", "answer": "7"}\n', encoding="utf-8")
    drawn = ("--strategy", "majority:2", "--temperature", "1", "--seed", "1")
    thought = run_json("think", "What is 3+4 mod 10?", *drawn)
    batch = run_json("think", "--file", problems, "--out", rows, *drawn)
    strategies = run_json("think", "--strategies")
    every = nested(thought, thought["spent"], *thought["chains"], batch, batch["spent"], *strategies)
    assert every == documented("think")
    row = json.loads(Path(rows).read_text(encoding="utf-8"))
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in row)
    traced = run_json("trace", rows, "--model", "pocket-reasoner")
    chain = traced["chains"][0]
    assert nested(traced, *traced["chains"]) == documented("trace")
    (line,) = [line for line in text.splitlines() if line.startswith("| `steps` | list | `{text, kind")]
    assert all(name in line for name in chain["steps"][0])


def test_json_page_has_every_field_of_weights(tmp_path: Path) -> None:
    section = DOCS.read_text(encoding="utf-8").split("\n## weights\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z_]+)`", section))
    once = " 3+4=7; 7+5=2;"
    chains = [{"thinking": part, "text": " 2."} for part in (once, once + " check:" + once)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"problem": "What is 3+4+5 mod 10?", "chains": chains}) + "\n", encoding="utf-8")
    delta, folder = str(tmp_path / "delta.safetensors"), str(tmp_path / "model")
    model, learn = "pocket-reasoner", ("--rows", str(rows))
    got = [
        run_json("weights", "valve", model, *learn, "--rank", "1", "--epochs", "1", "--out", delta),
        run_json("weights", "apply", model, delta, "--out", folder),
        run_json("weights", "merge", model, folder, "--out", str(tmp_path / "merged")),
        run_json("weights", "think-edit", model, *learn, "--short", "20", "--long", "25", "--out", delta),
    ]
    assert nested(*got) <= named
    assert nested(got[3]["chains"], *got[3]["heads"]) <= set(re.findall(r"[a-z_]+", section))
