"""Opens the sampler that a user names: a model in this process, or one behind a server."""

from __future__ import annotations

from lengthwise.errors import BadInput
from lengthwise.thinking.chain import Sampler, Tags

DEFAULT_MODEL = "pocket-reasoner"


def tags_of(opening: str | None, closing: str | None) -> Tags | None:
    """The tags that a user gave, None when none. Raises BadInput for one without the other."""
    if not opening and not closing:
        return None
    if not opening or not closing:
        raise BadInput("a thinking section has two tags: give --think-open and --think-close")
    return Tags(opening, closing)


def open_sampler(
    model: str | None = None,
    *,
    endpoint: str | None = None,
    stack: str = "dense",
    dtype: str | None = None,
    tags: Tags | None = None,
    tokenizer: str | None = None,
    continuation: str = "none",
    connections: int = 64,
    max_tokens: int = 8192,
) -> Sampler:
    """A LocalSampler, or an EndpointSampler when `endpoint` is a server's address, to which it opens `connections`.

    `max_tokens` bounds a request to a server, thinking and answer together.
    Raises BadInput for options that do not go together, and what the samplers raise.
    """
    if endpoint is None:
        if tokenizer is not None or continuation != "none":
            raise BadInput("--tokenizer and --continuation are for an endpoint: give --endpoint, or leave them out")
        from lengthwise.thinking.local import LocalSampler

        return LocalSampler(model or DEFAULT_MODEL, stack=stack, tags=tags, dtype=dtype)
    if not model:
        raise BadInput("name the model of the endpoint with --model")
    if stack != "dense" or dtype is not None:
        raise BadInput("--stack and --dtype are for a local model: a server reads as it reads")
    from lengthwise.thinking.endpoint import EndpointSampler

    return EndpointSampler(
        endpoint,
        model,
        tags=tags,
        tokenizer=tokenizer,
        continuation=continuation,
        connections=connections,
        max_tokens=max_tokens,
    )


async def prepare(sampler: Sampler) -> None:
    """Find out what a server can do, by one tiny question; a local model is ready."""
    probe = getattr(sampler, "probe", None)
    if probe is not None:
        await probe()
