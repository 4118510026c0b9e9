from __future__ import annotations

import pytest
from transformers import PreTrainedModel

import tiny


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    return tiny.model("llama")
