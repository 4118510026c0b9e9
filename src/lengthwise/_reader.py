"""Reading a text with a question under a run: choose what goes before the model, read it, write the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from lengthwise import models
from lengthwise._early import early_scores
from lengthwise.core import saved
from lengthwise.core.attach import Run
from lengthwise.core.ledger import si
from lengthwise.core.seams import Choice, Probe, Prompts
from lengthwise.core.session import Session
from lengthwise.errors import LengthwiseError

Progress = Callable[[str, int, int], None]  # (what is being done, tokens done, tokens in all)
LEAD = "\n\nUsing only the text above, answer briefly:"
BETWEEN = "\n"  # what stands between the repetitions of a text


class Interrupted(LengthwiseError):
    """Reading was stopped; what had been read is saved, if there was somewhere to save it."""

    exit_code = 130


@dataclass(frozen=True)
class Prompt:
    """Token ids [n] around a text: `head` before it; `lead`, `question` and `tail` after it."""

    head: Tensor
    lead: Tensor
    question: Tensor
    tail: Tensor

    @property
    def after(self) -> Tensor:
        """Everything that follows the text."""
        return torch.cat([self.lead, self.question, self.tail])

    def __len__(self) -> int:
        return len(self.head) + len(self.after)


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """What the chat template puts before a user message, and after it up to where the model goes on."""
    mark = "\u241fTEXT\u241f"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    head, _, tail = chat.partition(mark)
    return head, tail


def reads_in_chat(tokenizer: Any) -> bool:
    """Whether texts are put before the model by its chat template: it has one, and does not ask for plain framing.

    A tokenizer config that says `"framing": "plain"` has a chat template for questions alone.
    """
    return (
        bool(getattr(tokenizer, "chat_template", None))
        and getattr(tokenizer, "init_kwargs", {}).get("framing") != "plain"
    )


def starts_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a beginning-of-sequence token before a text of its own accord."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def frame(question: str, tokenizer: Any) -> Prompt:
    """The tokens around a text: the model's chat template when it has one, else a plain question and 'Answer:'."""
    chat = reads_in_chat(tokenizer)
    head, tail = chat_frame(tokenizer) if chat else ("", "\nAnswer:")

    def tokens(text: str) -> Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)

    start = tokens(head)
    if not head and starts_with_bos(tokenizer):
        start = torch.tensor([tokenizer.bos_token_id])
    return Prompt(start, tokens(LEAD), tokens(f" {question.strip()}"), tokens(tail))


@dataclass(frozen=True)
class Reading:
    """What was written, and the attention [m] that fell, while it was written, on the `kept` tokens [m] of the text."""

    text: str
    kept: Tensor
    mass: Tensor


class _Ends(StoppingCriteria):  # type: ignore[misc]
    """True once the text written after `start` tokens holds one of the strings `ends`."""

    def __init__(self, tokenizer: Any, start: int, ends: Sequence[str]) -> None:
        self.tokenizer, self.start, self.ends = tokenizer, start, ends
        self.tail = max(map(len, ends)) + 4  # a token may be less than a character

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        text = self.tokenizer.decode(input_ids[0, self.start :][-self.tail :])
        return torch.tensor([any(end in text for end in self.ends)], device=input_ids.device)


class Reader:
    """Reads a text under a run and answers from it, keeping what was read in a folder if there is one.

    `text` and the `offsets` of its tokens are for prompt methods that look at the characters.
    """

    def __init__(
        self,
        run: Run,
        tokenizer: Any,
        prompts: list[Prompt],
        ids: Tensor,
        folder: Path | None,
        progress: Progress | None,
        stop: Callable[[], bool] | None,
        name: str,
        text: str = "",
        offsets: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.run, self.tokenizer, self.prompts, self.ids = run, tokenizer, prompts, ids
        self.text, self.offsets = text, offsets
        self.folder, self.stop = folder, stop or (lambda: False)
        self.progress = progress or (lambda what, done, total: None)
        digest = hashlib.sha256(torch.cat([prompts[0].head, ids]).numpy().tobytes()).hexdigest()
        self.about = {"model": models.fingerprint(run.model), "stack": str(run.stack), "text": digest[:32]}
        self.method = next((m for m in run.stack.methods if isinstance(m, Prompts)), None)
        self.probes: dict[tuple[int, int, int], Probe] = {}
        self.means: dict[tuple[int, int], Tensor] = {}
        self.whole: Session | None = None
        run.ledger.model = name

    def choose(self, index: int, reserve: int) -> Choice:
        """What of the text goes before the model for one question: all of it, unless the stack has a prompt method."""
        method, length = self.method, len(self.ids)
        if method is None:
            return Choice(((0, length),))
        window = self.run.facts.window or length + max(map(len, self.prompts)) + reserve
        limit = window - max(map(len, self.prompts)) - reserve
        choice = method.choose(length, limit, _Look(self, index, method.segments(length, limit)))
        ledger = self.run.ledger
        ledger.consulted[method.spec.name] += 1
        kept = sum(b - a for a, b in choice.spans)
        ledger.acted[method.spec.name] += kept < length or choice.times > 1
        if kept < length or choice.times > 1:
            ledger.whole = length + len(self.prompts[index]), self.run.facts.heads
            times = f", {choice.times} times" if choice.times > 1 else ""
            ledger.notes.append(
                f"{method.spec.name} kept {kept:,} of {length:,} tokens in {len(choice.spans)} spans{times}"
            )
        return choice

    @torch.no_grad()
    def _probe(self, a: int, b: int, indices: Sequence[int]) -> None:
        """Read a segment once, and every question of `indices` after it."""
        self._check_stopped()
        before = torch.cat([self.prompts[0].head, self.ids[a:b]])
        path = self.folder / "segments" / f"{a}-{b}.safetensors" if self.folder else None
        about = {**self.about, "segment": [a, b]}
        if path is not None and path.exists():
            cache = saved.load(self.run, path, about)
        else:
            cache = self.run.cache(len(before) + 64)
            for _ in self.run.feed(before[None], cache):
                pass
            if path is not None:
                saved.save(cache, path, about)
        for index in indices:
            prompt = self.prompts[index]
            own = cache if index == indices[-1] else saved.fork(cache)
            hidden: list[Tensor] = []
            for _ in self.run.feed(torch.cat([before, prompt.after])[None], own, hidden=hidden):
                pass
            logp = torch.log_softmax(self.run.logits(torch.cat(hidden, 1)[0]).float(), dim=-1).cpu()
            first = len(prompt.lead) - 1
            rows = torch.arange(first, first + len(prompt.question))
            self.probes[a, b, index] = Probe(logp[rows, prompt.question], logp[-1].clone())

    def early(self, index: int, layer: int) -> Tensor:
        """Inner products [n] of the last query of the whole input with the keys of the text in `layer`."""
        prompt = self.prompts[index]
        ids = torch.cat([prompt.head, self.ids, prompt.after])

        def step(done: int) -> None:
            self._check_stopped()
            self.progress("early layers", done, len(ids))

        scores = early_scores(self.run, ids, layer, step=step)
        return scores[len(prompt.head) : len(prompt.head) + len(self.ids)]

    def mean(self, tokens: Tensor, key: tuple[int, int] | None = None) -> Tensor:
        """Mean of the last hidden states [H] of `tokens` [n], read on their own; `key` remembers it."""
        if key is None or key not in self.means:
            self._check_stopped()
            hidden: list[Tensor] = []
            for _ in self.run.feed(tokens[None], self.run.cache(len(tokens)), hidden=hidden):
                pass
            mean = torch.cat(hidden, 1)[0].float().mean(0).cpu()
            if key is None:
                return mean
            self.means[key] = mean
        return self.means[key]

    def write(self, index: int, lead: str, most: int) -> str:
        """What the model writes after the whole text, `lead` and a question; at most `most` tokens."""
        prompt = self.prompts[index]
        tokens = torch.tensor(self.tokenizer(lead, add_special_tokens=False)["input_ids"], dtype=torch.long)
        before = torch.cat([prompt.head, self.ids])
        full = torch.cat([before, tokens, prompt.question, prompt.tail])[None]
        cache = self._read(before, full.shape[1] + most, last=False)
        for _ in self.run.feed(full[:, :-1], cache):
            pass
        return self._decode(self._generate(full, cache, most, ()))

    def read(self, index: int, choice: Choice, most: int, ends: Sequence[str] = ()) -> Reading:
        """Read what was chosen and a question, then write; watches attention while it writes.

        Writing stops after `most` tokens, at the end of the sequence, or at any of the strings `ends`.
        """
        prompt = self.prompts[index]
        before, where = self._before(prompt, choice)
        full = torch.cat([before, prompt.after])[None]
        with self.method.reading(self.run) if self.method else nullcontext() as own:
            if own is None:
                cache = self._read(before, full.shape[1] + most, last=index == len(self.prompts) - 1)
                for _ in self.run.feed(full[:, :-1], cache):
                    pass
            else:
                cache = own
            with self.run.watching(cache) as watch:
                if own is not None:
                    self._check_stopped()
                    written = self._generate_in_one_pass(full, cache, most, ends)
                else:
                    written = self._generate(full, cache, most, ends)
        kept = torch.cat([torch.arange(a, b) for a, b in choice.spans])
        seen, mass = watch.mass[0][: len(where)], torch.zeros(len(self.ids))
        of_text = where[: len(seen)] >= 0
        mass.index_add_(0, where[: len(seen)][of_text], seen[of_text])
        return Reading(self._decode(written), kept, mass[kept])

    def _before(self, prompt: Prompt, choice: Choice) -> tuple[Tensor, Tensor]:
        """(what goes before the last question [m], the token of the text that stands there [m], or -1)."""
        kept = torch.cat([torch.arange(a, b) for a, b in choice.spans])
        parts: list[tuple[Tensor, Tensor | None]] = [(prompt.head, None)]
        if choice.times > 1:
            encoded = self.tokenizer(BETWEEN, add_special_tokens=False)["input_ids"]
            line = torch.tensor(encoded, dtype=torch.long)
            parts.append((prompt.question, None))
            for _ in range(choice.times):
                parts += [(line, None), (self.ids[kept], kept)]
        else:
            parts.append((self.ids[kept], kept))
        where = [torch.full((len(ids),), -1) if of is None else of for ids, of in parts]
        return torch.cat([ids for ids, _ in parts]), torch.cat(where)

    def _generate_in_one_pass(self, full: Tensor, cache: Session, most: int, ends: Sequence[str]) -> Tensor:
        """As `_generate`, from an empty cache that reads the whole of `full` at once."""
        hidden: list[Tensor] = []
        for _ in self.run.feed(full, cache, chunk=full.shape[1], hidden=hidden):
            pass
        first = self.run.logits(hidden[0][:, -1]).argmax(-1)[:, None].cpu()
        self.run.ledger.tokens_written += 1
        end = self.run.model.generation_config.eos_token_id
        if most == 1 or int(first) in (end if isinstance(end, list) else [end]):
            return first[0]
        return torch.cat([first[0], self._generate(torch.cat([full, first], 1), cache, most - 1, ends)])

    def _generate(self, full: Tensor, cache: Session, most: int, ends: Sequence[str]) -> Tensor:
        """Tokens [m] written after `full` [1, n], greedily, with a cache that has read all of it but the last."""
        self.progress("writing", 0, most)
        ids = full.to(next(self.run.model.parameters()).device)
        with self.run.ledger.timing("decode"):
            out = self.run.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=self.tokenizer.eos_token_id,
                stopping_criteria=[_Ends(self.tokenizer, full.shape[1], ends)] if ends else None,
            )
        self.run.ledger.tokens_written += out.shape[1] - full.shape[1]
        self.progress("writing", most, most)
        return out[0, full.shape[1] :].cpu()  # type: ignore[no-any-return]

    def _decode(self, tokens: Tensor) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()

    def _check_stopped(self) -> None:
        if self.stop():
            raise Interrupted(self._interrupted())

    def _read(self, before: Tensor, expected: int, *, last: bool) -> Session:
        """A cache that has read `before`: the whole text is read once, kept for all questions and in the folder."""
        if len(before) != len(self.prompts[0].head) + len(self.ids):
            cache = self.run.cache(expected)
            self._feed(before, cache, None)
            return cache
        if self.whole is None:
            path = self.folder / "session.safetensors" if self.folder else None
            if path is not None and path.exists():
                self.whole = saved.load(self.run, path, self.about, expected)
                known = self.whole.get_seq_length()
                self.run.ledger.notes.append(f"{known:,} of {len(before):,} tokens had been read before")
            else:
                self.whole = self.run.cache(expected)
            if self.whole.get_seq_length() < len(before):
                self._feed(before, self.whole, path)
        return self.whole if last else saved.fork(self.whole, expected)

    def _feed(self, before: Tensor, cache: Session, path: Path | None) -> None:
        for done in self.run.feed(before[None], cache):
            self.progress("reading", done, len(before))
            if self.stop() and done < len(before):
                if path is not None:
                    saved.save(cache, path, self.about)
                raise Interrupted(self._interrupted())
        if path is not None:
            saved.save(cache, path, self.about)

    def _interrupted(self) -> str:
        if self.folder is None:
            return "interrupted; nothing was kept (--save DIR keeps what was read)"
        size = sum(f.stat().st_size for f in self.folder.rglob("*.safetensors"))
        return f"interrupted; what was read is in {self.folder} ({si(size)}B): ask again with the same --save to go on"


class _Look:
    """What a prompt method sees of a reader: see `lengthwise.core.seams.Look`."""

    def __init__(self, reader: Reader, index: int, segments: Sequence[tuple[int, int]]) -> None:
        self.reader, self.index, self.facts = reader, index, reader.run.facts
        self.text, self.offsets = reader.text, reader.offsets
        self.question: str = reader.tokenizer.decode(reader.prompts[index].question).strip()
        self.segments, self.done = set(segments), 0
        self.total = sum(b - a for a, b in segments)

    def __call__(self, start: int, stop: int) -> Probe:
        reader, index = self.reader, self.index
        if (start, stop, index) not in reader.probes:
            # every question asks about the same segments, but each about pieces of its own
            shared = (start, stop) in self.segments
            reader._probe(start, stop, range(len(reader.prompts)) if shared else [index])
            self.done += stop - start
            reader.progress("reading segments", min(self.done, self.total), self.total)
        return reader.probes[start, stop, index]

    def early(self, layer: int) -> Tensor:
        return self.reader.early(self.index, layer)

    def write(self, lead: str, most: int) -> str:
        return self.reader.write(self.index, lead, most)

    def embed(self, start: int, stop: int) -> Tensor:
        return self.reader.mean(self.reader.ids[start:stop], (start, stop))

    def embed_question(self) -> Tensor:
        return self.reader.mean(self.reader.prompts[self.index].question)
