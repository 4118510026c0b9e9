"""The main job: ask a question of documents of any length; get an answer, its evidence and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lengthwise import auto, models
from lengthwise._reader import Progress, Reader, frame
from lengthwise.core import compat
from lengthwise.core.arena import free_disk
from lengthwise.core.facts import ModelFacts
from lengthwise.core.grammar import parse
from lengthwise.core.ledger import Ledger, si
from lengthwise.core.spec import Method
from lengthwise.core.stack import Stack
from lengthwise.core.stack import stack as make_stack
from lengthwise.documents import Corpus, Document, encode, encode_parts, read_documents
from lengthwise.errors import BadInput
from lengthwise.evidence import Passage, passages
from lengthwise.models._gguf import quiet
from lengthwise.plan.machine import available_memory
from lengthwise.plan.plan import check_fits
from lengthwise.plan.roofline import measured_threads
from lengthwise.position.set_prompt import SetPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 1


@dataclass
class Answer:
    """What `ask` returns. `why` says how the stack was picked; `segments` are (start, stop, score), in tokens."""

    answer: str
    evidence: list[Passage]
    ledger: Ledger
    stack: str
    model: str
    why: str = ""
    segments: list[tuple[int, int, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form."""
        return {
            "version": VERSION,
            "answer": self.answer,
            "evidence": [p.to_json() for p in self.evidence],
            "ledger": self.ledger.to_json(),
            "stack": self.stack,
            "model": self.model,
            "why": self.why,
            "segments": [{"start": a, "end": b, "score": round(s, 4)} for a, b, s in self.segments],
        }


def ask(
    files: Sequence[str | Path] | Sequence[Document],
    question: str,
    *,
    model: str | tuple[PreTrainedModel, Any] = "smollm2",
    stack: str | Stack = "auto",
    max_new_tokens: int = 64,
    save: str | Path | None = None,
    memory: int | None = None,
    need: auto.Need = "facts",
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Answer:
    """Answer `question` from `files` (paths, '-' for standard input) or from Documents.

    `model` is a name that `lengthwise.models.load` takes, or a loaded (model, tokenizer). `stack` is in the stack
    grammar, or 'auto' (see `lengthwise.auto`). `save` is a folder that keeps what was read: asking again, or after
    an interruption, does not read it again. `memory` in bytes bounds keys and values for 'auto' and the check before
    the work; `need` tells 'auto' whether the answer lies in few passages ("facts") or takes the text in its order, or
    much of it ("whole"). The stack 'set-prompt' without parts reads several documents side by side: their order does
    not matter. `note` hears remarks. Raises LengthwiseError subclasses for everything that a user can put right.
    """
    return ask_all(
        files,
        [question],
        model=model,
        stack=stack,
        max_new_tokens=max_new_tokens,
        save=save,
        memory=memory,
        need=need,
        progress=progress,
        note=note,
        stop=stop,
    )[0]


def ask_all(
    files: Sequence[str | Path] | Sequence[Document],
    questions: Sequence[str],
    *,
    model: str | tuple[PreTrainedModel, Any] = "smollm2",
    stack: str | Stack = "auto",
    max_new_tokens: int = 64,
    save: str | Path | None = None,
    memory: int | None = None,
    need: auto.Need = "facts",
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Answer]:
    """As `ask`, for several questions: the text is read once. The answers share one ledger."""
    say = note or (lambda text: None)
    if not questions or not all(q.strip() for q in questions):
        raise BadInput("the question is empty")
    if max_new_tokens < 1:
        raise BadInput(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if need not in (known := get_args(auto.Need)):
        raise BadInput(f"need is {' or '.join(known)}, not '{need}'")
    apart = isinstance(stack, str) and stack != "auto" and any(map(_is_open, parse(stack)))
    given = None if stack == "auto" else _side_by_side(str(stack), (0, 1, 2)) if apart else make_stack(stack)
    documents = [f for f in files if isinstance(f, Document)]
    corpus = Corpus(documents or read_documents([str(f) for f in files]), apart=apart)
    if apart and len(corpus.documents) == 1:
        raise BadInput(
            "set-prompt reads several documents side by side: give more than one file, or say parts=12-20-31"
        )
    loaded, tokenizer = models.load(model) if isinstance(model, str) else model
    name = model if isinstance(model, str) else loaded.config.model_type
    facts = compat.model_facts(loaded)
    prompts = [frame(q, tokenizer) for q in questions]
    if apart:
        ids, offsets, borders = encode_parts(corpus.parts, tokenizer)
        given = _side_by_side(str(stack), [len(prompts[0].head) + border for border in borders])
    else:
        ids, offsets = encode(corpus.text, tokenizer)
    longest = max(map(len, prompts))
    if facts.window and longest + max_new_tokens >= facts.window:
        raise BadInput(
            f"the question takes {longest:,} tokens and the answer {max_new_tokens:,}: "
            f"together they do not fit the model's window of {facts.window:,}; shorten the question"
        )
    tokens = len(ids) + longest + max_new_tokens
    room = available_memory(facts.device) if memory is None else memory
    picked, why = (str(given), "as given") if given else auto.choose(facts, tokens, room, need)
    chosen = given or make_stack(picked)
    say(f"stack {chosen}: {why}")
    for reason in check_fits(loaded, tokens, chosen, room):
        if reason.startswith(BEYOND):
            say(f"warning: {reason}")
        else:
            raise BadInput(f"{tokens:,} tokens under '{chosen}' do not fit: {reason}")
    folder = Path(save) if save else None
    if folder is not None:
        _check_disk(folder, len(ids), facts)
    answers = []
    with quiet(), chosen.on(loaded, threads=measured_threads(loaded)) as run:
        reader = Reader(run, tokenizer, prompts, ids, folder, progress, stop, str(name), corpus.text, offsets)
        for index in range(len(prompts)):
            choice = reader.choose(index, max_new_tokens)
            got = reader.read(index, choice, max_new_tokens)
            found = passages(got.mass, [offsets[i] for i in got.kept.tolist()], corpus)
            answers.append(Answer(got.text, found, run.ledger, str(chosen), str(name), why, list(choice.scores)))
    return answers


def _is_open(method: Method) -> bool:
    return isinstance(method, SetPrompt) and method.parts is None


def _side_by_side(stack: str, borders: Sequence[int]) -> Stack:
    """The stack whose set-prompt has documents between the tokens `borders` as its sub-sequences."""
    methods = [m.over(borders) if isinstance(m, SetPrompt) and _is_open(m) else m for m in parse(stack)]
    return Stack(methods)


def _check_disk(folder: Path, tokens: int, facts: ModelFacts) -> None:
    """Raise BadInput when a reading of `tokens` would not fit the disk; what is there already counts as room."""
    folder.mkdir(parents=True, exist_ok=True)
    need = int(1.25 * tokens) * facts.kv_bytes_per_token * len(facts.layer_kinds)  # segments overlap
    room = free_disk(str(folder)) + sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    if need > room:
        raise BadInput(f"saving {tokens:,} tokens takes up to {si(need)}B, and {folder} has room for {si(room)}B")


BEYOND = "beyond"  # how a reason about positions starts: a warning, since the user may want to see it break
