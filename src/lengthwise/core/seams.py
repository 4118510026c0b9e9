"""The seams of the attention step, as base classes. A method inherits those that its Spec claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lengthwise.core.arena import Arena
from lengthwise.core.attend import Partial
from lengthwise.core.facts import ModelFacts
from lengthwise.core.frames import EVERYTHING, PLAIN, Frame, Visible
from lengthwise.core.ledger import LayerReceipt
from lengthwise.core.rope import Rope
from lengthwise.core.spec import Method
from lengthwise.core.store import KV, Codec
from lengthwise.kernels import BlockLists

if TYPE_CHECKING:
    from lengthwise.core.attach import Run
    from lengthwise.core.session import Session


@dataclass
class View:
    """What a method may look at when it is asked: one block of queries of one sequence in one layer.

    q [Hq, C, D] is un-rotated when `raw` (the stack owns positions), else as the model rotated it. `positions` [C]
    (CPU) are the queries'. `kv` holds the block's own keys too, except in `keep`, which is asked before they are added.
    `softcap` is the model's on attention logits; `ends_pass` says that no block of the forward pass follows.
    `surprise` [n] are the surprisals -ln p(x_i | x_<i) of the held slots in nats and `ages` [n] the turns since they
    were read, for methods that ask for them.
    `state` is the method's own memory for this layer and sequence. `added` takes, for every set of keys that `extras`
    adds, their positions ([S], or [H, C, S] where heads differ) and logits [Hq, C, S]; None when nobody watches.
    """

    layer: int
    facts: ModelFacts
    kv: KV
    q: Tensor
    positions: Tensor
    scale: float
    rope: Rope
    receipt: LayerReceipt
    softcap: float | None = None
    ends_pass: bool = True
    surprise: Tensor | None = None
    ages: Tensor | None = None
    raw: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    added: list[tuple[Tensor, Tensor]] | None = None

    @property
    def start(self) -> int:
        """Position of the first query of the block."""
        return int(self.positions[0])

    @property
    def stop(self) -> int:
        """One past the position of the last query."""
        return int(self.positions[-1]) + 1


class Positions(Method):
    """Owns `position`: frames, frequencies, and a factor on the queries."""

    in_cache = False  # positions are slot numbers, counted anew after every eviction

    def frames(self, facts: ModelFacts) -> tuple[Frame, ...]:
        """The distance rules; together they cover every distance once."""
        return PLAIN

    def frequencies(self, facts: ModelFacts, inv_freq: Tensor, length: int) -> tuple[Tensor, float] | None:
        """Inverse frequencies [rotary_dim / 2] and the factor on cos and sin at `length` tokens; None: the model's."""
        return None

    def query_factor(self, facts: ModelFacts, positions: Tensor, layer: int) -> Tensor | None:
        """A factor [C] on the queries at `positions` [C] in `layer`; None: no factor."""
        return None

    def follows_length(self) -> bool:
        """Whether `frequencies` changes as the sequence grows, so that keys cannot be rotated once and for all."""
        return False

    def moves_keys(self, model: ModelFacts | None) -> bool:
        """Whether a key may stand at several places: as the text grows, after an eviction, or in several frames."""
        return self.follows_length() or self.in_cache or (model is not None and self.frames(model) != PLAIN)


class Selects(Method):
    """Claims `select`: which held keys the block may see."""

    per_layer = False  # whether the answer depends on the layer (else it is asked once for all layers)

    def visible(self, view: View) -> Visible:
        """What the block may see. Selections of several methods intersect."""
        return EVERYTHING

    def extras(self, view: View) -> list[Partial]:
        """Further partials over keys that `visible` leaves out, for methods that choose keys per query and head.

        When `view.added` is a list, it is told which keys these were: that is how they become evidence.
        """
        return []

    def tokens_seen(self, length: int, facts: ModelFacts) -> int | None:
        """Upper bound on the keys that a query sees after `length` tokens, for planning; None: all that are held."""
        return None


class Blocks(Method):
    """Owns `blocks`: which blocks of 64 held keys each group of heads sees, chosen anew for every block of queries."""

    def lists(self, view: View) -> BlockLists | None:
        """Block lists over all held slots, for the view's queries; None: all of them."""
        return None

    def tokens_seen(self, length: int, facts: ModelFacts) -> int | None:
        """Upper bound on the keys that a query sees after `length` tokens, for planning; None: all that are held."""
        return None

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """Blocks are counted over all keys as they were read, in one position frame."""
        reasons = []
        for other in others:
            moved = sorted({"select", "keep", "format", "tier", "observe"} & set(other.spec.seams))
            if moved:
                reasons.append(
                    f"blocks are counted over all keys as read, which {other.spec.name} ({moved[0]}) changes"
                )
            elif isinstance(other, Positions) and other.moves_keys(model):
                reasons.append(f"keys must have one position each, and {other.spec.name} gives them several")
        return reasons


@dataclass(frozen=True)
class Part:
    """A set of keys as a block of queries scores them: q [Hq, C, D] and k [Hkv, S, D], both rotated for their frame.

    `mask` [C, S] is True where a query sees a key; None: everywhere.
    """

    q: Tensor
    k: Tensor
    mask: Tensor | None


class Scores(Method):
    """Owns `score`: the weights that a query puts on the keys it sees, in place of softmax."""

    def weigh(self, view: View, parts: Sequence[Part]) -> list[Tensor]:
        """Weights [Hq, C, S] float32 of every part; of one query they sum to 1 over all parts, 0 where it sees none."""
        raise NotImplementedError

    def check(self, model: ModelFacts | None, others: Sequence[Method]) -> list[str]:
        """The weights need all scores of a query at once, before any of them is summed up."""
        reasons = []
        for other in others:
            if isinstance(other, Blocks):
                reasons.append(f"block lists are scored by softmax, and {other.spec.name} makes them")
            elif isinstance(other, Selects) and type(other).extras is not Selects.extras:
                reasons.append(f"keys that {other.spec.name} adds arrive with softmax weights")
        return reasons


class Keeps(Method):
    """Owns `keep`: which tokens stay."""

    needs_surprise = False

    def keep(self, view: View) -> Tensor | None:
        """Slots to keep before the block is added (ascending, CPU); None keeps all.

        [m]: the same for all heads; [Hkv, m]: those of each key head, the same number in every one. Keys stay rotated
        where they stood.
        """
        return None


class Stores(Method):
    """Owns `format` (a codec), `tier` (an arena), or both."""

    def codec(self, facts: ModelFacts) -> Codec | None:
        """The coded form of older tokens; None: as they are."""
        return None

    def arena(self, facts: ModelFacts) -> Callable[[], Arena] | None:
        """Where older tokens lie; None: in RAM."""
        return None

    def hot_tokens(self, facts: ModelFacts) -> int:
        """How many recent tokens stay uncoded on the model's device."""
        return 0


class Observes(Method):
    """Claims `observe`: sees the softmax weights as they pass (which doubles the cost of scoring)."""

    def observe(self, view: View, frame: Frame, slots: Tensor, weights: Tensor) -> None:
        """Weights [Hq, C, S] float32 that the block put on `slots` [S] in one frame."""

    def watching(self, view: View) -> bool:
        """Whether this block's weights are wanted."""
        return True

    def wants(self, frame: Frame) -> bool:
        """Whether the weights in this frame are wanted."""
        return True


@dataclass(frozen=True)
class Probe:
    """What the model says after one segment of the text and the question.

    `question` [Lq] are the log-probabilities of the question's tokens in nats; `next` [V] are those of the first
    token of the answer.
    """

    question: Tensor
    next: Tensor


@dataclass(frozen=True)
class Choice:
    """The spans [start, stop) of the text, in tokens and in order, that go before the model; scores of all segments.

    `times`: so often the spans are read one after the other, from twice on with the question before them as well.
    """

    spans: tuple[tuple[int, int], ...]
    scores: tuple[tuple[int, int, float], ...] = ()
    times: int = 1


class Look(Protocol):
    """A text and a question, as a prompt method may look at them. What is read for a look counts in the ledger.

    `text` is the text itself, `offsets` the characters [start, end) of its tokens, `question` the question.
    """

    facts: ModelFacts
    text: str
    offsets: Sequence[tuple[int, int]]
    question: str

    def __call__(self, start: int, stop: int) -> Probe:
        """What the model says after tokens [start, stop) of the text and the question."""

    def early(self, layer: int) -> Tensor:
        """Inner products [n] float32 of the last query of text and question with the keys of the text's n tokens.

        In `layer`, summed over its heads; only the layers below it are run.
        """

    def write(self, lead: str, most: int) -> str:
        """What the model writes, `most` tokens at most, when `lead` stands between the whole text and the question."""

    def embed(self, start: int, stop: int) -> Tensor:
        """Mean of the last hidden states [H] of tokens [start, stop) of the text, read on their own."""

    def embed_question(self) -> Tensor:
        """Mean of the last hidden states [H] of the question, read on its own."""


class Prompts(Method):
    """Owns `prompt`: chooses what of a long text the model reads with the question, and how."""

    def choose(self, length: int, limit: int, look: Look) -> Choice:
        """Choose spans of a text of `length` tokens, at most `limit` in all if that is its aim."""
        return Choice(((0, length),))

    def segments(self, length: int, limit: int) -> list[tuple[int, int]]:
        """The segments that `choose` will probe, for progress and cost."""
        return []

    def passes(self, length: int, limit: int) -> list[tuple[int, int]] | None:
        """The forward passes as (tokens, times), for planning; None: the segments, and then what is chosen of them."""
        return None

    def reading(self, run: Run) -> AbstractContextManager[Session | None]:
        """The cache in which text and question are read, in one pass; None: a plain one, read in chunks."""
        return nullcontext()
