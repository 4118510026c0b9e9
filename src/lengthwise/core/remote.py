"""A server that speaks OpenAI's protocol: its address and key, what is worth another try, what its errors mean.

No request is made here: the rooms make theirs, with httpx, and share what is the same for all of them.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from lengthwise.errors import BadInput, EndpointError, LengthwiseError

KEYS = ("LENGTHWISE_API_KEY", "OPENAI_API_KEY")
AGAIN = frozenset({408, 409, 425, 429})  # and all from 500 on
FIRST_WAIT, MOST_WAIT = 1.0, 120.0  # seconds
BYTES_PER_TOKEN = 3.2  # of UTF-8, where there is no tokenizer to count with
FRAME_TOKENS = 16  # what a chat template puts around the messages
TOO_LONG = re.compile(r"context|too (long|large|many tokens)|maximum (length|tokens)|max_model_len", re.IGNORECASE)


class Refused(EndpointError):
    """The server does not take a request as it is."""


@dataclass(frozen=True)
class Remote:
    """One model of one server. `url` is that of chat completions, `host` what messages call the server."""

    url: str
    host: str
    model: str
    key: str = field(default="", repr=False)

    @classmethod
    def at(cls, url: str, model: str, api_key: str | None = None) -> Remote:
        """From what a user gives: the key is `api_key`, else of the environment (`KEYS`), else none.

        Raises BadInput for an address, a name or a key that cannot be one.
        """
        if not model.strip():
            raise BadInput("name the model that the server should use")
        full, host = address(url)
        key = (api_key or next((os.environ[k] for k in KEYS if os.environ.get(k)), "")).strip()
        if not (key.isascii() and key.isprintable()):
            raise BadInput("the API key has characters that no key has: copy it again")
        return cls(full, host, model, key)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def line(self, text: str) -> str:
        """The message of an error object, or else the first line of a body; without our key."""
        text = text.replace(self.key, "…") if self.key else text
        try:
            body = json.loads(text)
            error = body.get("error", body)
            return first_line(str(error["message"] if isinstance(error, dict) else error))
        except (ValueError, LookupError, AttributeError):
            return first_line(text) or "(an empty body)"

    def refusal(self, status: int, trouble: str, shorter: str) -> LengthwiseError:
        """The error for a status that trying again would not change. `shorter` is what to do when all was too long."""
        said = f"{self.host} refused: {trouble}"
        if status in (400, 413, 422) and TOO_LONG.search(trouble):
            return BadInput(f"{said}; the prompt is too long for this model: {shorter}")
        if status in (401, 403):
            known = "was not accepted" if self.key else "is missing"
            return EndpointError(f"{said}; the API key {known}: give another one, or set {KEYS[0]}")
        if status == 404:
            return EndpointError(f"{said}; check the address {self.url} and the model name '{self.model}'")
        return Refused(f"{said}; the server does not take the request as it is")


def address(url: str) -> tuple[str, str]:
    """(the URL of chat completions, host and port) of a server's address. Raises BadInput."""
    try:
        parts = urlsplit(url.strip())
        host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or ""
    except ValueError as error:
        raise BadInput(f"'{url}' is no address of a server: {error}") from error
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", parts.netloc):
        raise BadInput(f"'{url}' is no address of a server: write it as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise BadInput("the server's address must be plain: no user, password or query in it (the key goes apart)")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    if not re.search(r"/v\d", path):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}/chat/completions", host


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, 0 without one; it holds seconds or a date."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def first_line(text: str) -> str:
    """The first line that is not empty, at most 300 characters of it."""
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), "")


def unsupported(body: str) -> str:
    """The parameter that a 400 or 422 says this model does not take, '' when it says something else.

    It is named as the protocol's error object names it, or as servers that check requests with pydantic do.
    """
    try:
        said = json.loads(body)
        if isinstance(said.get("detail"), list):
            found = said["detail"][0]
            return str(found["loc"][-1]) if found["type"] == "extra_forbidden" else ""
        error = said["error"]
        return str(error["param"]) if str(error["code"]).startswith(("unsupported", "unknown_param")) else ""
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
