"""A vote among chains: which of them vote, with what weight, and what the winner's share is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lengthwise.thinking.answers import votes
from lengthwise.thinking.work import Solved, Work, Written


def vote(
    chains: Sequence[Written],
    *,
    first: int | None = None,
    by: Callable[[Written], float] | None = None,
    weights: Sequence[float] | None = None,
) -> Solved:
    """The answer with the most votes among the `first` chains in ascending order of `by`; None: all, as they come.

    `weights` [chains] are what each chain counts, 1 each if not given; they are written into the chains. Among equals
    the answer that was there first in that order wins. A chain without an answer votes for none, but counts in the
    total that `confidence` is a share of.
    """
    order = sorted(range(len(chains)), key=lambda i: by(chains[i])) if by is not None else list(range(len(chains)))
    chosen, total = order[:first], 0.0
    for index, chain in enumerate(chains):
        weight = (1.0 if weights is None else weights[index]) if index in chosen else 0.0
        total += weight
        chain.weight = weight if chain.answer else 0.0
    tally = votes([chains[i] for i in chosen])
    answer = next(iter(tally), "")
    confidence = tally[answer] / total if tally else 0.0
    return Solved(
        answer, [chains[i] for i in order], confidence, [] if tally else ["no chain that votes has an answer"]
    )


def best(chains: Sequence[Written], scores: Sequence[float | None], *, weighted: bool = False) -> Solved:
    """The answer of the chain with the highest score (0 to 1); equals vote, and then the first wins.

    `scores` is [chains], None where there is no verdict. `confidence` is that score. `weighted`: all vote, by their
    score. Without any verdict, or when every score is 0, plain majority, and a note says so.
    """
    top = max((s for s in scores if s is not None), default=None)
    if not top:
        solved = vote(chains)
        if not chains:
            return solved
        what = "the verifier gave no verdict" if top is None else "the verifier rejected every chain"
        return Solved(solved.answer, solved.chains, solved.confidence, [*solved.notes, f"{what}: plain majority"])
    if weighted:
        solved = vote(chains, weights=[s or 0.0 for s in scores])
    else:
        solved = vote(chains, weights=[float(s == top) for s in scores])
        solved.confidence = top
    if unknown := sum(s is None for s in scores):
        solved.notes.append(f"the verifier gave no verdict on {unknown} of {len(chains)} chains: they do not count")
    return solved


def same_chains(work: Work, k: int) -> list[str]:
    """A note when `k` chains are drawn in a way that makes them all the same."""
    if k > 1 and work.settings.temperature == 0:
        return [f"the temperature is 0: the {k} chains say the same, and a vote among them is one chain's answer"]
    return []
