"""The paper map: which papers Lengthwise covers, by which command or method, and what is missing.

The map itself stores no status. A paper works when a registered method, task or strategy lists it in its spec, or when
a command does in `SERVED_ELSEWHERE`; everything else is planned or, with a reason, not covered.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from lengthwise.bench.registry import all_tasks
from lengthwise.bench.task import TaskSpec
from lengthwise.core.registry import all_methods
from lengthwise.core.spec import Spec
from lengthwise.thinking.registry import all_strategies
from lengthwise.thinking.strategy import StrategySpec

Status = Literal["works", "part", "planned", "not covered"]
STATUSES: tuple[Status, ...] = ("works", "part", "planned", "not covered")

SERVED_ELSEWHERE: dict[int, tuple[str, str]] = {
    30: ("lengthwise plan", "tests/oracle/test_cost.py"),
    36: ("lengthwise weights valve", "tests/oracle/test_valve.py"),
    91: ("lengthwise edit", "tests/oracle/test_edit.py"),
    92: ("lengthwise trace", "tests/oracle/test_trace.py"),
    93: ("lengthwise weights merge", "tests/oracle/test_weights.py"),
    120: ("lengthwise plan", "tests/oracle/test_cost.py"),
    123: ("lengthwise trace", "tests/oracle/test_trace.py"),
    161: ("lengthwise metrics checklist", "tests/oracle/test_metric_layers.py"),
    171: ("lengthwise.thinking.decoding.hogwild", "tests/oracle/test_hogwild.py"),
    189: ("lengthwise metrics win-rate", "tests/oracle/test_metric_layers.py"),
    211: ("lengthwise metrics best-of", "tests/oracle/test_metric_layers.py"),
    202: ("lengthwise weights think-edit", "tests/oracle/test_think_edit.py"),
    217: ("lengthwise.thinking.decoding.speculative", "tests/oracle/test_speculative.py"),
    218: ("lengthwise metrics chain-length", "tests/oracle/test_metric_layers.py"),
    222: ("lengthwise weights merge", "tests/oracle/test_weights.py"),
}
"""Papers served by a command rather than by a method: paper id -> (command, test)."""

PARTIAL: dict[int, str] = {
    1: "fits: thinking or not, by the model's token or a router; left out for now: the training of modes",
    14: "fits: five generated procedures; left out: pseudocode to code, and the published data",
    39: "fits: the joint-recall task; left out for now: context-dependent sparse attention for state-space models",
    80: "fits: prompts, and the report of recorded judgements; left out: the judge, which is a model of yours",
    83: "fits: hints, and blocks of code run locked in; left out for now: the tuning on such chains",
    92: "fits: importance of steps, and what may be pruned; left out for now: the tuning on pruned chains",
    93: "fits: merging a long and a short model; left out for now: the preference training in two levels",
    96: "fits: thinking or not, by the model's token or a router; left out for now: the training of modes",
    100: "fits: repeated verification and the pessimistic choice; left out: the verifier's training",
    103: "fits: best of n and search by steps with a verifier of yours; left out: the verifier's training",
    117: "fits: thinking or not, by the model's token or a router; left out for now: the training of modes",
    123: "fits: chains in typed steps, and what came after the answer; left out for now: the preference training",
    149: "fits: thinking or not, by the model's token or a router; left out for now: the training of modes",
    161: "fits: checklists by rules; left out: extraction and matching by a model",
    163: "fits: answers, and the share of clues found by shared words; left out: the judge of the reasoning",
    172: "fits: generated conversations, and questions on them; left out: event summaries, images, open questions",
    189: "fits: the controlled win rate on judgements of yours; left out: fitting difficulties over many models",
    23: "fits: the repeated prompt; left out: recurrent models, and prefix linear attention",
    29: "fits: the syntax-tree splitter, encoding by words or hidden states, aggregation; left out: trained encoders",
    72: "fits: streaming heads, page selection and its reuse; left out: freeing their keys, 4-bit GPU kernels",
    115: "fits: retrieve, then reason, by prompts; left out: the training that aligns a model with both steps",
    173: "fits: the dynamics, fitted to a frozen model; left out: training the model along with them",
    177: "fits: dual chunk attention with its scaling, sparse budgets by recall; left out: both at once, and training",
    191: "fits: the rule for the base; left out: masked diffusion models, which it was made for",
    170: "fits: search of action sequences, and a planner on words; left out: tuning a model as planner and solver",
    197: "fits: the temperature of the end of thinking; left out for now: training by levels of length",
    222: "fits: merging the models of accuracy and brevity; left out for now: their preference training",
    194: "fits: the base and the scaled logits; left out: the training on a hundred samples",
    230: "fits: spans mixed by layer at inference; left out: training with them",
    266: "fits: the adjusted base; left out: the continued training",
}
"""Papers that fit in full but are served in part so far: paper id -> what is missing."""


@dataclass(frozen=True)
class Paper:
    """One row of the map. `test` is the file that fails without the mechanism of the first entry of `served_by`."""

    id: int
    slug: str
    title: str
    room: str
    status: Status
    line: str
    served_by: list[str] = field(default_factory=list)
    test: str = ""
    why: str = ""


def all_papers() -> list[Paper]:
    """Every paper of the map, by id, with the status that follows from what is registered now."""
    servers = _servers()
    return [_paper(row, servers.get(row["id"], [])) for row in _rows()]


def search(words: str) -> list[Paper]:
    """Papers in which every word occurs (id, slug, title, line or method), most hits in the title first.

    Case is ignored. A paper's number, `11` or `#11`, finds that paper alone; no words at all find every paper.
    """
    papers = all_papers()
    query = words.lower().split()
    if len(query) == 1 and query[0].removeprefix("#").isdecimal():
        number = int(query[0].removeprefix("#"))
        exact = [p for p in papers if p.id == number]
        if exact or query[0].startswith("#"):
            return exact
    found = [p for p in papers if all(word in _text(p) for word in query)]
    return sorted(found, key=lambda p: (-sum(word in p.title.lower() for word in query), p.id))


def to_json(papers: Iterable[Paper]) -> list[dict[str, Any]]:
    """The papers as plain objects, for `--json`."""
    keys = ("id", "title", "status", "served_by", "test", "line", "why")
    return [{key: getattr(paper, key) for key in keys} for paper in papers]


@functools.cache
def _rows() -> tuple[dict[str, Any], ...]:
    text = resources.files(__package__).joinpath("papers.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return tuple(sorted(rows, key=lambda row: int(row["id"])))


def _servers() -> dict[int, list[tuple[str, str]]]:
    """Paper id -> (method, task, strategy or command, test) of everything that serves it."""
    servers: dict[int, list[tuple[str, str]]] = {}
    specs: list[Spec | TaskSpec | StrategySpec] = [method.spec for method in all_methods()]
    specs += [task.spec for task in all_tasks().values()]
    specs += [strategy.spec for strategy in all_strategies().values()]
    for spec in specs:
        for paper in spec.papers:
            servers.setdefault(paper, []).append((spec.name, spec.test))
    for paper, server in SERVED_ELSEWHERE.items():
        servers.setdefault(paper, []).append(server)
    return servers


def _paper(row: dict[str, Any], servers: Sequence[tuple[str, str]]) -> Paper:
    status, why = _status(row, served=bool(servers))
    return Paper(
        id=row["id"],
        slug=row["slug"],
        title=row["title"],
        room=row["room"],
        status=status,
        line=row["line"],
        served_by=[name for name, _ in servers],
        test=next((test for _, test in servers if test), ""),
        why=why,
    )


def _status(row: dict[str, Any], served: bool) -> tuple[Status, str]:
    """The status of a row, and why it is not 'works'. A served paper of scope 'out' is served in part at most."""
    scope, why = row["scope"], row["why"]
    if served:
        missing = PARTIAL.get(row["id"], why)
        return ("part", missing) if missing else ("works", "")
    if scope == "out":
        return "not covered", why
    return "planned", f"planned: room {row['room']}" + (f", in part; {why}" if why else "")


def _text(paper: Paper) -> str:
    return " ".join([f"#{paper.id}", paper.slug, paper.title, paper.line, *paper.served_by]).lower()
