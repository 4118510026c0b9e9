"""The local sampler: a Hugging Face model in this process, all of its chains in one batch, under any stack."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from lengthwise import models
from lengthwise.core import compat
from lengthwise.core.attach import Run
from lengthwise.core.ledger import Ledger
from lengthwise.core.seams import Prompts
from lengthwise.core.stack import Stack
from lengthwise.core.stack import stack as make_stack
from lengthwise.errors import BadInput, LengthwiseError, StackRefused
from lengthwise.models._gguf import quiet
from lengthwise.plan.plan import check_fits
from lengthwise.plan.roofline import measured_threads
from lengthwise.thinking._local_batch import Batcher, Held, Request, Root
from lengthwise.thinking._local_draw import Drawn
from lengthwise.thinking._local_layers import find_lens, read_layers
from lengthwise.thinking._local_padded import PaddedRows
from lengthwise.thinking._local_rows import Rows, SessionRows
from lengthwise.thinking._local_text import Script, Words
from lengthwise.thinking.chain import DEFAULT, Ability, Messages, Piece, Settings, Tags
from lengthwise.thinking.tags import find_tags, render

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECENT = 16  # prompts that stay read after their last chain, at most
RECENT_TOKENS = 8192  # of them together; the newest one stays in any case


class LocalSampler:
    """A model in this process.

    `model` is a name that `lengthwise.models.load` takes, or a loaded (model, tokenizer). `stack` is how chains are
    read; the plain one runs over padded tensors, every other over a session for each chain. `tags` default to those of
    the chat template. `dtype` is float32 on the CPU unless given, because coarser numbers can depend on who else is in
    the batch; elsewhere the checkpoint's own. At most `most_rows` chains get a token in one step.

    A sampler serves one event loop at a time, and is closed with `await close()`, which leaves the model as it was.
    Raises StackRefused for stacks that do not fit the model or choose what of a long text is read, and what
    `models.load` raises.
    """

    def __init__(
        self,
        model: str | tuple[PreTrainedModel, Any] = "pocket-reasoner",
        *,
        stack: str | Stack = "dense",
        tags: Tags | None = None,
        dtype: str | None = None,
        most_rows: int = 64,
    ) -> None:
        if most_rows < 1:
            raise BadInput(f"most_rows must be at least 1, not {most_rows}")
        chosen = make_stack(stack)
        if any(isinstance(m, Prompts) for m in chosen.methods):
            raise StackRefused(str(chosen), ["it chooses what of a long text is read: a chain is read as it is"])
        if isinstance(model, str):
            self.model, self.tokenizer = models.load(model, dtype=dtype)
            if dtype is None and self.model.device.type == "cpu":
                self.model = self.model.float()
        else:
            self.model, self.tokenizer = model
        self.name = model if isinstance(model, str) else str(self.model.config.model_type)
        facts, threads = compat.model_facts(self.model), measured_threads(self.model)
        self.tags = tags or find_tags(self.tokenizer)
        self.window = _window(self.model, chosen, facts.window)
        self.stack = str(chosen)
        self._run: Run | None = None
        plain = all(m.spec.name == "dense" for m in chosen.methods)
        if plain and PaddedRows.fits(self.model, facts):
            rows: Rows = PaddedRows(self.model, facts, threads)
        else:
            self._run = chosen.on(self.model, threads=threads).__enter__()
            rows = SessionRows(self._run)
        self._batcher = Batcher(self.model, rows, most_rows)
        self._lens = find_lens(rows.decoder)
        able: set[Ability] = {"prefix", "logprobs", "logits"}
        self.able: frozenset[Ability] = frozenset(able | ({"layers"} if self._lens else set()))
        self._words = Words(self.tokenizer)
        self._ends = _ends(self.model, self.tokenizer)
        self._numbers = itertools.count()
        self._roots: WeakValueDictionary[tuple[int, ...], Root] = WeakValueDictionary()
        self._recent: deque[Root] = deque(maxlen=RECENT)

    @property
    def ledger(self) -> Ledger | None:
        """What the stack did; None for the plain model, which no stack is attached to."""
        return self._run.ledger if self._run is not None else None

    @property
    def notes(self) -> list[str]:
        """What of the stack has changed nothing so far."""
        ledger = self.ledger
        idle = (
            []
            if ledger is None
            else [name for name, times in ledger.consulted.items() if times and not ledger.acted[name]]
        )
        return [f"{name} changed nothing: no chain was long enough for it" for name in idle]

    @property
    def passes(self) -> int:
        """Forward passes so far."""
        return self._batcher.passes

    @property
    def tokens(self) -> int:
        """Tokens that these passes have read, prompts and put text included."""
        return self._batcher.tokens

    def kv_bytes(self) -> int:
        """Bytes of keys and values held now; to be asked while no chain is being written."""
        return self._batcher.rows.nbytes()

    async def chain(self, messages: Messages, *, think: bool = True) -> LocalChain:
        """A new chain. Raises BadInput when the prompt leaves no room in the window, or the template refuses it."""
        with quiet():
            text = render(messages, self.tokenizer, self.tags, think)
        ids = tuple(self._start(text) + self._words.encode(text))
        if self.window is not None and len(ids) >= self.window:
            raise BadInput(
                f"the prompt takes {len(ids):,} tokens, which leaves no room in the window of {self.window:,}: "
                "shorten it, or use a stack that reaches further"
            )
        root = self._roots.get(ids)
        if root is None:
            root = self._roots[ids] = Root(list(ids))
        if root not in self._recent:
            self._recent.append(root)
            while len(self._recent) > 1 and sum(len(r.ids) for r in self._recent) > RECENT_TOKENS:
                self._recent.popleft()
        return LocalChain(self, Held(next(self._numbers), root, Script.of(self._words, ids)))

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._words.encode(text))

    async def close(self) -> None:
        """Free all rows and leave the model as it was. Raises NothingFired when a method of the stack never acted."""
        await self._batcher.close()
        self._recent.clear()
        run, self._run = self._run, None
        if run is not None:
            run.__exit__(None, None, None)

    def _start(self, text: str) -> list[int]:
        """The token that begins every sequence, where the tokenizer puts one and the text does not."""
        bos = self.tokenizer.bos_token_id
        if bos is None or text.startswith(str(self.tokenizer.bos_token)):
            return []
        return [bos] if self.tokenizer("a")["input_ids"][:1] == [bos] else []


class LocalChain:
    """A chain of a LocalSampler; see `chain.Chain`.

    A stop string is found wherever it lies in what the model wrote since the last `put`, across tokens and calls; what
    follows it inside its last token is dropped. A fork that goes on with the seed of its chain draws what that
    chain would draw; another seed, or none, begins anew.
    """

    def __init__(self, sampler: LocalSampler, held: Held) -> None:
        self._sampler, self._held = sampler, held
        self.written = 0
        self.prompt = held.script.start
        self._source: tuple[int | None, random.Random] | None = None
        self._request: Request | None = None

    @property
    def text(self) -> str:
        """All text after the prompt, but for characters that are not whole yet."""
        return self._held.script.text

    @property
    def read(self) -> int:
        """Tokens of the prompt that were read for this chain."""
        return self._held.read

    @property
    def ids(self) -> list[int]:
        """Ids after the prompt, those of a stop string that just came included."""
        return self._held.script.ids[self.prompt :]

    async def write(self, most: int, stop: Sequence[str] = (), settings: Settings = DEFAULT) -> Piece:
        """Go on for at most `most` tokens; `reason` is "length" at the end of the window, too."""
        self._check_open()
        self._settle()
        script, window, said = self._held.script, self._sampler.window, list[float]()
        start, count, reason, came = len(script.text), 0, "length", ""
        room = most if window is None else min(most, window - len(script.ids))

        def take(drawn: Drawn) -> bool:
            nonlocal count, reason, came
            count += 1
            self.written += 1
            if settings.logprobs:
                said.append(drawn.logprob)
            if drawn.token in self._sampler._ends:
                reason = "end"
                return True
            came = script.grow(drawn.token, stop)
            if came:
                reason = "stop"
            return bool(came) or count >= room

        if room > 0:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            request = self._request = Request(self._held, settings, self._random(settings.seed), take, done)
            self._sampler._batcher.ask(request)
            try:
                await done
            finally:
                self._sampler._batcher.leave(request)
                self.written += request.flying  # paid for, and lost
                self._request = None
        return Piece(script.text[start:], count, reason, came, tuple(said))  # type: ignore[arg-type]

    async def put(self, text: str) -> None:
        """Add text; it is read with the next token. A stop string of one token that is put back costs nothing."""
        self._check_open()
        self._settle(text)

    async def fork(self) -> LocalChain:
        """Another chain with the same text, sharing what was read. Prompt tokens count for the first alone."""
        self._check_open()
        mine, batcher = self._held, self._sampler._batcher
        held = Held(next(self._sampler._numbers), mine.root, mine.script.copy(), valid=mine.valid)
        if mine.row is not None:
            held.row = await batcher.call(lambda: batcher.fork(mine))
        other = LocalChain(self._sampler, held)
        if self._source is not None:
            other._source = self._source[0], random.Random()
            other._source[1].setstate(self._source[1].getstate())
            if self._source[0] is None:
                other._source = None
        return other

    async def layered(self, answers: Sequence[str]) -> list[list[float]]:
        """log P(answer | text so far), its tokens summed, by final norm and head on what each layer puts out.

        [layers][answers]; the last layer's are the model's own. Raises BadInput for an empty answer.
        """
        self._check_open()
        lens, batcher = self._sampler._lens, self._sampler._batcher
        if lens is None:
            raise LengthwiseError(f"{self._sampler.name} has no layers and final norm that are known here")
        coded = [self._sampler._words.encode(a) for a in answers]
        if not all(coded):
            raise BadInput("an answer that is looked for in the layers is empty")
        if not coded:
            return [[] for _ in lens[0]]
        trial = await self.fork()
        trial._settle()
        ids = list(trial._held.script.ids)
        try:
            return await batcher.call(lambda: read_layers(batcher, lens, trial._held, ids, coded))
        finally:
            self._held.read += trial._held.read
            await trial.close()

    async def close(self) -> None:
        """Free the row."""
        if self._held.closed:
            return
        if self._request is not None and not self._request.done.done():
            self._request.done.set_exception(LengthwiseError("this chain was closed while it was written"))
        self._sampler._batcher.drop(self._held)

    def _settle(self, text: str = "") -> None:
        kept = self._held.script.settle(text)
        self._held.valid = min(self._held.valid, kept)

    def _check_open(self) -> None:
        if self._held.closed:
            raise LengthwiseError("this chain was closed")
        if self._request is not None:
            raise LengthwiseError("this chain is being written: wait for it, or cancel the writing")

    def _random(self, seed: int | None) -> random.Random:
        if self._source is None or self._source[0] != seed:
            self._source = seed, random.Random(seed)
        return self._source[1]


def _window(model: Any, stack: Stack, window: int) -> int | None:
    """The most tokens that chains may have: the model's window, None where the stack's positions reach further."""
    if not window:
        return None
    beyond = check_fits(model, 2 * window, stack, 1 << 60)
    return window if any(reason.startswith("beyond") for reason in beyond) else None


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a turn: the tokenizer's, and those of the generation config."""
    found = [tokenizer.eos_token_id]
    config = getattr(model, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    found += given if isinstance(given, list) else [given]
    return frozenset(int(i) for i in found if i is not None)
