"""The generated pages say what the code says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lengthwise.core.registry import all_methods
from lengthwise.papers import STATUSES, all_papers

SCRIPT = Path(__file__).parents[2] / "scripts" / "docs.py"


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lengthwise_docs_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_pages_on_disk_are_fresh(docs: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(["--check"]) == 0, capsys.readouterr().err


def test_check_names_the_stale_page(docs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(tmp_path)]
    assert docs.main([*folder, "--check"]) == 1
    assert docs.main(folder) == 0
    assert docs.main([*folder, "--check"]) == 0
    page = tmp_path / "papers.md"
    page.write_text(page.read_text(encoding="utf-8") + "by hand\n", encoding="utf-8")
    capsys.readouterr()
    assert docs.main([*folder, "--check"]) == 1
    err = capsys.readouterr().err
    assert "papers.md" in err
    assert "methods.md" not in err
    assert page.read_text(encoding="utf-8").endswith("by hand\n")


def test_pages_are_the_same_every_time(docs: ModuleType) -> None:
    assert docs.pages() == docs.pages()


def test_every_paper_has_one_row_and_the_counts_add_up(docs: ModuleType) -> None:
    page = docs.pages()["papers.md"]
    assert sorted(int(i) for i in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)) == [p.id for p in all_papers()]
    counts = {s: int(n) for s, n in re.findall(rf"^\| ({'|'.join(STATUSES)}) \| (\d+) \|", page, re.MULTILINE)}
    assert sum(counts.values()) == len(all_papers())


def test_every_method_has_a_section_with_all_its_parameters(docs: ModuleType) -> None:
    page = docs.pages()["methods.md"]
    for method in all_methods():
        section = page.split(f"\n### {method.spec.name}\n")[1].split("\n### ")[0]
        assert method.spec.test in section
        for parameter in docs.parameters(method):
            assert f"| `{parameter['name']}` |" in section


def test_every_table_is_even(docs: ModuleType) -> None:
    for name, page in docs.pages().items():
        for block in re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1, (name, block[:200])


def test_the_support_matrix_is_square_and_explains_each_refusal(docs: ModuleType) -> None:
    page = docs.pages()["support.md"]
    rows = re.findall(r"^\| \d+ \[.*?\]\(.*?\) \| (.*) \|$", page, re.MULTILINE)
    cells = [row.split(" | ") for row in rows]
    assert len(cells) == len(all_methods())
    assert all(len(row) == len(cells) and set(row) <= {"ok", "no"} for row in cells)
    assert [list(column) for column in zip(*cells, strict=True)] == cells
    explained = re.findall(r"^- (?:alone|with `.*?`): \S+", page, re.MULTILINE)
    assert len(explained) == sum(row.count("no") for row in cells)
