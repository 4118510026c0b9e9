"""What a length would cost with a model, before it is read: memory, arithmetic, seconds, and the stacks that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lengthwise.core import compat, registry
from lengthwise.core.arena import free_disk
from lengthwise.core.facts import ModelFacts
from lengthwise.core.grammar import format_stack, parse
from lengthwise.core.ledger import si
from lengthwise.core.plan import plan_layers
from lengthwise.core.stack import Stack, refusals
from lengthwise.errors import BadInput, BadParameter
from lengthwise.plan import cost, memory
from lengthwise.plan.describe import Described, describe
from lengthwise.plan.machine import available_memory, fast_memory
from lengthwise.plan.roofline import Roofline, load_or_measure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 1
FITS, TOO_LARGE, BREAKS, REFUSED = "fits", "does not fit", "breaks down", "refused"


@dataclass(frozen=True)
class StackPlan:
    """One stack at one length. `verdict` is 'fits', 'does not fit', 'breaks down' (beyond the window) or 'refused'.

    Bytes are of the peak: `kv_bytes` where the model is, `host_bytes` in RAM beside a GPU, `peak_bytes` of all that
    counts against the memory. Seconds are lower estimates; `seconds_known` is False when the stack may see fewer keys
    than it holds, and they are then those of seeing all.
    """

    stack: str
    verdict: str
    reasons: list[str] = field(default_factory=list)
    tokens_read: int = 0
    tokens_held: int = 0
    kv_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0
    peak_bytes: int = 0
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    seconds_known: bool = True


@dataclass(frozen=True)
class Plan:
    """A model, a length, and what follows. FLOPs, bytes and seconds on this level are those of the plain model."""

    model: str
    length: int
    window: int
    device: str
    dtype: str
    memory: int
    memory_given: bool
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    prefill_flops: float | None
    decode_flops: float | None
    decode_bytes: float | None
    attention_io_bytes: float
    fast_memory: int
    prefill_seconds: float | None
    decode_seconds: float | None
    machine: str
    stacks: list[StackPlan]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form."""
        return {"version": VERSION, **asdict(self)}


def plan(
    model: str | PreTrainedModel,
    length: int,
    stacks: Sequence[str] | None = None,
    memory: int | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
    timing: bool = True,
) -> Plan:
    """Plan to read `length` tokens with `model`, a name or a loaded model, under each of `stacks` (default: a choice).

    `memory` is in bytes, by default what is available now. With `timing` the machine is measured once, which takes
    about three seconds the first time. No weights are read.
    """
    if length < 1:
        raise BadInput(f"the length must be at least 1 token, not {length}")
    if memory is not None and memory < 1:
        raise BadParameter(f"the memory must be at least 1 byte, not {memory}")
    described = describe(model, dtype=dtype, device=device)
    facts = described.facts
    room = available_memory(facts.device) if memory is None else memory
    roofline = load_or_measure(facts.device) if timing else None
    chosen = default_stacks(facts, length) if stacks is None else list(stacks)
    notes = []
    try:
        wide = 8 * facts.dtype_bytes
        reading = cost.total(cost.prefill(described.config, length, bits=wide))
        writing = cost.total(cost.decode(described.config, length, bits=wide))
        seconds = _seconds(described, roofline, length, length, wide)
    except BadInput as error:
        reading, writing, seconds = None, None, (None, None)
        notes.append(f"no FLOPs and seconds: {error}")
    per_token = len(facts.layer_kinds) * facts.kv_bytes_per_token
    others = facts.layer_kinds.count("other")
    fast = fast_memory()
    return Plan(
        model=described.name,
        length=length,
        window=facts.window,
        device=facts.device,
        dtype=described.dtype,
        memory=room,
        memory_given=memory is not None,
        parameters=described.parameters,
        weight_bytes=described.weight_bytes,
        kv_bytes_per_token=per_token - others * facts.kv_bytes_per_token,
        kv_bytes=facts.kv_bytes_per_token * sum(_plain_tokens(facts, kind, length) for kind in facts.layer_kinds),
        prefill_flops=reading.flops if reading else None,
        decode_flops=writing.flops if writing else None,
        decode_bytes=writing.bytes if writing else None,
        attention_io_bytes=_attention_io(facts, length, fast),
        fast_memory=fast,
        prefill_seconds=seconds[0],
        decode_seconds=seconds[1],
        machine=roofline.machine if roofline else "",
        stacks=[_stack_plan(text, described, length, room, roofline) for text in chosen],
        notes=notes,
    )


def check_fits(
    model: str | PreTrainedModel, length: int, stack: str | Stack = "dense", memory: int | None = None
) -> list[str]:
    """Every reason why `length` tokens under `stack` cannot or should not be read here; [] means they can.

    Refusals, lengths beyond what the stack's positions reach, and memory or disk that do not suffice. Nothing is
    measured and no weights are read; of a loaded model only cache and activations count.
    """
    described = describe(model)
    room = available_memory(described.facts.device) if memory is None else memory
    return _stack_plan(str(stack), described, length, room, None).reasons


def default_stacks(facts: ModelFacts, length: int) -> list[str]:
    """The stacks that `plan` compares unless told otherwise, with parameters that suit the model and the length.

    Beyond the trained window, methods that leave positions alone are combined with one that does not; within it,
    methods that only stretch positions are left out, since they would change nothing.
    """
    longer = bool(facts.window) and length > facts.window
    factor = max(1, math.ceil(length / facts.window)) if facts.window else 1
    near = 1 << max(6, min(10, facts.window.bit_length() - 3))  # an eighth of the window at least, 1024 at most
    group = 1
    while group < near and (facts.window - near) * group + near < length:
        group *= 2
    small = facts.window < 4096
    grouped = f"self-extend:group={group},window={near}"
    base = f"{grouped} + " if longer else ""
    offered = {
        "dense": "dense",
        **({"yarn": f"yarn:factor={factor}.0", "self-extend": grouped} if longer else {}),
        "streaming-llm": f"streaming-llm:window={facts.window - 4}" if facts.window < 2004 else "streaming-llm",
        "lm-infinite": "lm-infinite",
        "infllm": f"infllm:local={facts.window // 2}" if small else "infllm",
        "int8": f"{base}int8",
        "int4": f"{base}int4",
        "offload": f"{base}offload",
        "xl3m": "xl3m",
    }
    known = registry.names()
    return [format_stack(parse(text)) for name, text in offered.items() if name in known]


def _attention_io(facts: ModelFacts, length: int, fast: int) -> float:
    """Least bytes that exact causal attention moves past a fast memory of `fast` bytes while `length` tokens are read.

    arXiv 2402.07443, half of it for the causal half, in all heads and layers.
    """
    numbers = fast // facts.dtype_bytes
    heads = sum(
        facts.heads * cost.attention_io(_plain_tokens(facts, kind, length), facts.head_dim, numbers)
        for kind in facts.layer_kinds
        if kind != "other"
    )
    return heads * facts.dtype_bytes / 2


def _plain_tokens(facts: ModelFacts, kind: str, length: int) -> int:
    """Tokens that a layer of the plain model needs."""
    return {"full": length, "sliding": min(length, facts.sliding_window or length)}.get(kind, 0)


def _stack_plan(text: str, described: Described, length: int, room: int, roofline: Roofline | None) -> StackPlan:
    """One row. Unknown methods and bad parameters raise; what the house refuses is a verdict."""
    methods = parse(text)
    name, facts = format_stack(methods), described.facts
    anatomy = described.anatomy
    reasons = described.reasons or refusals(methods, facts)
    if reasons or anatomy is None:
        return StackPlan(name, REFUSED, reasons)
    stack = Stack(methods)
    plans = plan_layers(stack.methods, facts, compat.ropes(anatomy, facts))
    passes = memory.passes(stack, facts, length)
    longest = max(size for size, _ in passes)
    try:
        held = memory.held(stack, plans, facts, longest)
        free = free_disk(_folder(stack)) if held.disk else 0
    except OSError as error:
        where = _folder(stack) or "the temporary folder"
        return StackPlan(name, REFUSED, [f"no files can be kept in {where}: {error.strerror or error}"])
    work = memory.workspace(stack, plans["full"], described.config, facts, longest)
    peak = held.kv + work + (0 if described.loaded else described.weight_bytes)
    if facts.device == "cpu" and not described.loaded:
        peak += memory.RUNTIME
    large = []
    if room and peak > room:
        large.append(f"needs {si(peak)}B of memory, {si(room)}B may be used")
    if held.host and held.host > (ram := available_memory()):
        large.append(f"needs {si(held.host)}B of RAM beside the {facts.device} device, {si(ram)}B are there")
    if held.disk > free:
        where = _folder(stack) or "the temporary folder"
        large.append(f"needs {si(held.disk)}B of disk in {where}, {si(free)}B are free")
    beyond = _beyond(stack, memory.reaches(plans["full"], stack, facts, longest), facts, longest)
    seconds = _stack_seconds(stack, described, roofline, passes, held.bits)
    return StackPlan(
        stack=name,
        verdict=BREAKS if beyond else TOO_LARGE if large else FITS,
        reasons=[*beyond, *large],
        tokens_read=sum(size * times for size, times in passes),
        tokens_held=held.tokens,
        kv_bytes=held.kv,
        host_bytes=held.host,
        disk_bytes=held.disk,
        peak_bytes=peak,
        prefill_seconds=seconds[0],
        decode_seconds=seconds[1],
        seconds_known=memory.keys_seen(stack, facts, longest)[1],
    )


def _beyond(stack: Stack, reach: int, facts: ModelFacts, length: int) -> list[str]:
    if reach >= length:
        return []
    owner = next((m.spec.name for m in stack.methods if "position" in m.spec.seams), None)
    window = f"the trained window of {facts.window:,} tokens"
    if owner is None:
        return [f"beyond {window}: {'dense' if str(stack) == 'dense' else 'without a position method it'} breaks down"]
    return [f"beyond {window}: with these parameters {owner} reaches {reach:,} of {length:,} tokens"]


def _folder(stack: Stack) -> str | None:
    """Where the stack's files would lie; None: the system's folder for temporary files."""
    return next((f for m in stack.methods if isinstance(f := getattr(m, "folder", None), str)), None)


def _stack_seconds(
    stack: Stack, described: Described, roofline: Roofline | None, passes: Sequence[tuple[int, int]], bits: float
) -> tuple[float | None, float | None]:
    """(seconds of all passes, seconds for each token written after the last one)."""
    reading, writing = 0.0, None
    for size, times in passes:
        seen, _ = memory.keys_seen(stack, described.facts, size)
        try:
            one, writing = _seconds(described, roofline, size, seen, bits)
        except BadInput:
            return None, None
        if one is None:
            return None, None
        reading += times * one
    return reading, writing


def _seconds(
    described: Described, roofline: Roofline | None, length: int, seen: int, kv_bits: float
) -> tuple[float | None, float | None]:
    """(seconds to read, seconds for each token written) when a query sees `seen` keys at most."""
    if roofline is None:
        return None, None
    wide = 8 * described.facts.dtype_bytes
    read = cost.prefill(described.config, length, held=seen, bits=wide, kv_bits=kv_bits)
    write = cost.decode(described.config, length, held=seen, bits=wide, kv_bits=kv_bits)
    return (
        cost.seconds(read, roofline, dtype=described.dtype),
        cost.seconds(write, roofline, dtype=described.dtype),
    )
