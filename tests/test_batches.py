"""Inputs: one batch or many, as tensors, tuples and mappings, and targets that go with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import natgrad
from natgrad import Categorical
from natgrad.batches import Batches, call
from natgrad.fisher import STRUCTURES
from tests.networks import mlp, normal, relative
from tests.oracle import output, targets

every_structure = pytest.mark.parametrize("structure", STRUCTURES)
TWO_PASSES = ("ekfac", "tekfac")


class TwoInputs(nn.Module):
    """``left [n, 3]`` times ``right [n, 3]``, through a network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 4, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.net(left * right)


def fisher(net: nn.Module, inputs, structure: str, **kwargs) -> Tensor:
    return natgrad.fisher(net, inputs, Categorical(), structure=structure, **kwargs).dense()


@every_structure
def test_a_tuple_is_passed_on_by_position_and_a_mapping_by_name(structure):
    net, left, right = TwoInputs(), normal(12, 3), normal(12, 3, seed=1)
    expected = fisher(net.net, left * right, structure)
    as_tuple = (left, right)
    as_mapping = {"right": right, "left": left}
    halves = [(left[:5], right[:5]), {"left": left[5:], "right": right[5:]}]
    for inputs in (as_tuple, as_mapping, [as_tuple], halves):
        assert relative(fisher(net, inputs, structure), expected) < 1e-9


@every_structure
def test_a_loader_of_pairs_with_functions_that_pick_inputs_and_targets(structure):
    net, x = mlp(3, 4, 2), normal(12, 3)
    y = targets("categorical", output(net, x))
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    expected = fisher(net, x, structure, kind="empirical", targets=y)
    found = fisher(
        net, loader, structure, kind="empirical",
        batch_to_input=lambda batch: batch[0], targets=lambda batch: batch[1],
    )  # fmt: skip
    assert relative(found, expected) < 1e-9


@every_structure
def test_a_one_shot_iterator_is_refused_where_two_passes_are_needed(structure):
    net, x = mlp(3, 4, 2), normal(12, 3)
    if structure in TWO_PASSES:
        with pytest.raises(ValueError, match=r"inputs is a one-shot iterator.*goes .* twice"):
            fisher(net, iter(x.split(4)), structure)
    else:
        found = fisher(net, iter(x.split(4)), structure)
        assert relative(found, fisher(net, x, structure)) < 1e-12


@pytest.mark.parametrize("structure", TWO_PASSES)
def test_one_shot_targets_are_refused_too(structure):
    net, x = mlp(3, 4, 2), normal(4, 3)
    y = targets("categorical", output(net, x))
    with pytest.raises(ValueError, match="targets is a one-shot iterator"):
        fisher(net, [x], structure, kind="empirical", targets=iter([y]))
    with pytest.raises(ValueError, match="inputs is a one-shot iterator"):
        natgrad.compare(net, (batch for batch in [x]), Categorical())


def test_fewer_targets_than_inputs_are_refused():
    net, x = mlp(3, 4, 2), normal(8, 3)
    y = targets("categorical", output(net, x))
    with pytest.raises(ValueError, match="targets ran out before inputs"):
        fisher(net, list(x.split(4)), "kfac", kind="empirical", targets=[y[:4]])


def test_batches_start_again():
    x = normal(6, 3)
    batches = Batches(list(x.split(2)), targets=[torch.tensor([k]) for k in range(3)])
    for _ in range(2):
        found = list(batches)
        assert torch.equal(torch.cat([given for given, _ in found]), x)
        assert [int(target) for _, target in found] == [0, 1, 2]


def test_without_targets_every_batch_comes_with_none():
    assert [target for _, target in Batches([normal(2, 3)] * 3)] == [None] * 3


def test_a_call_unpacks_what_the_batch_is():
    def model(first: Tensor, second: Tensor | float = 0.0) -> Tensor:
        return first + 10 * second

    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert float(call(model, one)) == 1
    assert float(call(model, (one, two))) == 21
    assert float(call(model, {"second": one, "first": two})) == 12


class Skips(nn.Module):
    """A network whose middle layer is left out where the batch says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = mlp(3, 4), mlp(4, 4, seed=1), mlp(4, 2, seed=2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        h = self.first(x).tanh()
        return self.last(h if bool(skip) else self.middle(h).tanh())


@pytest.mark.parametrize("structure", ["block", "diagonal", "kfac", "tkfac", "ekfac", "tekfac"])
def test_batches_that_leave_a_layer_out_count_with_gradients_of_zero(structure):
    net, x = Skips(), normal(12, 3)
    used, skipped = (x[:4], torch.tensor(0)), (x[4:], torch.tensor(1))
    found = natgrad.fisher(net, [used, skipped], Categorical(), structure=structure)
    alone = natgrad.fisher(net, [used], Categorical(), structure=structure)
    whole = natgrad.fisher(net, [used, skipped], Categorical(), structure="dense").dense()
    middle = slice(16, 36)
    assert relative(found.dense()[middle, middle], alone.dense()[middle, middle] / 3) < 1e-9
    if structure == "block":
        assert relative(found.dense()[middle, middle], whole[middle, middle]) < 1e-12
