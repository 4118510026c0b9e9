"""Older keys and values off the model's device: in host RAM, or in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lengthwise.core.arena import Arena, Disk, Lru, Ram
from lengthwise.core.facts import ModelFacts
from lengthwise.core.seams import Stores
from lengthwise.core.spec import Method, Spec, param

Tier = Literal["auto", "ram", "disk"]


def arena_on(tier: Tier, facts: ModelFacts, folder: str | None, page: int, pages: int) -> Callable[[], Arena]:
    """A maker of arenas: RAM for a model on a GPU, a file for a model on the CPU, with `pages` hot pages if any."""
    disk = tier == "disk" or (tier == "auto" and facts.device == "cpu")
    if not disk:
        return Ram
    return (lambda: Lru(Disk(folder), page, pages)) if pages else (lambda: Disk(folder))


def refuse_ram_on_cpu(tier: Tier, model: ModelFacts | None) -> list[str]:
    """A CPU model's cache lies in RAM already: offloading there would silently do nothing."""
    if tier == "ram" and model is not None and model.device == "cpu":
        return ["the model is on the CPU, so its cache lies in RAM already: use to=disk"]
    return []


@dataclass(frozen=True)
class Offload(Stores):
    """Tokens older than `hot` lie on another tier and are read back whenever attention needs them. Always exact."""

    to: Tier = param("auto", "auto: RAM for a model on a GPU, disk for one on the CPU")
    hot: int = param(1024, "recent tokens that stay on the model's device")
    folder: str | None = param(None, "where to put the file; none: the system's folder for temporary files")
    pages: int = param(32, "pages of 128 tokens that an LRU keeps in memory per layer and lane; 0: none")

    spec: ClassVar[Spec] = Spec(
        name="offload",
        family="cache",
        summary="older keys and values in host RAM or in a file, hot pages cached",
        formula="held in memory <= hot + pages * 128 tokens; the rest on the tier; attention reads all it selects",
        seams=("tier",),
        exact_when="always",
        refuses="to=ram for a model on the CPU, where it would do nothing",
        neutral={"to": "disk"},
        test="tests/oracle/test_store.py",
    )

    def validate(self) -> None:
        """Sizes that make sense."""
        self.require(self.hot >= 0 and self.pages >= 0, "hot and pages must be at least 0")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """No silent no-op."""
        return refuse_ram_on_cpu(self.to, model)

    def arena(self, facts: ModelFacts) -> Callable[[], Arena]:
        """The tier."""
        return arena_on(self.to, facts, self.folder, 128, self.pages)

    def hot_tokens(self, facts: ModelFacts) -> int:
        """What stays."""
        return self.hot
