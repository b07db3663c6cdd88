"""Taps, blocks and a schedule in front of any optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical, Gaussian, Preconditioner
from natgrad.blocks import KFAC
from natgrad.decompose import Factor
from tests.networks import mlp, normal


def backward(net: nn.Module, k: int = 0) -> None:
    x = normal(8, 4, seed=k)
    F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()


def make(net: nn.Module, **kwargs) -> Preconditioner:
    return Preconditioner(net, KFAC, likelihood=Categorical(), fisher="exact", **kwargs)


def blocks_of(pre: Preconditioner) -> dict[str, Tensor]:
    return dict(pre.curvature.blocks.state_dict())


def test_in_front_of_sgd_it_is_the_optimizer_bit_for_bit():
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    pre, sgd = make(net), torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    opt = natgrad.KFAC(twin, lr=0.1, damping=1e-3, likelihood=Categorical(), fisher="exact")
    for k in range(4):
        net.zero_grad()
        twin.zero_grad()
        backward(net, k)
        backward(twin, k)
        assert pre.step()
        sgd.step()
        opt.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


def test_it_stands_in_front_of_any_optimizer():
    net = mlp(4, 6, 3)
    pre, adam = make(net), torch.optim.Adam(net.parameters(), lr=0.01)
    for k in range(3):
        adam.zero_grad()
        backward(net, k)
        pre.step()
        adam.step()
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


def test_a_step_that_is_not_finite_says_so_and_changes_no_statistics():
    net = mlp(4, 6, 3)
    pre = make(net)
    backward(net)
    assert pre.step()
    before = copy.deepcopy(blocks_of(pre))
    net.zero_grad()
    backward(net)
    net[2].bias.grad[0] = float("nan")
    assert not pre.step()
    after = blocks_of(pre)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in after)
    assert (pre.steps, pre.skipped) == (1, 1)


@pytest.mark.parametrize("evaluate", [False, True])
def test_a_step_without_any_statistics_says_what_to_do(evaluate):
    net = mlp(4, 6, 3)
    pre = make(net)
    net.train(not evaluate)
    if evaluate:
        backward(net)
    with pytest.raises(RuntimeError, match=r"call the model itself .* in training mode"):
        pre.step()


def test_a_layer_that_takes_no_part_keeps_its_plain_gradient_until_it_does():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.both = mlp(4, 3)[0], mlp(4, 3)[0], False

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x) if self.both else self.a(x)

    net = Branches()
    pre = make(net)
    backward(net)
    net.b.weight.grad, net.b.bias.grad = normal(3, 4), normal(3)
    with pytest.warns(RuntimeWarning, match="'b': a gradient but no statistics"):
        pre.step()
    assert torch.equal(net.b.weight.grad, normal(3, 4))
    net.zero_grad()
    net.both = True
    backward(net)
    plain = net.b.weight.grad.clone()
    pre.step()
    assert not torch.allclose(net.b.weight.grad, plain)


def test_a_parameter_without_a_gradient_gets_none():
    net = mlp(4, 6, 3)
    pre = make(net)
    backward(net)
    net[0].weight.grad = net[0].bias.grad = None
    pre.step()
    assert net[0].weight.grad is None
    assert net[0].bias.grad is None


class Stubborn(KFAC):
    """A K-FAC block whose decomposition fails when told to."""

    broken = False

    def factors(self):
        found = super().factors()
        if not Stubborn.broken:
            return found
        return {
            name: Factor(-torch.eye(len(f.matrix)).to(f.matrix), 0.0) for name, f in found.items()
        }


def failing(steps_before: int) -> tuple[nn.Module, Preconditioner]:
    Stubborn.broken = False
    net = mlp(4, 3)
    pre = Preconditioner(net, Stubborn, likelihood=Gaussian(), fisher="exact")
    for k in range(steps_before):
        net.zero_grad()
        net(normal(8, 4, seed=k)).square().sum().backward()
        pre.step()
    Stubborn.broken = True
    net.zero_grad()
    net(normal(8, 4)).square().sum().backward()
    return net, pre


def test_a_failed_decomposition_keeps_the_last_good_one_and_warns_with_the_layers_name():
    net, pre = failing(2)
    block = pre.layers[0].block
    good, plain = block.A_inverse.clone(), net[0].weight.grad.clone()
    message = r"layer '0', factor A 5x5 \(eigenvalues -1 to -1\); G 3x3 .*\(1 in a row\); the last"
    with pytest.warns(RuntimeWarning, match=message):
        pre.step()
    assert torch.equal(block.A_inverse, good)
    assert not torch.allclose(net[0].weight.grad, plain)


def test_a_first_decomposition_that_fails_leaves_the_gradient_plain():
    net, pre = failing(0)
    plain = net[0].weight.grad.clone()
    with pytest.warns(RuntimeWarning, match="its gradient stays plain"):
        pre.step()
    assert torch.equal(net[0].weight.grad, plain)


def test_three_failures_in_a_row_raise_and_a_success_between_forgives():
    _, pre = failing(1)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="in a row"):
            pre.step()
    Stubborn.broken = False
    pre.step()
    Stubborn.broken = True
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="in a row"):
            pre.step()
    with pytest.raises(RuntimeError, match=r"\(3 in a row\).*Raise the damping"):
        pre.step()


def test_a_model_with_nothing_to_precondition_is_refused_with_reasons():
    frozen = mlp(4, 3).requires_grad_(False)
    with pytest.raises(ValueError, match=r"found no layer to precondition.*0: .*frozen"):
        make(frozen)


class Scaled(nn.Module):
    """A network with a parameter of its own that no layer covers."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = mlp(4, 3), nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale


def test_strict_refuses_a_model_that_is_not_covered_whole():
    with pytest.raises(ValueError, match=r"strict=True.*no view for Scaled"):
        make(Scaled(), strict=True)
    make(mlp(4, 3), strict=True)
    frozen = Scaled()
    frozen.scale.requires_grad_(False)
    make(frozen, strict=True)


def test_what_is_not_covered_keeps_its_plain_gradient():
    net = Scaled()
    pre = make(net)
    backward(net)
    plain = net.scale.grad.clone()
    pre.step()
    assert torch.equal(net.scale.grad, plain)


def test_kl_clip_takes_the_rate_it_is_given():
    norms = []
    for lr in (1.0, 2.0):
        net = mlp(4, 6, 3)
        pre = make(net, kl_clip=1e-6)
        backward(net)
        pre.step(lr=lr)
        norms.append(float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm()))
    assert norms[0] == pytest.approx(2 * norms[1], rel=1e-12)


def test_a_state_of_other_layers_is_refused():
    with pytest.raises(RuntimeError, match=r"'0.weight' is \[6, 4\] there, \[3, 4\] here"):
        make(mlp(4, 3)).load_state_dict(make(mlp(4, 6, 3)).state_dict())
