"""The HTML page: whole, safe, self-contained, and alive in a browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import fake_rows
from lengthwise.bench.report import letter, write_report
from lengthwise.bench.report.charts import Axis, log_axis, ticks
from lengthwise.bench.report.headline import slices
from lengthwise.errors import BadInput

ROWS = fake_rows.grid()
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "link", "input", "br", "wbr", "img"}


class Page(HTMLParser):
    """Elements with their attributes, the text of each script, and what is open: the page must close what it opens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data

    def count(self, tag: str, word: str = "") -> int:
        return sum(t == tag and (not word or word in (a.get("class") or "").split()) for t, a in self.elements)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "new" / "report.html"
    write_report(ROWS, out, 'A & "B" <i>', command="lengthwise compare --text '<x>'")
    return out


@pytest.fixture(scope="module")
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_page_is_whole_and_asks_nothing_of_the_network(text: str) -> None:
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text)
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["href"][1:] in ids for t, a in page.elements if t == "a" and a["href"])
    assert len(text) < 800_000


def test_page_has_every_part(text: str) -> None:
    page = Page(text)
    assert page.count("table", "standing") == 1 + 4 + 3  # all, each length, each task
    assert page.count("table", "task") == 3
    assert page.count("table", "heat") == 6 * 2  # the task without depths has none
    assert page.count("svg") == 3 * 8 + 3
    heat = [a for t, a in page.elements if t == "td" and "--q" in (a.get("style") or "")]
    assert len(heat) == 2 * (6 * 20 - 5 - 5)  # dense failed at one length, another was refused at one
    for fact in ("3f2c9a81d4e0", "AMD EPYC", "transformers 5.23", "out of memory: dense attention needs 12.4 GB here"):
        assert fact in text
    assert "lengthwise compare --text &#39;&lt;x&gt;&#39;" in text


def test_embedded_rows_are_json_and_answers_cannot_end_the_script(text: str) -> None:
    page = Page(text)
    assert len(page.scripts) == 2
    data = json.loads(page.scripts[0])
    assert len(data["rows"]) == len(ROWS)
    assert sum(data["texts"][row[10]] == fake_rows.NASTY for row in data["rows"]) == 8
    assert len(data["texts"]) == len(set(data["texts"]))
    assert "<img" not in text
    assert "<i>" not in text.replace("<i></i>", "")


def test_nothing_in_names_or_reasons_is_read_as_html(tmp_path: Path) -> None:
    rows = [row | {"stack": row["stack"] + fake_rows.NASTY, "task": fake_rows.NASTY} for row in ROWS[:40]]
    rows += [rows[0] | {"status": "failed", "error": fake_rows.NASTY, "key": "x", "trial": 99}]
    write_report(rows, tmp_path / "r.html", fake_rows.NASTY, fake_rows.NASTY)
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.count("img") == 0
    assert len(page.scripts) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger": {}},
        {"length": None, "depth": None},
        {"ledger": {"cpu_seconds": 0.0, "pairs": 0, "dense_pairs": 0, "peak_kv_bytes": 0}},
        {
            "evidence": None,
            "scores": None,
            "versions": None,
            "answer": "\ud800",
            "expected": None,
            "reference": {"a": 1},
        },
    ],
)
def test_a_single_poor_row_is_enough(changes: dict[str, Any], tmp_path: Path) -> None:
    write_report([ROWS[0] | changes], tmp_path / "r.html", "one")
    assert Page((tmp_path / "r.html").read_text(encoding="utf-8")).count("table", "standing") == 1


def test_nothing_to_report_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no rows"):
        write_report([], tmp_path / "r.html", "t")
    with pytest.raises(BadInput, match="no sample was answered: no memory"):
        write_report([ROWS[0] | {"status": "failed", "score": None, "error": "no memory"}], tmp_path / "r.html", "t")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot write"):
        write_report(ROWS[:1], tmp_path / "file" / "r.html", "t")


def test_standings_rank_and_mark_the_front() -> None:
    every = slices(ROWS)
    assert [s.label for s in every][:3] == ["all tasks and lengths", "512 tokens", "1,024 tokens"]
    top = every[0]
    by = {s.stack: s for s in top.standings}
    dense = by["dense"]
    assert (dense.answered, dense.samples, dense.complete, dense.front) == (180, 240, False, frozenset())
    assert [s.mean for s in top.standings] == sorted((s.mean for s in top.standings), reverse=True)
    # a front recomputed the other way round: from the cheapest up, only what beats all before it
    for kind in ("cpu", "kv", "pairs"):
        front, best = set(), -1.0
        whole = [s for s in top.standings if s.complete]
        for s in sorted(whole, key=lambda s: (s.costs[kind] or 0.0, -s.mean)):
            if s.mean > best:
                front.add(s.stack)
                best = s.mean
        assert {s.stack for s in top.standings if kind in s.front} == front
    infllm = "infllm:local=256,top=8,rule=max + int8:group=64"
    assert top.cheaper["kv"].stack == infllm
    assert by[infllm].mean * 240 == pytest.approx(
        sum(row.get("score", 0.0) for row in ROWS if row["stack"] == infllm)
    )  # what failed counts as 0


def test_a_tie_of_few_samples_is_no_advice() -> None:
    like = next(r for r in ROWS if r["status"] == "done")
    rows = [
        like | {"stack": name, "trial": i, "score": score, "ledger": like["ledger"] | {"cpu_seconds": seconds}}
        for name, seconds, scores in (("good", 2.0, [1.0] * 8), ("poor", 1.0, [1.0] * 4 + [0.0] * 4))
        for i, score in enumerate(scores)
    ]
    top = slices(rows)[0]
    assert all(s.tied for s in top.standings)  # four differences of eight prove nothing
    assert "cpu" not in top.cheaper


def test_what_no_stack_answered_counts_against_none() -> None:
    rows = [r | ({"status": "refused", "score": None} if r["length"] == 4096 else {}) for r in ROWS]
    assert {s.stack for s in slices(rows)[0].standings if not s.complete} == {"self-extend:group=8,window=256"}
    assert "4,096 tokens" not in [s.label for s in slices(rows)]


def test_ticks_are_round_and_few() -> None:
    for low, high in [(1, 1), (3, 13), (0.02, 5e3), (512, 4096), (1e-9, 1e9)]:
        axis = log_axis([low, high], 0, 100)
        assert 2 <= len(ticks(axis)) <= 6
        assert all(0 <= axis(t) <= 100 for t in ticks(axis))
    assert Axis(0, 1, 300, 10)(0.5) == 155


def test_letters() -> None:
    assert [letter(i) for i in (0, 25, 26, 27, 52, 702)] == ["A", "Z", "AA", "AB", "BA", "AAA"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to run the page's script")
def test_browser_lists_samples_without_an_error(path: Path, tmp_path: Path) -> None:
    """The page as it is, then with the filter, the pager, a sample, the slice and the cost used."""
    use = """<script>
      const set = (name, value) => {
        const field = document.querySelector(name);
        field.value = value;
        field.dispatchEvent(new Event(field.id === "slice" ? "change" : "input", { bubbles: true }));
      };
      const seen = () => ["#count", "#pager span"].map((name) => document.querySelector(name).textContent).join(", ");
      const click = (name) => document.querySelector(name).click();
      const out = [];
      set("[name=stack]", "1"); set("[name=score]", "right"); click("#pager [value='1']"); out.push(seen());
      set("[name=score]", "wrong"); out.push(seen());
      set("[name=stack]", "0"); set("[name=score]", "failed"); set("[name=length]", "4096"); out.push(seen());
      for (const name of ["stack", "score", "length"]) set(`[name=${name}]`, "");
      set("[name=text]", "ONERROR"); document.querySelector("#items details").open = true;
      set("#slice", "2"); click("[value=kv]");
      document.body.dataset.seen = out.join("; ");
    </script>"""
    used = tmp_path / "used.html"
    used.write_text(path.read_text(encoding="utf-8").replace("</body>", use + "</body>"), encoding="utf-8")
    plain, after = (dump(p, tmp_path) for p in (path, used))
    assert plain.count("<summary") == 25
    assert "1,440 of 1,440 samples" in plain
    assert "page 1 of 58" in plain
    yarn = [row["score"] for row in ROWS if row["stack"] == "yarn:factor=8"]
    right, wrong, pages = yarn.count(1.0), yarn.count(0.0), -(-yarn.count(1.0) // 25)
    seen = f"{right} of 1,440 samples, page 2 of {pages}; {wrong} of 1,440 samples, page 1 of 1; "
    assert f'data-seen="{seen}60 of 1,440 samples, page 1 of 3"' in after
    assert "8 of 1,440 samples" in after
    assert after.count("<summary") == 8
    assert after.count('class="body"') == 1
    assert after.count("&lt;/script&gt;&lt;img src=x") >= 9
    assert 'data-cost="kv"' in after
    assert re.findall(r'class="slice" id="slice-(\d+)"(?! hidden)', after) == ["2"]


def dump(page: Path, folder: Path) -> str:
    flags = "--headless=new --no-sandbox --disable-gpu --virtual-time-budget=2000 --dump-dom".split()
    done = subprocess.run(
        [str(CHROMIUM), *flags, f"--user-data-dir={folder / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    root = re.search(r"<html[^>]*>", done.stdout)
    assert root is not None
    assert 'data-ready="yes"' in root[0]
    assert "data-error" not in root[0]
    assert "<img" not in done.stdout
    return done.stdout
