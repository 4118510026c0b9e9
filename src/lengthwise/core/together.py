"""One forward pass for several sessions at once: sequences that begin, grow, fork and end apart share a batch.

Every sequence is a session of its own (`run.cache()`, a batch of one), so nothing that a method remembers of one can
reach another: a row joins by being listed in the next pass, leaves by not being listed, and is forked by `saved.fork`.
What a pass adds to each row may differ in length: a row's new tokens stand in its first columns, padding after them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from lengthwise.core.session import Session
from lengthwise.errors import BadInput, SessionError

if TYPE_CHECKING:
    from lengthwise.core.attach import Run


class TogetherSlot(CacheLayerMixin):  # type: ignore[misc]
    """Stands for one layer of all the sessions in transformers' eyes."""

    def __init__(self, session: Together, index: int) -> None:
        super().__init__()
        self._session = weakref.ref(session)
        self.index = index
        self.is_sliding = session.sessions[0].layers[index].is_sliding

    @property
    def session(self) -> Together:
        """The pass that this layer is part of."""
        session = self._session()
        assert session is not None
        return session

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The sessions hold everything."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Give every session its keys and values [1, H, n, D]; returns this slot in place of both."""
        for row, (session, n) in enumerate(zip(self.session.sessions, self.session.lengths, strict=True)):
            session.layers[self.index].update(key_states[row : row + 1, :, :n], value_states[row : row + 1, :, :n])
        return self, self

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """As large as the pass: the mask itself is built in the attention step, row by row."""
        return (query_length if isinstance(query_length, int) else len(query_length)), 0

    def get_seq_length(self) -> int:
        """Tokens seen by the longest row."""
        return max(int(s.get_seq_length(self.index)) for s in self.session.sessions)

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.9


class Together(Cache):  # type: ignore[misc]
    """The cache of one forward pass: row i of input_ids [B, C] goes on session i, with its first `lengths[i]` columns.

    Give the model `position_ids` (`positions`) and no attention mask. Outputs of padding columns mean nothing.
    Raises BadInput when lengths and sessions do not fit, SessionError when the sessions are not of one run.
    """

    def __init__(self, sessions: Sequence[Session], lengths: Sequence[int]) -> None:
        if len(sessions) != len(lengths) or not sessions or min(lengths) < 1:
            raise BadInput("a pass over several sessions adds at least one token to each")
        if len(set(map(id, sessions))) != len(sessions):
            raise BadInput("a session can stand in a pass only once: fork it")
        self.run: Run = sessions[0].run
        if any(s.run is not self.run for s in sessions):
            raise SessionError("the sessions of one pass must belong to one run")
        self.sessions, self.lengths = list(sessions), list(lengths)
        super().__init__(layers=[TogetherSlot(self, i) for i in range(len(sessions[0].layers))])

    def positions(self) -> Tensor:
        """Position ids [B, C]: each row goes on where its session is."""
        seen = torch.tensor([s.get_seq_length() for s in self.sessions])
        return seen[:, None] + torch.arange(max(self.lengths))

    def begin(self, mask: Tensor | None, batch: int, tokens: int) -> None:
        """Before the pass. Raises BadInput when input and sessions do not fit."""
        if mask is not None:
            raise BadInput("a pass over several sessions takes no attention mask: lengths say what is padding")
        if batch != len(self.sessions) or tokens != max(self.lengths):
            raise BadInput(f"the pass has {batch} rows of {tokens} tokens, not {len(self.sessions)} of its sessions")
        for session in self.sessions:
            session.check_whole()
        for session, n in zip(self.sessions, self.lengths, strict=True):
            session.begin(None, 1, n)

    def finish(self) -> None:
        """After a pass that went through."""
        for session in self.sessions:
            session.finish()

    def attend(self, slot: TogetherSlot, q: Tensor, scale: float, softcap: float | None) -> Tensor:
        """The attention step of one layer, row by row: q [B, Hq, C, D] -> [B, C, Hq, D]."""
        slots = [session.layers[slot.index] for session in self.sessions]
        rows = [
            session.step(own, q[i : i + 1, :, :n], scale, softcap)
            for i, (session, own, n) in enumerate(zip(self.sessions, slots, self.lengths, strict=True))
        ]
        self.run.account(slots)
        if len({*self.lengths}) == 1:
            return torch.cat(rows)
        out = rows[0].new_zeros(len(rows), q.shape[2], *rows[0].shape[2:])
        for i, row in enumerate(rows):
            out[i, : row.shape[1]] = row[0]
        return out

    def learn(self, logits: Tensor, ids: Tensor) -> None:
        """After the pass: every session remembers the surprisals of its tokens. logits [B, C, V], ids [B, C]."""
        for row, (session, n) in enumerate(zip(self.sessions, self.lengths, strict=True)):
            session.learn(logits[row : row + 1, :n], ids[row : row + 1, :n])
