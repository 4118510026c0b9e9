"""llama.cpp as a peer of `engine.py`, through llama-cpp-python: a GGUF file of the same weights, read token for token.

f16 and quantised files come from SmolLM2's GGUF with `llama_cpp.llama_model_quantize` (`allow_requantize` for f16).
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

BATCH = 2048  # llama.cpp's own default


class LlamaCpp:
    """A model of llama.cpp on one thread, with a 16-bit cache."""

    def __init__(self, path: str, length: int) -> None:
        import llama_cpp

        self.name = f"llama.cpp {Path(path).stem.rpartition('-')[2]}"
        self._llm: Any = llama_cpp.Llama(
            path, n_ctx=length + 64, n_batch=BATCH, n_threads=1, n_threads_batch=1, verbose=False
        )
        self._cpp = llama_cpp

    def _eval(self, tokens: list[int], start: int, logits: bool) -> None:
        """Add `tokens` at position `start`; `logits`: of every token, else of the last one."""
        for a in range(0, len(tokens), BATCH):
            self._llm._batch.set_batch(batch=tokens[a : a + BATCH], n_past=start + a, logits_all=logits)
            self._llm._ctx.decode(self._llm._batch)

    def _logits(self, row: int) -> Tensor:
        found = self._cpp.llama_get_logits_ith(self._llm._ctx.ctx, row)
        cells = ctypes.cast(found, ctypes.POINTER(ctypes.c_float))
        return torch.from_numpy(np.ctypeslib.as_array(cells, (self._llm.n_vocab(),)).copy())

    def read(self, ids: Tensor, last: int) -> tuple[float, float]:
        """(CPU seconds for all but the last token, loss of the last `last` tokens)."""
        tokens = ids[0, :-1].tolist()
        count = min(last, len(tokens))
        self._llm._ctx.kv_cache_clear()
        begun = time.process_time()
        self._eval(tokens[:-count], 0, logits=False)
        self._eval(tokens[-count:], len(tokens) - count, logits=True)
        spent = time.process_time() - begun
        rows = torch.stack([self._logits(i) for i in range(count)])
        return spent, float(cross_entropy(rows, ids[0, -count:]))

    def decode(self, ids: Tensor, count: int) -> tuple[list[float], list[int]]:
        """CPU seconds of each of `count` greedy steps after all but the last token of `ids`, and the tokens."""
        self._llm._ctx.kv_cache_clear()
        given = ids[0].tolist()
        self._eval(given[:-1], 0, logits=False)
        times, words, word = [], [], given[-1]
        for i in range(count):
            begun = time.process_time()
            self._eval([word], len(given) - 1 + i, logits=False)
            times.append(time.process_time() - begun)
            word = int(self._logits(-1).argmax())
            words.append(word)
        return times, words

    def close(self) -> None:
        """Give its memory back."""
        self._llm.close()
