"""`lengthwise proxy`: an OpenAI-compatible server before any endpoint or model, which answers as a strategy says."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from lengthwise.cli._output import note

EPILOG = """Examples:

  lengthwise proxy --endpoint http://localhost:8001/v1 --model qwen3-8b --strategy "short-m@k:m=1,k=4"

  lengthwise proxy --model pocket-reasoner --strategy "budget:64" --port 9000

  LENGTHWISE_PROXY_TOKEN=secret lengthwise proxy --host 0.0.0.0 --endpoint URL --model NAME

  OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python your_unchanged_client.py
"""
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


def proxy(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="The endpoint's name of its model, which clients ask for, too; or, without --endpoint, a packaged "
            "name, a local folder, a GGUF file or a hub id.",
        ),
    ],
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="The server in front of which this one stands."),
    ] = None,
    strategy: Annotated[
        str, typer.Option("--strategy", help="Strategies joined by '+' (lengthwise think --strategies lists them).")
    ] = "plain",
    stack: Annotated[
        str, typer.Option("--stack", "-s", help="Methods for a local model, in the stack grammar.")
    ] = "dense",
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="The port to listen on; 0: any that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="LENGTHWISE_PROXY_TOKEN", help="The bearer token that clients must send."),
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Requests worked on at once.")] = 64,
    queue: Annotated[int, typer.Option("--queue", help="Requests that may wait; the next gets a 429.")] = 256,
    timeout: Annotated[float, typer.Option("--timeout", help="Most seconds of a request, waiting included.")] = 600.0,
    most_thinking: Annotated[int, typer.Option("--most-thinking", help="Most tokens a chain thinks.")] = 8_192,
    most_answer: Annotated[int, typer.Option("--most-answer", help="Most tokens of a chain's answer.")] = 2_048,
    extract: Annotated[
        str, typer.Option("--extract", help="How answers are found for a vote: auto, boxed, number, line or text.")
    ] = "auto",
    think_open: Annotated[
        str | None, typer.Option("--think-open", metavar="TAG", help="What opens a thinking section.")
    ] = None,
    think_close: Annotated[
        str | None, typer.Option("--think-close", metavar="TAG", help="What closes a thinking section.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="A model's name or folder: counts an endpoint's tokens.")
    ] = None,
    continuation: Annotated[
        str, typer.Option("--continuation", help="How an endpoint goes on with a given text (docs/proxy.md).")
    ] = "none",
    connections: Annotated[
        int, typer.Option("--connections", help="Most streams open to the endpoint at once; more chains wait.")
    ] = 512,
    grace: Annotated[float, typer.Option("--grace", help="Seconds that running requests have at a shutdown.")] = 30.0,
) -> None:
    """Put a strategy before an endpoint or a model: an OpenAI-compatible server for clients that know nothing of it.

    It serves POST /v1/chat/completions, streamed or not.
    Every answer says what it cost, in tokens of all chains. The log has no text of a request.
    The endpoint's key is read from LENGTHWISE_API_KEY or OPENAI_API_KEY.
    """
    from lengthwise.serve import Options, app, run
    from lengthwise.thinking import format_strategies, parse
    from lengthwise.thinking.samplers import open_sampler, tags_of

    options = Options(
        model=model,
        token=token,
        concurrency=concurrency,
        queue=queue,
        timeout=timeout,
        most_thinking=most_thinking,
        most_answer=most_answer,
        extract=extract,  # type: ignore[arg-type]
        grace=grace,
    )
    strategies = parse(strategy)
    if token is None and host not in LOCAL_HOSTS:
        note(f"anybody who reaches {host} can use the model: --token keeps others out")
    sampler = open_sampler(
        model,
        endpoint=endpoint,
        stack=stack,
        tags=tags_of(think_open, think_close),
        tokenizer=tokenizer,
        continuation=continuation,
        connections=connections,
        max_tokens=most_thinking + most_answer,
    )
    application = app(sampler, strategies, options)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("lengthwise.serve").setLevel(logging.INFO)
    run(application, host, port, lambda url: note(f"{format_strategies(strategies)} on {model}: {url} (Ctrl-C ends)"))
