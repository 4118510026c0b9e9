"""Hogwild! inference: workers of one model that write at once, and see each other's words as they are written.

Every worker has a block of its own in one shared cache (`shared.py`), and sees the prompt, the others, then itself:

    contiguous    prompt, [others' texts], own text
    interleaved   prompt + finished steps of all in the order they were finished, own unfinished step
    combined      prompt + finished steps, [others' unfinished steps], own unfinished step

One forward pass gives every worker a token; how to share the work is left to the workers. The fixed texts are those of
the paper (Hogwild! Inference, arXiv 2504.06261, section 3.3 and its released code); the rules are put in other words.
As released, the token that ends a step is read as the first of the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from lengthwise.errors import BadInput
from lengthwise.thinking.decoding.shared import Block, SharedCache, attach

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Arrangement = Literal["contiguous", "interleaved", "combined"]

PAIR = {"Alice": "Hi, I'm Alice. Here's how we can", "Bob": "Hi, I'm Bob."}
HISTORY = "### Past steps"


@dataclass(frozen=True)
class Format:
    """Fixed texts: before the others' blocks, before the own one, before each step; strings that end a step.

    After `check_every` tokens of all workers a step begins with `check`, which asks for redundant work.
    """

    others: str = "\n\n### Work in progress (others)\n\n"
    own: str = "<...>\n\n### Work in progress (own)\n\n"
    step: str = "**{name} [{number}]:** "
    step_ends: tuple[str, ...] = tuple(f"{mark}\n\n" for mark in ".?!…")
    check: str = "Quick check: am I doing redundant work? (yes/no): "
    check_every: int = 256


PUBLISHED = Format()
BARE = Format("", "", "", (), "", 1 << 40)


@dataclass
class Worker:
    """One worker: all of its text, and why it ended ("stop", "end", "limit", "window", "others" were through)."""

    name: str
    text: str = ""
    reason: str = "others"
    steps: int = 1
    ids: list[int] = field(default_factory=list, repr=False)
    _said: list[int] = field(default_factory=list, repr=False)  # written by itself, without first words and headings
    _step: list[int] = field(default_factory=list, repr=False)
    _next: list[int] = field(default_factory=list, repr=False)
    _block: Block = field(default_factory=Block, repr=False)

    @property
    def written(self) -> int:
        """Tokens that the model wrote for this worker."""
        return len(self._said)


@dataclass
class Outcome:
    """What the workers wrote, and what it cost: `passes` after the prompt was read are what the user waits for."""

    workers: list[Worker]
    passes: int
    written: int
    pairs: int


def rules(problem: str, names: Sequence[str] = tuple(PAIR)) -> str:
    """A message that puts `problem` to several workers, and says how they see each other."""
    listed = " and ".join(names)
    return (
        f"{listed} solve one problem together, writing at the same time. Finished steps of all stand under "
        f"'{HISTORY}', each with its writer's name. What another is writing at this moment stands under 'Work in "
        "progress (others)' and grows while you write; your own step stands last. Share the work: say what you take "
        "on, take up what another proposes (the first name decides), correct mistakes that you see, and as soon as "
        "another does the same as you, stop and do something else. Whoever knows the final answer writes it as "
        "\\boxed{answer}.\n\n"
        f"{problem}"
    )


def generate(
    model: PreTrainedModel,
    tokenizer: Any,
    prompt: str,
    workers: Mapping[str, str],
    *,
    layout: Arrangement = "combined",
    format: Format = PUBLISHED,
    most: int = 256,
    stop: Sequence[str] = (),
    needed: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Outcome:
    """Let `workers` (name -> first words) go on from `prompt` for at most `most` passes.

    A worker is through when its text has one of `stop`, or at the end of its turn; all are when `needed` of them (all)
    are. A worker that is through stays in the others' views. Raises BadInput, or StackRefused for models that do not
    fit (`shared.attach`).
    """
    if layout not in get_args(Arrangement):
        raise BadInput(f"there is no layout '{layout}': use {', '.join(get_args(Arrangement))}")
    if not workers or most < 1 or temperature < 0:
        raise BadInput("hogwild needs a worker, at least one pass, and a temperature of 0 or more")
    if len(workers) > 1 and not all(workers.values()):
        raise BadInput(
            "several workers need first words each: with the same text before them they would write the same"
        )

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    start = list(tokenizer(prompt)["input_ids"])
    team = [Worker(name) for name in workers]
    for worker, words in zip(team, workers.values(), strict=True):
        worker._next = encode(format.step.format(name=worker.name, number=1) + words)
        if not worker._next:  # the only one: it reads the end of the prompt itself
            worker._next = [start.pop()]
        else:
            worker.ids += worker._next
        worker._step += worker._next
    if not start:
        raise BadInput("the prompt is too short: it needs two tokens at least")
    generator = torch.Generator().manual_seed(seed)
    ends = _ends(model, tokenizer)
    common, before_others, before_own = Block(), Block(), Block()
    with attach(model) as run:
        cache = SharedCache(run)
        cache.read([([common], start)])
        seen = [common]
        for block, text in ((before_others, format.others), (before_own, format.own)):
            if layout != "interleaved" and len(team) > 1 and text:
                seen.append(block)
                cache.read([(list(seen), encode(text))])
        read, since = cache.passes, 0
        live = list(team)
        while live and cache.passes - read < most and len(team) - len(live) < (needed or len(team)):
            views = [_view(worker, team, layout, common, before_others, before_own) for worker in live]
            longest = max(sum(len(b.ids) for b in v) for v in views) + sum(len(w._next) for w in live)
            if run.facts.window and longest > run.facts.window:
                for worker in live:
                    worker.reason = "window"
                break
            logits = cache.read([(view, worker._next) for view, worker in zip(views, live, strict=True)])
            tokens = _draw(logits.float().cpu(), temperature, generator)
            since += sum(len(worker._next) for worker in live)
            for worker, token in zip(list(live), tokens, strict=True):
                worker.ids.append(token)
                worker._step.append(token)
                worker._said.append(token)
                worker._next = [token]
                said = tokenizer.decode(worker._said)
                if token in ends or any(s in said for s in stop):
                    worker.reason = "end" if token in ends else "stop"
                    live.remove(worker)
                elif layout != "contiguous" and _step_ended(tokenizer.decode(worker._step), format):
                    common.take(worker._block, cache.rope)
                    worker.steps += 1
                    words = format.step.format(name=worker.name, number=worker.steps)
                    if since > format.check_every:
                        words, since = words + format.check, 0
                    worker._step = encode(words)
                    worker._next += worker._step
                    worker.ids += worker._step
                worker.text = tokenizer.decode(worker.ids)
        if cache.passes - read == most:
            for worker in live:
                worker.reason = "limit"
        return Outcome(team, cache.passes - read, sum(w.written for w in team), cache.pairs)


def _view(
    worker: Worker, team: Sequence[Worker], layout: Arrangement, common: Block, before_others: Block, before_own: Block
) -> list[Block]:
    """What a worker sees, in its order; it writes at the end."""
    if layout == "interleaved":
        return [common, worker._block]
    return [common, before_others, *(w._block for w in team if w is not worker), before_own, worker._block]


def _step_ended(text: str, format: Format) -> bool:
    return bool(format.step_ends) and text.endswith(format.step_ends)


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> list[int]:
    """One token for each row of logits [W, V]."""
    if temperature == 0:
        return [int(t) for t in logits.argmax(-1)]
    drawn = torch.multinomial((logits.double() / temperature).softmax(-1), 1, generator=generator)
    return [int(t) for t in drawn[:, 0]]


def _ends(model: PreTrainedModel, tokenizer: Any) -> set[int]:
    """The tokens that end a turn."""
    config = getattr(model, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])]
    return {int(t) for t in found if t is not None}
