import torch
from torch import nn

from natgrad.lab.networks import autoencoder, mlp


def test_an_mlp_ends_linear() -> None:
    net = mlp((6, 5, 4, 3), nn.Tanh)
    kinds = [type(layer) for layer in net]
    assert kinds == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert net(torch.zeros(2, 6)).shape == (2, 3)


def test_an_autoencoder_is_mirrored_with_linear_code_and_output() -> None:
    net = autoencoder((8, 6, 2))
    sizes = [(layer.in_features, layer.out_features) for layer in net if hasattr(layer, "weight")]
    assert sizes == [(8, 6), (6, 2), (2, 6), (6, 8)]
    kinds = [type(layer) for layer in net]
    half = [nn.Linear, nn.Tanh, nn.Linear]
    assert kinds == half + half


def test_an_autoencoder_starts_glorot_normal() -> None:
    net = autoencoder((400, 300))
    first = net[0]
    assert isinstance(first, nn.Linear)
    assert abs(first.weight.std().item() / (2 / 700) ** 0.5 - 1) < 0.02
    assert (first.bias == 0).all()
