"""A loaded model as a subject: every sample is read under a stack, answered greedily, and its ledger kept."""

from __future__ import annotations

from typing import Any

from lengthwise import models
from lengthwise._reader import Reader, Reading
from lengthwise.bench.framing import Framing, Template
from lengthwise.bench.store import COSTS
from lengthwise.bench.subject import Outcome
from lengthwise.bench.task import Sample
from lengthwise.core import compat
from lengthwise.core.stack import stack as make_stack
from lengthwise.documents import Corpus, Document
from lengthwise.errors import StackRefused
from lengthwise.evidence import passages
from lengthwise.models._gguf import quiet
from lengthwise.plan.roofline import measured_threads


class LocalModel:
    """A model in this process. `name` is what `lengthwise.models.load` takes."""

    stacks = True

    def __init__(self, name: str, *, template: Template = "auto", dtype: str | None = None) -> None:
        self.name = name
        self.model, self.tokenizer = models.load(name, dtype=dtype)
        self.tokenizer.model_max_length = int(1e30)  # no remark that a text is longer than the window
        self.sizes = Framing(self.tokenizer, template)
        self.window = compat.model_facts(self.model).window
        self._hash = models.fingerprint(self.model)
        self._threads = measured_threads(self.model)

    def about(self) -> dict[str, Any]:
        """What a row says of the model."""
        return {
            "model": self.name,
            "model_hash": self._hash,
            "tokenizer": self.sizes.digest(),
            "template": self.sizes.template,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "window": self.window,
        }

    def answer(self, sample: Sample, stack: str, max_new_tokens: int) -> Outcome:
        """Read and answer one sample under `stack`. Raises StackRefused and what the stack raises."""
        document, offsets, prompt = self.sizes.prompt(sample)
        with quiet(), make_stack(stack).on(self.model, threads=self._threads) as run:
            reader = Reader(
                run, self.tokenizer, [prompt], document, None, None, None, self.name, sample.document, offsets
            )
            if self.window and len(prompt) + max_new_tokens >= self.window and len(document):
                raise StackRefused(stack, [f"question and answer alone fill the window of {self.window:,} tokens"])
            choice = reader.choose(0, max_new_tokens)
            got = reader.read(0, choice, max_new_tokens, sample.stop)
            answer = got.text
            ledger = run.ledger
        for end in sample.stop:
            answer = answer.split(end)[0]
        facts = ledger.to_json()
        return Outcome(
            answer,
            {cost: facts[cost] for cost in COSTS},
            len(document) + len(prompt),
            self._evidence(sample, got, offsets),
            ledger.notes,
        )

    def _evidence(self, sample: Sample, got: Reading, offsets: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """The strongest passages of the document, as far as it was read."""
        if not len(got.kept):
            return []
        spans = [offsets[i] for i in got.kept.tolist()]
        found = passages(got.mass, spans, Corpus([Document("", sample.document)]), most=3)
        return [{"text": p.text, "weight": round(p.weight, 4), "start": p.start, "end": p.end} for p in found]
