"""Server-sent events: the data of events, out of bytes that come in any pieces."""

from __future__ import annotations


class Events:
    """Reads an event stream (WHATWG HTML, section 9.2.6): `feed` it bytes, get the data of the events they complete.

    Lines end in CR, LF or both; comments, ids, retry times and event names are passed over; the lines of one event's
    data are joined by LF. Bytes are decoded line by line, so a character may come in two pieces.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[str] = []
        self._returned = False  # the last byte was CR: an LF right after it ends no second line
        self._begun = False

    def feed(self, data: bytes) -> list[str]:
        """The data of every event that ends in these bytes."""
        events: list[str] = []
        for piece in data.splitlines(keepends=True) if data else []:
            if piece == b"\n" and self._returned:
                self._returned = False
                continue
            body = piece.rstrip(b"\r\n")
            self._line += body
            self._returned = piece.endswith(b"\r")
            if len(body) < len(piece):
                self._end_line(events)
        return events

    def end(self) -> list[str]:
        """The stream has ended: the event that was not closed by an empty line, if there is one."""
        events: list[str] = []
        if self._line:
            self._end_line(events)
        self._end_event(events)
        return events

    def _end_line(self, events: list[str]) -> None:
        line = self._line.decode("utf-8", "replace")
        self._line.clear()
        if not self._begun:
            line, self._begun = line.removeprefix("\ufeff"), True
        if not line:
            self._end_event(events)
            return
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))

    def _end_event(self, events: list[str]) -> None:
        if self._data:
            events.append("\n".join(self._data))
            self._data = []
