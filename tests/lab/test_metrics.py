import pytest
import torch

from natgrad.lab.metrics import ACCURACY, SQUARED_ERROR


def test_accuracy_is_in_percent() -> None:
    f = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    assert ACCURACY.of(f, torch.tensor([0, 1, 1, 1])) == 75.0


def test_squared_error_is_summed_over_an_image() -> None:
    f = torch.zeros(3, 4)  # predicts 1/2 everywhere
    assert SQUARED_ERROR.of(f, torch.ones(3, 4)) == pytest.approx(1.0)
