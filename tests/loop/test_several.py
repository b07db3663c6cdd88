"""Several forward passes before one backward: siamese networks and GANs, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Bernoulli, Gaussian
from natgrad.optim import NaturalGradient
from tests import byhand
from tests.loop.loops import backward, every_fisher, every_method, train, weights
from tests.networks import mlp, normal, relative

STRUCTURES = {"KFAC": "kfac", "EKFAC": "ekfac", "TKFAC": "tkfac", "TEKFAC": "tekfac"}
Rows = dict[str, byhand.Rows]


def joined(*passes: Rows) -> Rows:
    """The examples of several passes side by side."""
    return {
        name: (torch.cat([p[name][0] for p in passes]), torch.cat([p[name][1] for p in passes], 1))
        for name in passes[0]
    }


def scaled(rows: Rows, factor: float) -> Rows:
    return {name: (a, factor * g) for name, (a, g) in rows.items()}


def assert_curvature(opt: NaturalGradient, rows: Rows) -> None:
    """The statistics of the one step taken are those of the given examples."""
    if isinstance(opt, natgrad.ExactNGD):
        curvature = opt.preconditioner.curvature
        J = torch.cat([byhand.gradients(a, g).flatten(1) for a, g in rows.values()], 1)
        found = curvature.J.mT @ curvature.J / curvature.examples
        assert relative(found, J.mT @ J / len(next(iter(rows.values()))[0])) < 1e-10
        return
    for layer in opt.preconditioner.layers:
        expected = byhand.dense(STRUCTURES[type(opt).__name__], *rows[layer.view.name])
        assert relative(layer.block.dense(), expected) < 1e-9


def twins() -> tuple[nn.Sequential, nn.Sequential]:
    """A network, and a copy as it is before any step."""
    return mlp(4, 6, 3), mlp(4, 6, 3)


def siamese(net: nn.Module, sizes: Sequence[int] = (8,)) -> None:
    """``1/2 |f(x1) - f(x2)|^2``, the mean over pairs, in micro-batches."""
    for x1, x2 in zip(normal(8, 4).split(sizes), normal(8, 4, seed=1).split(sizes), strict=True):
        distance = 0.5 * (net(x1) - net(x2)).square().sum() / 8
        distance.backward()


@every_method
@pytest.mark.parametrize("sizes", [(8,), (3, 5)], ids=["whole", "accumulated"])
@pytest.mark.parametrize("likelihood", [Gaussian(), None], ids=["given", "empirical"])
def test_siamese_branches_are_batches_of_their_own(method, likelihood, sizes):
    net, before = twins()
    opt = method(net, lr=0.1, likelihood=likelihood, fisher="exact", damping=0.1)
    siamese(net, sizes)
    opt.step()
    x1, x2 = normal(8, 4), normal(8, 4, seed=1)
    with torch.no_grad():
        f1, f2 = before(x1), before(x2)
    y1, y2 = (f2, f1) if likelihood is None else (None, None)
    passes = [byhand.rows(before, x, "gaussian", y) for x, y in ((x1, y1), (x2, y2))]
    assert_curvature(opt, joined(*passes))


def discriminate(net: nn.Module, backwards: int, share: float = 1.0) -> None:
    """Real and fake examples in one backward pass or two, each loss a mean."""
    real = (
        F.binary_cross_entropy_with_logits(
            net(normal(8, 4)), torch.ones(8, 3).double(), reduction="sum"
        )
        / 8
    )
    if backwards == 2:
        (real * share).backward()
    fake = (
        F.binary_cross_entropy_with_logits(
            net(normal(8, 4, seed=1)), torch.zeros(8, 3).double(), reduction="sum"
        )
        / 8
    )
    (fake * share if backwards == 2 else real + fake).backward()


def sides(net: nn.Sequential, given: bool) -> list[Rows]:
    targets = (None, None) if given else (torch.ones(8, 3).double(), torch.zeros(8, 3).double())
    return [
        byhand.rows(net, normal(8, 4, seed=seed), "bernoulli", y) for seed, y in enumerate(targets)
    ]


@every_method
@pytest.mark.parametrize("backwards", [1, 2])
def test_a_discriminators_true_fisher_is_that_of_real_and_fake_together(method, backwards):
    net, before = twins()
    opt = method(net, lr=0.1, likelihood=Bernoulli(), fisher="exact", damping=0.1)
    discriminate(net, backwards)
    opt.step()
    assert_curvature(opt, joined(*sides(before, given=True)))


@every_method
@pytest.mark.parametrize(
    ("backwards", "share", "factor"), [(1, 1.0, 1.0), (2, 0.5, 1.0), (2, 1.0, 2.0)],
    ids=["one backward", "two, halved", "two, not halved"],
)  # fmt: skip
def test_a_discriminators_empirical_fisher_takes_the_step_for_one_mean(
    method, backwards, share, factor
):
    """Two backward passes of 8 are a mean over 16: losses not halved are read as twice as large."""
    net, before = twins()
    opt = method(net, lr=0.1, damping=0.1)
    discriminate(net, backwards, share)
    opt.step()
    assert_curvature(opt, scaled(joined(*sides(before, given=False)), factor))


@every_method
@pytest.mark.parametrize("freezes", [False, True])
@pytest.mark.parametrize("zeroed", ["by the optimizer", "by the model"])
def test_the_generators_pass_through_the_discriminator_leaves_it_alone(method, freezes, zeroed):
    """The usual loop of a GAN, against one whose generator has a discriminator of its own."""
    results = []
    for shared in (True, False):
        G, D = mlp(4, 6, 4), mlp(4, 6, 3, seed=1)
        opts = [method(m, lr=0.01, damping=0.1, likelihood=likelihood) for m, likelihood in
                ((G, Gaussian()), (D, Bernoulli()))]  # fmt: skip
        for k in range(3):
            z = normal(8, 4, seed=k)
            critic = D
            if not shared:
                critic = mlp(4, 6, 3)
            for p in D.parameters():
                p.requires_grad_(True)
            opts[1].zero_grad() if zeroed == "by the optimizer" else D.zero_grad()
            (F.softplus(-D(z)).sum() / 8).backward()
            (F.softplus(D(G(z).detach())).sum() / 8).backward()
            opts[1].step()
            critic.load_state_dict(D.state_dict())
            for p in D.parameters():
                p.requires_grad_(not freezes)
            opts[0].zero_grad() if zeroed == "by the optimizer" else G.zero_grad()
            (F.softplus(-critic(G(z))).sum() / 8).backward()
            opts[0].step()
        results.append(torch.cat([weights(G), weights(D)]))
    assert torch.equal(*results)


class Both(nn.Module):
    """Two views of the input, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), self.net(2 * x)


@every_method
@every_fisher
def test_a_branch_that_the_loss_leaves_out_does_not_count(method, fisher):
    net, twin = Both(), mlp(4, 6, 3)
    key = {} if fisher["likelihood"] is None else {"logits": 0}
    opt, other = method(net, lr=0.1, **key, **fisher), method(twin, lr=0.1, **fisher)
    for k in range(3):
        opt.zero_grad()
        backward(lambda x: net(x)[0], k)
        opt.step()
    train(twin, other, range(3))
    assert relative(weights(net), weights(twin)) < 1e-12
