"""Kernels: a plain `naive.py` beside every fast version, and the library of compiled ones.

The functions are named as their folders: `from lengthwise.kernels import attend` is the function.
"""

from __future__ import annotations

from lengthwise.kernels.attend import BlockLists, Coded, attend
from lengthwise.kernels.decode import decode
from lengthwise.kernels.fused import add_rms_norm, rms_norm, rotary, silu_mul
from lengthwise.kernels.library import backend, describe
from lengthwise.kernels.linear import linear
from lengthwise.kernels.mass import block_mass
from lengthwise.kernels.summary import Summary, representatives, summarize, top_blocks

__all__ = [
    "BlockLists",
    "Coded",
    "Summary",
    "add_rms_norm",
    "attend",
    "backend",
    "block_mass",
    "decode",
    "describe",
    "linear",
    "representatives",
    "rms_norm",
    "rotary",
    "silu_mul",
    "summarize",
    "top_blocks",
]
