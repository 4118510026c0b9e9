"""LazyEviction: drop what has not recurred for longer than it ever did (Zhang et al. 2025, arXiv 2506.15969)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from lengthwise.cache._evict import Evicts, best
from lengthwise.core.frames import Frame
from lengthwise.core.seams import Observes, View
from lengthwise.core.spec import Spec, param


@dataclass(frozen=True)
class LazyEviction(Evicts, Observes):
    """While writing, every `window` steps each key head drops the tokens that are least likely to be looked at again.

    A token is active at step t when it draws a weight of at least `alpha`. T_n is the last step at which it was, and
    M_n the longest interval between two of them (0: never active). At step t it counts

        2 sigma(-(t - T_n) / M_n) + [M_n > 0] 2 sigma(-(M_n - 1)).

    The last `window` tokens stay. What is read stays too until the first eviction after it.
    """

    budget: int = param(1492, "tokens kept in every head after an eviction, the window included")
    window: int = param(175, "steps from one eviction to the next, and recent tokens that stay")
    alpha: float = param(0.0001, "attention weight from which a token counts as active (.0005 in runs with Llama)")

    spec: ClassVar[Spec] = Spec(
        name="lazy-eviction",
        family="cache",
        summary="while writing, drops in intervals the tokens that outlived their longest recurrence interval",
        formula="every w steps keep the last w and top_(budget-w) of "
        "2 sigma(-(t-T_n)/M_n) + [M_n>0] 2 sigma(1-M_n), M_n = longest interval between weights >= alpha",
        seams=("keep", "observe"),
        papers=(79,),
        source="arXiv 2506.15969, section 4, equations 1 and 2; budget of its released scripts",
        exact_when="no more than `budget` tokens are read and written",
        refuses="methods that move keys, give them several positions, or select by position",
        simplified="heads that share keys are active together; sigma's argument in the first term as published "
        "(the released code takes 1 off)",
        neutral={"budget": 1 << 20},
        test="tests/oracle/test_lazy_eviction.py",
    )

    def validate(self) -> None:
        """Sizes that fit each other."""
        self.require(1 <= self.window < self.budget, "window must be at least 1 and below budget")
        self.require(self.alpha > 0, "alpha must be above 0")

    def watching(self, view: View) -> bool:
        """Steps are tokens written."""
        return len(view.positions) == 1

    def observe(self, view: View, frame: Frame, slots: Tensor, weights: Tensor) -> None:
        """Note which tokens are active at this step."""
        last, interval, step = (view.state[name] for name in ("last", "interval", "step"))
        active = torch.zeros_like(last, dtype=torch.bool)
        active[:, slots] = weights[:, 0].unflatten(0, (len(last), -1)).amax(1).cpu() >= self.alpha
        view.state["interval"] = torch.where(active, torch.maximum(interval, step - last), interval)
        view.state["last"] = torch.where(active, step, last)

    def keep(self, view: View) -> Tensor | None:
        """The window and the best of the others, after every window of steps."""
        none = torch.zeros(view.facts.kv_heads, 0, dtype=torch.long)
        last, interval = view.state.get("last", none), view.state.get("interval", none)
        step = view.state.get("step", 0)
        n, coming, slots = view.kv.n, len(view.positions), None
        if step and step % self.window == 0 and n > self.budget:
            chosen = best(self._importance(step - last, interval)[:, : n - self.window], self.budget - self.window)
            slots = torch.cat([chosen, torch.arange(n - self.window, n).expand(len(chosen), -1)], 1)
            last, interval = last.gather(1, slots), interval.gather(1, slots)
        view.state["last"] = pad(last, (0, coming), value=step)  # as if active at the step before they came
        view.state["interval"] = pad(interval, (0, coming))
        view.state["step"] = step + (coming == 1)
        return slots

    @staticmethod
    def _importance(ages: Tensor, intervals: Tensor) -> Tensor:
        """What tokens count by the steps since they were active and their longest intervals, both [Hkv, n]."""
        likely = 2 * torch.sigmoid(-ages / intervals.clamp(min=1e-5))
        return likely + torch.where(intervals > 0, 2 * torch.sigmoid(1.0 - intervals), 0.0)
