from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from lengthwise.kernels import library

library.setting = os.environ.get  # tests change the environment on the way


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
