"""Which layers of a model are covered, and why the others are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from natgrad.layers import views_of
from tests.networks import mlp


def names(model: nn.Module) -> list[str]:
    return [view.name for view in views_of(model)[0]]


def reasons(model: nn.Module) -> dict[str, str]:
    return {left.name: left.reason for left in views_of(model)[1]}


def test_every_linear_layer_is_covered_in_the_order_of_the_model():
    assert names(mlp(4, 5, 3, 2)) == ["0", "2", "4"]
    assert reasons(mlp(4, 5, 3, 2)) == {}
    assert names(nn.ModuleDict({"b": mlp(2, 2), "a": nn.Linear(2, 2)})) == ["b.0", "a"]
    assert names(nn.Linear(3, 2)) == [""]


def test_modules_with_parameters_that_no_view_reads_are_left_over_by_name():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(1)), nn.Linear(2, 2)

    model = nn.Sequential(Odd(), nn.ReLU())
    assert names(model) == ["0.inner"]
    assert reasons(model) == {"0": "no view for Odd"}


def test_tied_parameters_are_left_to_their_plain_gradient():
    model = mlp(3, 3, 3, 3)
    model[4].weight = model[0].weight
    assert names(model) == ["2"]
    found = reasons(model)
    assert found.keys() == {"0", "4"}
    assert "shares weight with 4" in found["0"]
    assert "shares weight with 0" in found["4"]


def test_a_layer_that_shares_with_a_module_of_another_kind_is_left_over():
    class Head(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

    body = nn.Linear(3, 3)
    model = nn.ModuleDict({"body": body, "head": Head(body.weight)})
    assert names(model) == []
    assert "shares weight with head" in reasons(model)["body"]


def test_one_module_under_two_names_is_one_layer():
    layer = nn.Linear(3, 3)
    assert names(nn.Sequential(layer, nn.ReLU(), layer)) == ["0"]


def test_a_frozen_weight_is_left_over_and_a_frozen_bias_is_not():
    model = mlp(3, 3, 3)
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    assert names(model) == ["2"]
    assert "frozen" in reasons(model)["0"]


def test_a_subclass_is_covered_unless_it_has_a_forward_of_its_own():
    class Renamed(nn.Linear):
        pass

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Renamed(3, 3), Scaled(3, 3))
    assert names(model) == ["0"]
    assert reasons(model) == {"1": "Scaled overrides nn.Linear.forward"}


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_layer_without_features_is_left_over():
    assert "empty, shape (4, 0)" in reasons(nn.Linear(0, 4))[""]


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_a_weight_that_is_computed_from_other_parameters_is_left_over(wrap):
    model = nn.Sequential(nn.Linear(3, 3), wrap(nn.Linear(3, 3)))
    assert names(model) == ["0"]
    assert "1" in reasons(model)
