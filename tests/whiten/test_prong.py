"""PRONG's arguments, and inputs that are not what one hopes for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from natgrad.whiten import PRONG, whiten
from tests.whiten.nets import CONVS, convnet, eye, loss_of, mlp, normal, output, relative


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"every": 0}, "every must be >= 1, got 0"),
        ({"eps": -1.0}, "eps must be >= 0, got -1.0"),
        ({"samples": 0}, "samples must be None or >= 1, got 0"),
        ({"basis": "qr"}, "basis must be 'pca' or 'zca' or 'cholesky' or 'diagonal', got 'qr'"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PRONG(**kwargs)


INPUTS = {
    "constant": torch.ones(20, 4, dtype=torch.float64),
    "zero": torch.zeros(20, 4, dtype=torch.float64),
    "one example": normal(1, 4),
    "fewer examples than features": normal(2, 4),
    "a dead feature": normal(20, 4) * torch.tensor([1.0, 0, 1, 1], dtype=torch.float64),
    "one feature many times": normal(20, 1).repeat(1, 4),
    "far from zero": normal(20, 4) + 1e4,
    "tiny": normal(20, 4) * 1e-9,
    "huge": normal(20, 4) * 1e9,
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("basis", ["pca", "zca", "cholesky", "diagonal"])
@pytest.mark.parametrize("bias", [True, False])
def test_degenerate_inputs_give_finite_constants_and_the_same_function(kind, basis, bias):
    net, x = mlp(4, 5, 3, activation=nn.ReLU, bias=bias), INPUTS[kind]
    with torch.no_grad():
        net[0].weight[0] = 0  # a unit that is dead or constant
    before = output(net, x)
    whiten(net, PRONG(eps=1e-3, basis=basis), x)
    assert all(x.isfinite().all() for x in net.state_dict().values())
    assert (output(net, x) - before).norm() <= 1e-7 * before.norm()
    assert not torch.equal(net[0].P, net[0].identity().P)  # it did take place


@pytest.mark.parametrize("basis", ["pca", "zca", "cholesky", "diagonal"])
def test_eps_caps_what_multiplies_the_learning_rate(basis):
    net = mlp(4, 3)
    whiten(net, PRONG(eps=1e-2, basis=basis), torch.ones(20, 4, dtype=torch.float64))
    P = net[0].P if basis != "diagonal" else net[0].P.flatten().diag()
    assert torch.linalg.eigvalsh(P.mT @ P).max() == pytest.approx(100)


def test_without_a_trained_bias_the_second_moment_is_not_centred():
    x = normal(50, 4) + 2
    for freeze in (True, False):
        net = mlp(4, 3, bias=freeze)
        if freeze:
            net[0].bias.requires_grad_(False)
            bias = net[0].bias.clone()
        whiten(net, PRONG(eps=1e-3), x)
        layer = net[0]
        expected = torch.linalg.inv(x.mT @ x / 50 + 1e-3 * eye(4))
        assert layer.c is None
        assert relative(layer.P.mT @ layer.P, expected) < 1e-10
        if freeze:
            assert torch.equal(layer.bias, bias)


@pytest.mark.parametrize("kind", CONVS)
def test_pixels_of_a_convolution_are_samples_and_padding_is_not(kind):
    make, shape = CONVS[kind]
    conv, x = make().double(), normal(5, *shape) + 3
    net, q, bias = nn.Sequential(conv), conv.groups, conv.bias is not None
    whiten(net, PRONG(eps=1e-3), x)
    pixels = x.movedim(1, -1).reshape(-1, q, shape[0] // q)
    for group in range(q):
        h = pixels[:, group]
        P = net[0].P[group] if q > 1 else net[0].P
        if not bias:
            Sigma = h.mT @ h / len(h)
        else:
            Sigma = torch.cov(h.mT, correction=0).reshape(h.shape[1], -1)
            c = net[0].c[group] if q > 1 else net[0].c
            assert torch.allclose(c, h.mean(0), atol=1e-12)
        expected = torch.linalg.inv(Sigma + 1e-3 * eye(len(Sigma)))
        assert relative(P.mT @ P, expected) < 1e-9


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_output_gradients_are_whitened_whatever_the_scale_of_the_loss(scale):
    net, x = convnet(), normal(12, 4, 5, 5)
    whitener = whiten(net, PRONG(gradients=True, eps=1e-2))
    whitener.attach(torch.optim.SGD(net.parameters(), lr=0.0))
    seen = {}
    net[5].register_forward_hook(lambda m, args, out: seen.update(z=out) or out.retain_grad())
    (scale * loss_of(net, x)).backward()
    whitener._window.stepped()
    whitener.refit()
    g = seen["z"].grad
    G = g.mT @ g / len(g)
    G = G / (G.trace() / 6)
    expected = torch.linalg.inv(G + 1e-2 * eye(6))
    assert relative(net[5].Q @ net[5].Q, expected) < 1e-8
    assert relative(net[5].Q.mT, net[5].Q) < 1e-12
    assert net[0].Q.shape == (2, 3, 3)


def test_gradients_that_are_zero_leave_the_scale():
    net = mlp(4, 3)
    whitener = whiten(net, PRONG(gradients=True, eps=0.25))
    whitener.attach(torch.optim.SGD(net.parameters(), lr=0.0))
    (0 * net(normal(9, 4)).sum()).backward()
    whitener._window.stepped()
    whitener.refit()
    assert torch.allclose(net[0].Q, 2 * eye(3))


def test_until_there_are_gradients_the_outputs_stay():
    net = mlp(4, 3)
    whiten(net, PRONG(gradients=True), normal(20, 4))
    assert torch.equal(net[0].Q, eye(3))
    assert not torch.equal(net[0].P, eye(4))
