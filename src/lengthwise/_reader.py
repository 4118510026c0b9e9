"""Reading a text with a question under a run: choose what goes before the model, read it, write the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from lengthwise import models
from lengthwise.core import saved
from lengthwise.core.attach import Run
from lengthwise.core.ledger import si
from lengthwise.core.seams import Choice, Probe, Prompts
from lengthwise.core.session import Session
from lengthwise.core.watch import Watch
from lengthwise.errors import LengthwiseError

Progress = Callable[[str, int, int], None]  # (what is being done, tokens done, tokens in all)
LEAD = "\n\nUsing only the text above, answer briefly:"


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


def starts_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a beginning-of-sequence token before a text of its own accord."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def frame(question: str, tokenizer: Any) -> Prompt:
    """The tokens around a text: the model's chat template when it has one, else a plain question and 'Answer:'."""
    chat = bool(getattr(tokenizer, "chat_template", None))
    head, tail = chat_frame(tokenizer) if chat else ("", "\nAnswer:")

    def tokens(text: str) -> Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)

    start = tokens(head)
    if not head and starts_with_bos(tokenizer):
        start = torch.tensor([tokenizer.bos_token_id])
    return Prompt(start, tokens(LEAD), tokens(f" {question.strip()}"), tokens(tail))


class _Ends(StoppingCriteria):  # type: ignore[misc]
    """True once the text written after `start` tokens holds one of the strings `ends`."""

    def __init__(self, tokenizer: Any, start: int, ends: Sequence[str]) -> None:
        self.tokenizer, self.start, self.ends = tokenizer, start, ends
        self.tail = max(map(len, ends)) + 4  # a token may be less than a character

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        text = self.tokenizer.decode(input_ids[0, self.start :][-self.tail :])
        return torch.tensor([any(end in text for end in self.ends)], device=input_ids.device)


class Reader:
    """Reads a text under a run and answers from it, keeping what was read in a folder if there is one."""

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
    ) -> None:
        self.run, self.tokenizer, self.prompts, self.ids = run, tokenizer, prompts, ids
        self.folder, self.stop = folder, stop or (lambda: False)
        self.progress = progress or (lambda what, done, total: None)
        digest = hashlib.sha256(torch.cat([prompts[0].head, ids]).numpy().tobytes()).hexdigest()
        self.about = {"model": models.fingerprint(run.model), "stack": str(run.stack), "text": digest[:32]}
        self.probes: dict[tuple[int, int, int], Probe] = {}
        self.whole: Session | None = None
        run.ledger.model = name

    def choose(self, index: int, reserve: int) -> Choice:
        """What of the text goes before the model for one question: all of it, unless the stack has a prompt method."""
        method = next((m for m in self.run.stack.methods if isinstance(m, Prompts)), None)
        length = len(self.ids)
        if method is None:
            return Choice(((0, length),))
        limit = self.run.facts.window - max(map(len, self.prompts)) - reserve
        segments = method.segments(length, limit)
        total, done = sum(b - a for a, b in segments), 0

        def probe(a: int, b: int) -> Probe:
            nonlocal done
            if (a, b, index) not in self.probes:
                # every question asks about the same segments, but each about pieces of its own
                self._probe(a, b, range(len(self.prompts)) if (a, b) in segments else [index])
                done += b - a
                self.progress("reading segments", min(done, total), total)
            return self.probes[a, b, index]

        choice = method.choose(length, limit, probe)
        ledger = self.run.ledger
        ledger.consulted[method.spec.name] += 1
        kept = sum(b - a for a, b in choice.spans)
        ledger.acted[method.spec.name] += kept < length
        if kept < length:
            ledger.whole = length + len(self.prompts[index]), self.run.facts.heads
            ledger.notes.append(f"{method.spec.name} kept {kept:,} of {length:,} tokens in {len(choice.spans)} spans")
        return choice

    @torch.no_grad()
    def _probe(self, a: int, b: int, indices: Sequence[int]) -> None:
        """Read a segment once, and every question of `indices` after it."""
        if self.stop():
            raise Interrupted(self._interrupted())
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

    def answer(self, index: int, kept: Tensor, most: int, ends: Sequence[str] = ()) -> tuple[str, Watch]:
        """Read the kept tokens (indices [n]) and a question, then write; watches attention while it writes.

        Writing stops after `most` tokens, at the end of the sequence, or at any of the strings `ends`.
        """
        prompt = self.prompts[index]
        before = torch.cat([prompt.head, self.ids[kept]])
        full = torch.cat([before, prompt.after])[None]
        cache = self._read(before, len(full[0]) + most, last=index == len(self.prompts) - 1)
        device = next(self.run.model.parameters()).device
        for _ in self.run.feed(full[:, :-1], cache):
            pass
        self.progress("writing", 0, most)
        ids = full.to(device)
        with self.run.watching(cache) as watch, self.run.ledger.timing("decode"):
            out = self.run.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=self.tokenizer.eos_token_id,
                stopping_criteria=[_Ends(self.tokenizer, full.shape[1], ends)] if ends else None,
            )
        written = out[0, full.shape[1] :]
        self.run.ledger.tokens_written += len(written)
        self.progress("writing", most, most)
        return self.tokenizer.decode(written, skip_special_tokens=True).strip(), watch

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
