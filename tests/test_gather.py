"""Gathering samples outside of training: what it leaves as it was, and what it keeps alive."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.fisher import STRUCTURES
from natgrad.gather import Gatherer
from natgrad.layers import views_of
from tests.networks import mlp, normal, relative
from tests.oracle import output, targets

every_structure = pytest.mark.parametrize("structure", STRUCTURES)


def noisy() -> nn.Sequential:
    """A network that is another function when training."""
    first, last = mlp(3, 4), mlp(4, 2)
    return nn.Sequential(*first, nn.BatchNorm1d(4, affine=False), nn.Dropout(0.5), *last).double()


@every_structure
def test_the_model_runs_in_eval_mode(structure):
    net, x = noisy(), normal(12, 3)
    net[1].running_mean.add_(0.5)
    plain = nn.Sequential(net[0], nn.BatchNorm1d(4, affine=False), net[3]).double()
    plain[1].load_state_dict(net[1].state_dict())
    plain.eval()
    found, expected = (
        natgrad.fisher(each, x, Categorical(), structure=structure).dense() for each in (net, plain)
    )
    assert relative(found, expected) < 1e-9
    assert float(net[1].running_mean.mean()) == pytest.approx(0.5, abs=1e-12)
    assert int(net[1].num_batches_tracked) == 0


@every_structure
def test_every_modules_own_mode_is_put_back(structure):
    net = noisy()
    net.train()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    natgrad.fisher(net, normal(12, 3), Categorical(), structure=structure)
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(RuntimeError, match="shapes"):
        natgrad.fisher(net, normal(12, 7), Categorical(), structure=structure)
    assert [module.training for module in net.modules()] == modes


@every_structure
@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
def test_gradients_random_numbers_hooks_and_parameters_are_left_alone(structure, kind):
    net, x = noisy(), normal(12, 3)
    y = targets("categorical", output(net, x))
    for k, p in enumerate(net.parameters()):
        p.grad = torch.full_like(p, float(k)) if k else None
    grads = [None if p.grad is None else (p.grad, p.grad.clone()) for p in net.parameters()]
    before = [p.detach().clone() for p in net.parameters()]
    state, other = torch.get_rng_state(), random.getstate()
    natgrad.fisher(net, x, Categorical(), kind=kind, structure=structure, targets=y)
    natgrad.compare(net, x, Categorical())
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == other
    for p, kept, value in zip(net.parameters(), grads, before, strict=True):
        assert torch.equal(p, value)
        assert p.requires_grad
        if kept is None:
            assert p.grad is None
        else:
            assert p.grad is kept[0]
            assert torch.equal(*kept)
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


@every_structure
def test_the_fisher_matrix_can_be_taken_where_gradients_are_switched_off(structure):
    net, x = mlp(3, 4, 2), normal(12, 3)
    expected = natgrad.fisher(net, x, Categorical(), structure=structure).dense()
    with torch.no_grad():
        found = natgrad.fisher(net, x, Categorical(), structure=structure).dense()
    assert torch.equal(found, expected)


class Counted:
    """Batches made when asked for; counts how many of them are alive at the same time."""

    def __init__(self, batches: int) -> None:
        self.batches, self.most = batches, 0

    def __iter__(self) -> Iterator[Tensor]:
        alive: list[weakref.ref[Tensor]] = []
        for k in range(self.batches):
            batch = normal(4, 3, seed=k)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            self.most = max(self.most, sum(each() is not None for each in alive))


@every_structure
def test_memory_does_not_grow_with_the_number_of_batches(structure):
    few, many = Counted(3), Counted(12)
    for batches in (few, many):
        natgrad.fisher(mlp(3, 4, 2), batches, Categorical(), structure=structure)
    assert many.most <= few.most <= 2


def test_a_second_pass_draws_the_same_targets_and_the_generator_moves_on_once():
    net, x = mlp(3, 4, 2), normal(5, 3)
    views, _ = views_of(net)
    generator = torch.Generator().manual_seed(7)
    gatherer = Gatherer(net, views, Categorical(), kind="sampled", generator=generator)
    batches = natgrad.batches.Batches(list(x.split([2, 3])))
    first, second = ([found.samples[0].g for found in gatherer.over(batches)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    after = generator.get_state()
    other = torch.Generator().manual_seed(7)
    again = Gatherer(net, views, Categorical(), kind="sampled", generator=other)
    list(again.over(batches))
    assert torch.equal(other.get_state(), after)
    assert not torch.equal(torch.Generator().manual_seed(7).get_state(), after)


def test_per_example_gradients_of_other_parameters_come_with_the_samples():
    net, x = mlp(3, 4, 2), normal(5, 3)
    y = targets("categorical", output(net, x))
    views, _ = views_of(net)
    wanted = [net[2].bias, net[0].weight]
    gatherer = Gatherer(net, views, Categorical(), kind="empirical", rest=wanted)
    [found] = gatherer.over(natgrad.batches.Batches(x, y))
    assert found.rest.shape == (1, 5, 2 + 12)
    for n in range(5):
        loss = nn.functional.cross_entropy(net(x[n : n + 1]), y[n : n + 1])
        grads = torch.autograd.grad(loss, wanted)
        expected = torch.cat([grad.flatten() for grad in grads])
        assert relative(found.rest[0, n], expected) < 1e-12


def test_an_interrupted_pass_leaves_no_hooks():
    net, x = mlp(3, 4, 2).train(), normal(6, 3)
    views, _ = views_of(net)
    over = Gatherer(net, views, Categorical()).over(natgrad.batches.Batches(list(x.split(2))))
    next(over)
    assert net[0]._forward_hooks
    over.close()
    assert not net[0]._forward_hooks
    assert net.training
