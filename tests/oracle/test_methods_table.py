"""The tables of docs/results/methods.md out of rows of `lengthwise compare`."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lengthwise

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_table_script", ROOT / "scripts" / "methods_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def row(stack: str, score: float, *, task: str = "needle", length: int = 512, trial: int = 0) -> dict[str, Any]:
    ledger = {"cpu_seconds": 1.0, "peak_kv_bytes": 2000.0, "pairs": 5.0, "dense_pairs": 10.0}
    return {
        "version": 1, "key": f"{stack} {task} {length} {trial} {score}",
        "status": "done", "stack": stack, "task": task,
        "length": length, "depth": 0.5, "trial": trial,
        "seed": trial, "model": "pocket-reader", "haystack": "story", "score": score, "ledger": ledger, "error": "",
    }  # fmt: skip


def test_tables_of_several_files(script: ModuleType, tmp_path: Path) -> None:
    factor = "yarn:factor={max(1, length/window)}"
    first = [row("dense", 1.0), row(factor, 0.0), row(factor, 1.0, task="trace")]
    second = [row("dense", 1.0, trial=1), row(factor, 1.0)]  # the second overrules
    files = []
    for name, rows in (("a.jsonl", first), ("b.jsonl", second)):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
        files.append(str(tmp_path / name))
    page = tmp_path / "page.md"
    page.write_text("# Prose\n\nby hand\n\n## The tables\n\nstale\n")
    assert script.main([*files, "--page", str(page), "--check"]) == 1
    assert script.main([*files, "--page", str(page)]) == 0
    assert script.main([*files, "--page", str(page), "--check"]) == 0
    text = page.read_text()
    assert text.startswith("# Prose\n\nby hand\n\n## The tables\n")
    assert "stale" not in text
    assert "### One pass key of eight (`needle:keys=8`)" in text
    assert "### A chain of variables (`trace`)" in text
    text = text.split("### A chain")[0]
    assert re.search(r"\| `yarn:factor=F` \| \*\*1.00\*\* .*1.00 s, 2 kB, 50 % \|", text)


def test_a_page_without_a_place_is_refused(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no line '## The tables'"):
        script.page_with("# Prose\n", [])


def test_every_stack_of_the_benchmark_parses_and_is_shortened(script: ModuleType) -> None:
    text = (ROOT / "benchmarks" / "methods.sh").read_text()
    lists = re.findall(r"^(?:first|more)=\(\n(.*?)^\)", text, re.MULTILINE | re.DOTALL)
    variables = dict(re.findall(r"^(\w+)='(\{.*\})'$", text, re.MULTILINE))
    stacks = [line.strip().strip('"') for part in lists for line in part.splitlines() if "${" not in line]
    assert len(stacks) > 40
    for stack in stacks:
        for name, value in variables.items():
            stack = stack.replace(f"${name}", value)
        lengthwise.stack(
            re.sub(r"\{.*?\}(?=\W|$)", "2", stack.replace("{min(256, 2**ceil(log2(max(1, (length-256)/256))))}", "2"))
        )
        assert "{" not in script.short(stack) or "2*length" in stack
