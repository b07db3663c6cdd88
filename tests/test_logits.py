"""Which entry of a model's output is the logits."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from natgrad.logits import logits_of

Pair = namedtuple("Pair", ["hidden", "logits"])
f, h = torch.ones(2, 3), torch.zeros(2, 4)


@dataclass
class Output:
    logits: Tensor | None
    hidden: Tensor


@pytest.mark.parametrize(
    ("output", "key"),
    [
        (f, None),
        ((f,), None),
        ([3, f, "x"], None),
        ((h, f), 1),
        ((h, f), -1),
        (Pair(h, f), None),
        (Pair(f, h), "hidden"),
        ({"hidden": h, "logits": f}, None),
        ({"out": f, "step": 3}, None),
        ({"hidden": h, "out": f}, "out"),
        (Output(f, h), None),
        (Output(h, f), "hidden"),
        ({"deep": [h, (f,)]}, lambda o: o["deep"][1][0]),
    ],
)
def test_logits_are_found(output, key):
    assert logits_of(output, key) is f


@pytest.mark.parametrize(
    ("output", "key", "message"),
    [
        ((torch.ones(1), torch.zeros(1)), None, r"\(tuple\) is the logits; say so with logits="),
        ({"b": torch.ones(1), "a": torch.zeros(1)}, None, r"\(\['a', 'b'\]\) is the logits"),
        ({"a": 1.0}, "a", "logits='a' gave float"),
        (Output(torch.ones(1), torch.ones(1)), "scores", "logits='scores' gave NoneType"),
        (None, None, "NoneType"),
    ],
)
def test_logits_that_cannot_be_told_are_asked_for(output, key, message):
    with pytest.raises(TypeError, match=message):
        logits_of(output, key)
