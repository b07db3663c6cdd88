"""The optimizers: each rule of the step against the formula written out."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Bernoulli, Categorical, Gaussian
from natgrad.blocks import Block
from natgrad.damping import Constant
from natgrad.optim import NaturalGradient
from tests import oracle
from tests.networks import mlp, normal, relative
from tests.reference import ReferenceKFAC

USUAL = {  # likelihood, and the loss as users write it
    "categorical": (Categorical(), F.cross_entropy),
    "bernoulli": (
        Bernoulli(),
        lambda f, y: F.binary_cross_entropy_with_logits(f, y, reduction="sum") / len(f),
    ),
    "gaussian": (Gaussian(), lambda f, y: 0.5 * F.mse_loss(f, y, reduction="sum") / len(f)),
}


def batches(kind: str, count: int) -> list[tuple[Tensor, Tensor]]:
    xs = [normal(8, 4, seed=k) for k in range(count)]
    return [(x, oracle.targets(kind, x[:, :3], seed=k)) for k, x in enumerate(xs)]


def train(net: nn.Module, opt: torch.optim.Optimizer, kind: str, data) -> None:
    for x, y in data:
        opt.zero_grad()
        USUAL[kind][1](net(x), y).backward()
        opt.step()


@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"momentum": 0.9, "decay": 0.8},
        {"momentum": 0.5, "weight_decay": 0.1, "decay": 0.5},
        {"kl_clip": 1e-3, "momentum": 0.9},
        {"kl_clip": 1e6},
    ],
    ids=lambda rule: "-".join(rule) or "plain",
)
def test_every_step_equals_kfac_written_out(kind, bias, rule):
    net = mlp(4, 6, 5, 3, bias=bias)
    rule = {"momentum": 0.0, "damping": 0.03, "lr": 0.2, **rule}
    reference = ReferenceKFAC(mlp(4, 6, 5, 3, bias=bias), kind, **rule)
    opt = natgrad.KFAC(net, likelihood=USUAL[kind][0], fisher="exact", **rule)
    for x, y in batches(kind, 5):
        train(net, opt, kind, [(x, y)])
        reference.step(x, y)
        for name, p in net.named_parameters():
            assert relative(p, reference.params[name]) < 1e-10, name


def test_the_loss_is_scaled_but_the_curvature_is_not():
    steps = []
    for scale in (1.0, 5.0):
        net = mlp(4, 5, 3)
        opt = natgrad.KFAC(net, lr=1 / scale, likelihood=Gaussian(), fisher="exact")
        x, y = batches("gaussian", 1)[0]
        (scale * F.mse_loss(net(x), y)).backward()
        opt.step()
        steps.append(nn.utils.parameters_to_vector(net.parameters()))
    assert relative(steps[1], steps[0]) < 1e-12


@pytest.mark.parametrize(("stats_every", "refresh_every"), [(2, 4), (3, 2)])
def test_statistics_and_decompositions_follow_their_schedules(stats_every, refresh_every):
    net = mlp(4, 3)
    opt = natgrad.KFAC(
        net, lr=0.1, likelihood=Gaussian(), stats_every=stats_every, refresh_every=refresh_every
    )
    block = opt.preconditioner.layers[0].block
    new_statistics, new_inverses = [], []
    for k, batch in enumerate(batches("gaussian", 9)):
        weight, inverse = block.A.weight.clone(), block.A_inverse.clone()
        train(net, opt, "gaussian", [batch])
        new_statistics += [k] * bool(block.A.weight != weight)
        new_inverses += [k] * (not torch.equal(block.A_inverse, inverse))
    assert new_statistics == list(range(0, 9, stats_every))
    changed = set(range(0, 9, refresh_every))
    assert set(new_inverses) <= changed
    assert {k for k in changed if k % stats_every == 0} <= set(new_inverses)


def test_micro_batches_of_one_step_are_one_batch():
    (x, y), weights = batches("gaussian", 1)[0], []
    for sizes in ([8], [3, 5]):
        net = mlp(4, 5, 3)
        opt = natgrad.KFAC(net, lr=0.1, likelihood=Gaussian(), fisher="exact")
        for h, t in zip(x.split(sizes), y.split(sizes), strict=True):
            (USUAL["gaussian"][1](net(h), t) * len(h) / len(x)).backward()
        opt.step()
        weights.append(nn.utils.parameters_to_vector(net.parameters()))
    assert relative(weights[1], weights[0]) < 1e-12


def test_the_gradient_is_plain_until_the_step_and_natural_after_it():
    net, twin = mlp(4, 3), mlp(4, 3)
    opt = natgrad.KFAC(net, lr=0.1, momentum=0.0, likelihood=Gaussian(), damping=Constant(3.0))
    x, y = batches("gaussian", 1)[0]
    for each in (net, twin):
        USUAL["gaussian"][1](each(x), y).backward()
    before = net[0].weight.detach().clone()
    assert torch.equal(net[0].weight.grad, twin[0].weight.grad)
    opt.step()
    assert relative(net[0].weight, before - 0.1 * net[0].weight.grad) < 1e-12
    assert relative(net[0].weight.grad, twin[0].weight.grad) > 0.1


class Identity(Block):
    """No curvature: leaves gradients as they are."""

    @staticmethod
    def default_damping(value: float) -> Constant:
        return Constant(value)

    def observe(self, sample) -> None:
        pass

    def factors(self) -> Mapping:
        return {}

    def load(self, decompositions: Mapping) -> None:
        self.ready.fill_(True)

    def solve(self, M: Tensor) -> Tensor:
        return M

    def product(self, M: Tensor) -> Tensor:
        return M

    def dense(self) -> Tensor:
        return torch.eye(self.dim, dtype=self.dtype)

    def eigenvalues(self) -> Tensor:
        return torch.ones(self.dim, dtype=self.dtype)


class PlainSGD(NaturalGradient):
    block = Identity


@pytest.mark.parametrize(
    "rule",
    [{"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    ids=["plain", "heavy ball", "nesterov"],
)
def test_with_the_identity_as_curvature_it_is_torchs_sgd_bit_for_bit(rule):
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    ours, sgd = PlainSGD(net, lr=0.1, **rule), torch.optim.SGD(twin.parameters(), lr=0.1, **rule)
    for opt, each in ((ours, net), (sgd, twin)):
        schedule = torch.optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
        for batch in batches("categorical", 6):
            train(each, opt, "categorical", [batch])
            schedule.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_weight_decay_is_decoupled_from_the_gradient_and_the_momentum():
    net = mlp(4, 3)
    W = net[0].weight.detach().clone()
    opt = PlainSGD(net, lr=0.1, momentum=0.9, weight_decay=0.3)
    for _ in range(3):
        opt.zero_grad()
        (0 * net(normal(5, 4)).sum()).backward()
        opt.step()
    assert relative(net[0].weight, W * (1 - 0.1 * 0.3) ** 3) < 1e-14


def test_groups_have_rates_of_their_own_and_the_rest_the_default():
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    head = {"lr": 0.01, "weight_decay": 0.2}
    ours = PlainSGD(net, lr=0.1, momentum=0.9, groups=[{"params": net[2].parameters(), **head}])
    data = batches("gaussian", 3)
    train(net, ours, "gaussian", data)
    first = torch.optim.SGD(twin[0].parameters(), lr=0.1, momentum=0.9)
    last = torch.optim.SGD(twin[2].parameters(), lr=0.01, momentum=0.9)
    for x, y in data:
        twin.zero_grad()
        USUAL["gaussian"][1](twin(x), y).backward()
        with torch.no_grad():
            for p in twin[2].parameters():
                p *= 1 - 0.01 * 0.2
        first.step()
        last.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert relative(p, q) < 1e-14


def test_kl_clip_counts_each_group_with_its_own_rate():
    kappa, rates, net = 1e-4, (0.5, 0.05), mlp(4, 6, 3)
    ours = PlainSGD(
        net, lr=0.5, momentum=0.0, kl_clip=kappa,
        groups=[{"params": net[2].parameters(), "lr": 0.05}],
    )  # fmt: skip
    x, y = batches("gaussian", 1)[0]
    USUAL["gaussian"][1](net(x), y).backward()
    plain = [p.grad.clone() for p in net.parameters()]
    size = sum(rates[k // 2] ** 2 * float(g.square().sum()) for k, g in enumerate(plain))
    assert size > kappa
    ours.step()
    for p, g in zip(net.parameters(), plain, strict=True):
        assert relative(p.grad, g * (kappa / size) ** 0.5) < 1e-12


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    net, twin = mlp(4, 3), mlp(4, 3)
    x, y = batches("gaussian", 1)[0]
    nets = (net, twin)
    ours, other = (natgrad.KFAC(m, lr=0.1, likelihood=Gaussian(), fisher="exact") for m in nets)

    def closure() -> Tensor:
        ours.zero_grad()
        loss = USUAL["gaussian"][1](net(x), y)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = ours.step(closure)
    train(twin, other, "gaussian", [(x, y)])
    expected = oracle.mean_nll("gaussian", oracle.output(mlp(4, 3), x), y)
    assert float(loss.detach()) == pytest.approx(float(expected))
    assert torch.equal(net[0].weight, twin[0].weight)
