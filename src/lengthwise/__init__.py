"""Lengthwise: read, think and write at lengths a model was not built for, and see what each length cost."""

from __future__ import annotations

from lengthwise.core.stack import Stack, explain, stack
from lengthwise.errors import LengthwiseError

__version__ = "0.1.0"
__all__ = ["LengthwiseError", "Stack", "__version__", "explain", "stack"]
