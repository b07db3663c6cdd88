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


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.LSTM(2, 3), "recurrent layers apply"),
        (nn.GRU(2, 3, bidirectional=True), "recurrent layers apply"),
        (nn.RNN(2, 3), "recurrent layers apply"),
        (nn.GRUCell(2, 3), "recurrent cells apply"),
        (nn.Bilinear(2, 3, 4), "bilinear"),
        (nn.PReLU(), "slope of PReLU"),
        (nn.EmbeddingBag(5, 2), "embedding bag"),
        (nn.LazyLinear(3), "not initialised yet: run one forward first"),
        (nn.LazyConv2d(3, 2), "not initialised yet: run one forward first"),
        (nn.LazyBatchNorm1d(), "not initialised yet: run one forward first"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_layers_that_no_view_can_read_are_named_with_the_reason(module, reason):
    model = nn.ModuleDict({"body": module, "head": nn.Linear(2, 2)})
    assert names(model) == ["head"]
    assert reason in reasons(model)["body"]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_layer_is_covered_once_it_is_initialised():
    model = nn.Sequential(nn.LazyConv1d(3, 2), nn.Flatten(), nn.LazyLinear(2))
    model(torch.ones(2, 3, 4))
    assert names(model) == ["0", "2"]


def test_a_frozen_subtree_is_left_alone():
    layer = nn.TransformerEncoderLayer(4, 2, 5)
    layer.self_attn.requires_grad_(False)
    layer.norm1.requires_grad_(False)
    model = nn.Sequential(layer, nn.Linear(4, 2))
    assert names(model) == ["0.linear1", "0.linear2", "0.norm2", "1"]
    left = reasons(model)
    assert left.keys() == {"0.self_attn", "0.self_attn.out_proj", "0.norm1"}
    assert set(left.values()) == {"frozen (requires_grad=False)"}


def test_modules_of_sequence_first_transformers_are_marked():
    model = nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 5),
        nn.TransformerEncoderLayer(4, 2, 5, batch_first=True),
        nn.Linear(4, 2),
    )
    marked = {view.name.split(".")[0] for view in views_of(model)[0] if view.sequence_first}
    assert marked == {"0"}
