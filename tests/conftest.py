"""Settings all tests share: one thread, a fixed seed, few and reproducible hypothesis examples.

Networks here are tiny: they take the ways that save work however little it is.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from natgrad import flops

torch.set_num_threads(1)

settings.register_profile("natgrad", max_examples=15, deadline=None, derandomize=True)
settings.load_profile("natgrad")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _savings_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "WORTHWHILE", 0)
