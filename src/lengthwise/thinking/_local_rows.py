"""Rows of keys and values that chains own: a session for each, under any stack. `_local_padded`: those without one.

All of it runs in one thread. A row knows how many tokens it has read; it is forked, cut, read on and dropped alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from lengthwise.core import saved
from lengthwise.core.attach import CHUNK, Run
from lengthwise.core.session import Session
from lengthwise.core.together import Together


class Row:
    """What one text holds: `read` tokens of it."""

    def __init__(self) -> None:
        self.read = 0


class Rows(Protocol):
    """The rows of one model. `most` is the most tokens of a row that one pass may read."""

    most: int
    decoder: nn.Module

    def new(self) -> Row:
        """A row that has read nothing."""

    def fork(self, row: Row) -> Row:
        """Another row that has read the same."""

    def cut(self, row: Row, tokens: int) -> bool:
        """Forget all but the first `tokens`; False where a row cannot go back."""

    def rest(self, row: Row) -> None:
        """The row will not be read on for a while."""

    def drop(self, row: Row) -> None:
        """Free the row."""

    def forward(self, rows: Sequence[Row], ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Read the first lengths[i] columns of ids [B, C] with row i: last hidden states [B, C, H]."""

    def part(self, output: Tensor, rows: Sequence[Row]) -> Tensor:
        """What belongs to `rows`, which the last pass was for, of an `output` [rows, ...] of a module in that pass."""

    def nbytes(self) -> int:
        """Bytes of keys and values held by rows."""

    def clear(self) -> None:
        """Free all rows."""


class _SessionRow(Row):
    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session: Session | None = session


class SessionRows:
    """Rows under a stack: a session for each, and passes over several of them. They cannot go back."""

    def __init__(self, run: Run) -> None:
        self.run, self.decoder = run, run.anatomy.decoder
        self.most = min(CHUNK, run.most_at_once)
        self._rows: weakref.WeakSet[_SessionRow] = weakref.WeakSet()

    def new(self) -> Row:
        return self._add(_SessionRow(self.run.cache()))

    def fork(self, row: Row) -> Row:
        assert isinstance(row, _SessionRow)
        assert row.session is not None
        other = self._add(_SessionRow(saved.fork(row.session) if row.read else self.run.cache()))
        other.read = row.read
        return other

    def cut(self, row: Row, tokens: int) -> bool:
        return tokens == row.read

    def rest(self, row: Row) -> None:
        pass

    def drop(self, row: Row) -> None:
        assert isinstance(row, _SessionRow)
        row.session = None
        self._rows.discard(row)

    def forward(self, rows: Sequence[Row], ids: Tensor, lengths: Sequence[int]) -> Tensor:
        sessions = [row.session for row in rows if isinstance(row, _SessionRow) and row.session is not None]
        batch = Together(sessions, lengths)
        device = next(self.decoder.parameters()).device
        ledger, single = self.run.ledger, ids.shape[1] == 1
        with ledger.timing("decode" if single else "prefill"):
            out = self.decoder(
                input_ids=ids.to(device),
                position_ids=batch.positions().to(device),
                past_key_values=batch,
                use_cache=True,
            )
        if single:  # a pass for each token that is written
            ledger.tokens_written += len(rows)
        else:
            ledger.tokens_read += sum(lengths)
        for row, n in zip(rows, lengths, strict=True):
            row.read += n
        return out[0]  # type: ignore[no-any-return]

    def part(self, output: Tensor, rows: Sequence[Row]) -> Tensor:
        return output

    def nbytes(self) -> int:
        layers = [layer for row in self._rows if row.session is not None for layer in row.session.layers]
        return sum(sum(kv.nbytes()) for layer in layers for kv in layer.rows)

    def clear(self) -> None:
        for row in list(self._rows):
            self.drop(row)

    def _add(self, row: _SessionRow) -> _SessionRow:
        self._rows.add(row)
        return row
