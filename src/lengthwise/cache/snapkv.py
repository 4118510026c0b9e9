"""SnapKV: keep what the last queries of the prompt attend to (Li et al. 2024, arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lengthwise.cache._evict import Votes
from lengthwise.core.spec import Spec


@dataclass(frozen=True)
class Snapkv(Votes):
    """When the reading ends, every key head keeps the last `window` tokens and the best voted of the others.

    v_n = pool_n sum_i p_i,n with p_i the softmax of the i-th of the last `window` queries over all keys, averaged over
    the query heads of a key head. Every head keeps `budget` tokens of its own. What is written later stays.
    """

    spec: ClassVar[Spec] = Spec(
        name="snapkv",
        family="cache",
        summary="when the reading ends, each head keeps the tokens that its last queries attend to",
        formula="keep top_(budget-w) of v_n = pool_n(sum_(i in last w) softmax(q_i.k/sqrt(d))_n), and the last w",
        seams=("keep",),
        source="arXiv 2404.14469, section 4; window, kernel and pooling of its LongBench runs",
        exact_when="no more than `budget` tokens are read",
        refuses="methods that move keys, give them several positions, or select by position",
        simplified="heads that share keys vote together (the released code expands the keys instead); "
        "the last token of a prompt that was prefilled is read after the eviction and does not vote",
        neutral={"budget": 1 << 20},
        test="tests/oracle/test_evict.py",
    )
