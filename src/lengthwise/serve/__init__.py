"""Serving: an OpenAI-compatible server that answers with strategies of thinking (`lengthwise proxy`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lengthwise.errors import MissingExtra
from lengthwise.serve.options import Options

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lengthwise.thinking import Sampler, Strategy

__all__ = ["Options", "app", "run"]


def app(sampler: Sampler, strategies: str | Sequence[Strategy] = "plain", options: Options | None = None) -> FastAPI:
    """An ASGI application that answers chat completions as `strategies` over `sampler` say.

    The sampler is closed when the application shuts down. Raises StackRefused, UnknownMethod or BadParameter for
    strategies that cannot run, BadInput for options that cannot be, MissingExtra without fastapi.
    """
    try:
        from lengthwise.serve.proxy import build
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return build(sampler, strategies, options or Options())


def run(
    application: FastAPI, host: str = "127.0.0.1", port: int = 8000, said: Callable[[str], object] = lambda url: None
) -> None:
    """Serve `application` until SIGINT or SIGTERM; running requests then end within `Options.grace` seconds.

    `said` is called with the server's address once it listens; port 0 takes a free one. Raises BadInput when it cannot
    listen there, MissingExtra without uvicorn.
    """
    try:
        from lengthwise.serve.server import serve
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    serve(application, host, port, said)


def _missing(error: ModuleNotFoundError) -> Exception:
    """MissingExtra for a package of the extra; a module of our own that is missing is a bug."""
    package = (error.name or "").partition(".")[0]
    return MissingExtra(package, "serve", "the proxy") if package != "lengthwise" else error
