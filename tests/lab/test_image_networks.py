from functools import partial

import pytest
import torch
from torch import nn

from natgrad.lab.image_networks import (
    CIFAR10_CHANNELS,
    Channels,
    Pixels,
    of_pixels,
    resnet20,
    vgg,
    vgg16bn,
)
from natgrad.lab.inception import GOOGLENET, Inception, inception


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_resnet20_has_twenty_layers_and_two_projections() -> None:
    model = resnet20()
    assert count(model, nn.Conv2d) == 19 + 2
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert parameters(model) == 272_474  # the paper: 0.27 M


def test_vgg16_has_thirteen_convolutions() -> None:
    model = vgg16bn()
    assert count(model, nn.Conv2d) == count(model, nn.BatchNorm2d) == 13
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert parameters(model) == pytest.approx(15e6, rel=0.02)


def test_a_hundred_classes() -> None:
    assert resnet20(100)(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
    assert parameters(vgg16bn(100)) - parameters(vgg16bn()) == 90 * 513


def test_pixels_are_standardized() -> None:
    random = torch.randint(0, 256, (2000, 3, 4, 4), dtype=torch.uint8)
    x = random.float() / 255
    mean, sd = x.mean((0, 2, 3)), x.std((0, 2, 3))
    found = Pixels(Channels(tuple(mean.tolist()), tuple(sd.tolist())))(random)
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((0, 2, 3)), torch.ones(3))
    channels = (x - mean.view(3, 1, 1)) / sd.view(3, 1, 1)
    torch.testing.assert_close(found, channels, atol=1e-5, rtol=1e-5)


def test_whole_images_are_cropped_in_the_centre_and_crops_are_left() -> None:
    bytes_ = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8).movedim(-1, 1)
    front, plain = Pixels(CIFAR10_CHANNELS, 24), Pixels(CIFAR10_CHANNELS)
    assert torch.equal(front(bytes_), plain(bytes_[:, :, 4:28, 4:28]))
    assert torch.equal(front(bytes_[:, :, :24, :24]), plain(bytes_[:, :, :24, :24]))
    assert front(bytes_).is_contiguous()


def test_a_network_of_pixels_has_the_same_parameters() -> None:
    torch.manual_seed(0)
    inner = resnet20()
    torch.manual_seed(0)
    outer = of_pixels(resnet20, CIFAR10_CHANNELS)
    assert parameters(outer) == parameters(inner)
    assert not any("shift" in name for name in outer.state_dict())
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(outer.eval()(x), inner.eval()(outer[0](x)))


def test_a_plain_network_keeps_the_scale_of_its_signals() -> None:
    layout = (16, 16, 0, 32, 32, 0)
    x = torch.randn(16, 3, 24, 24)

    def scale(model: nn.Sequential) -> float:
        assert model(x).shape == (16, 10)
        return model[:-1](x).square().mean().item()

    model = vgg(layout, hidden=32)
    assert 0.3 < scale(model) < 10
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.reset_parameters()  # torch's own
    assert scale(model) < 0.1


def test_an_inception_module_has_its_paths_side_by_side() -> None:
    module = Inception(192, GOOGLENET[0])
    assert module.channels == 256
    assert module(torch.zeros(1, 192, 6, 6)).shape == (1, 256, 6, 6)


def test_inception_for_large_and_for_small_images() -> None:
    large, small = inception(1000), inception(200, width=0.1, small=True)
    assert count(large, nn.Conv2d) == 3 + 9 * 7
    assert large[:-3](torch.zeros(1, 3, 64, 64)).shape == (1, 1024, 2, 2)
    assert large(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    features = small[:-3](torch.zeros(1, 3, 64, 64))
    assert features.shape == (1, 38 + 38 + 13 + 13, 8, 8)
    # GoogLeNet has 5.98 M in its Table 1's layout without biases; two 3x3 for a 5x5 change little
    assert parameters(large) == pytest.approx(7e6, rel=0.05)


@pytest.mark.parametrize("network", [partial(vgg, (8, 0), 8), partial(inception, 10, 0.1, True)])
def test_without_normalization_every_layer_has_a_bias(network) -> None:
    model = network()
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert all(layer.bias is not None for layer in layers)
    assert count(model, nn.BatchNorm2d) == 0
