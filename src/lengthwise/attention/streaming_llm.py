"""StreamingLLM: attention sinks and a recent window, positions counted inside the cache (arXiv 2309.17453)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lengthwise.attention._window import SLACK, Windowed, keep_window
from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import Frame, Visible, upto
from lengthwise.core.seams import View
from lengthwise.core.spec import Method, Spec, param


@dataclass(frozen=True)
class StreamingLlm(Windowed):
    """Keeps the first `sinks` tokens and the last `window`; the gap between them is closed in positions.

    A query deep in the text stands at sinks + window - 1 as seen from the sinks, which keep positions 0..sinks-1.
    """

    sinks: int = param(4, "first tokens that are always kept")
    window: int = param(2000, "recent tokens that are kept, the query's own included")

    spec: ClassVar[Spec] = Spec(
        name="streaming-llm",
        family="attention",
        summary="first tokens and a recent window; fluent without end, forgets the middle",
        formula="key n visible to query m iff m-n < w or n < s; rel(m,n<s) = min(m, s+w-1) - n",
        seams=("position", "select", "keep"),
        source="arXiv 2309.17453; defaults of the released streaming script (4 + 2000)",
        exact_when="the input is no longer than the window parameter",
        refuses="a cache larger than the trained window",
        simplified=f"evicts in steps of {SLACK} tokens; what a query sees is exact",
        bounded=True,
        neutral={"window": 1 << 20},
        test="tests/oracle/test_windows.py",
    )

    def validate(self) -> None:
        """Positive sizes."""
        self.require(self.sinks >= 0 and self.window >= 1, "sinks must be at least 0 and window at least 1")

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Positions inside the cache must be trained ones."""
        size = self.sinks + self.window
        if model is not None and model.window < size < 1 << 20:
            return [f"sinks + window = {size} is beyond the trained window of {model.window}"]
        return []

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        """Window: as it is. Sinks: seen from a query that never stands beyond the cache's end."""
        return Frame(high=self.window), Frame(low=self.window, query=upto(self.sinks + self.window - 1))

    def visible(self, view: View) -> Visible:
        """Sinks and window."""
        return Visible(rules=((self.window, self.sinks),))

    def keep(self, view: View) -> Tensor | None:
        """Sinks and window."""
        return keep_window(view, self.window, self.sinks)

    def tokens_held(self, length: int, model: ModelFacts) -> int:
        """The cache, the slack, and a block on its way."""
        return self.bound(self.window, self.sinks, length)
