from __future__ import annotations

import pytest

from lengthwise.kernels import build, library


@pytest.fixture(params=build.ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that this machine runs, as the one in use."""
    if request.param not in library.available():
        pytest.skip(f"{request.param} cannot run here")
    monkeypatch.setenv("LENGTHWISE_ISA", request.param)
    return str(request.param)
