"""Lengthwise: read, think and write at lengths a model was not built for, and see what each length cost.

import lengthwise

answer = lengthwise.ask(["report.pdf"], "Who signed the contract?")
model, tokenizer = lengthwise.models.load("smollm2")
with lengthwise.stack("lm-infinite + int8").on(model) as run:
    out = model.generate(**inputs, past_key_values=run.cache())
print(run.ledger)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lengthwise.core.stack import Stack, explain, stack
from lengthwise.errors import LengthwiseError

if TYPE_CHECKING:
    from lengthwise import models
    from lengthwise._ask import Answer, ask, ask_all
    from lengthwise.core.attach import Run
    from lengthwise.thinking._think import think

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "LengthwiseError",
    "Run",
    "Stack",
    "__version__",
    "ask",
    "ask_all",
    "explain",
    "models",
    "stack",
    "think",
]

_LAZY = {
    "Answer": "lengthwise._ask",
    "Run": "lengthwise.core.attach",
    "ask": "lengthwise._ask",
    "ask_all": "lengthwise._ask",
    "think": "lengthwise.thinking._think",
}


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for, so that the command line starts quickly."""
    if name == "models":
        return importlib.import_module("lengthwise.models")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lengthwise' has no attribute '{name}'")
