import pytest
import torch
from torch import nn

import natgrad
from natgrad import Categorical, Gaussian
from natgrad.lab.errors import UsageError
from natgrad.lab.nodules.pyramid import PRIOR, STRIDE, PyramidDetector
from natgrad.lab.optimizers import Task, build


def volumes(count: int = 2) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 16, 16, 24), generator=random, dtype=torch.uint8)


def detector() -> PyramidDetector:
    torch.manual_seed(0)
    return PyramidDetector((2, 3, 4))


def test_maps_lie_on_a_grid_four_voxels_apart() -> None:
    assert detector()(volumes()).shape == (2, 5, 16 // STRIDE, 16 // STRIDE, 24 // STRIDE)


def test_it_begins_with_little_faith_in_nodules() -> None:
    objectness = detector()(volumes())[:, 0].sigmoid()
    assert objectness.mean().item() == pytest.approx(PRIOR, abs=0.01)


def test_the_input_enters_at_every_scale() -> None:
    net = detector()
    for source in net.source:
        kept = net(volumes())
        with torch.no_grad():
            source[0].weight.mul_(3)  # type: ignore[index, operator, union-attr]
        assert not torch.equal(net(volumes()), kept)


def test_three_scales_at_least() -> None:
    with pytest.raises(ValueError, match="three scales"):
        PyramidDetector((4, 4))


def test_sngd_whitens_every_convolution() -> None:
    net = detector()
    convolutions = [name for name, m in net.named_modules() if isinstance(m, nn.Conv3d)]
    whitener = natgrad.whiten(net, natgrad.SNGD(likelihood=Gaussian()))
    assert sorted(whitener.layers) == sorted(convolutions)


def test_batchnorm_is_put_behind_every_convolution_but_the_heads() -> None:
    net = detector()
    hidden = sum(isinstance(m, nn.Conv3d) for m in net.modules()) - 2
    build("sgd_bn", Task(net, Gaussian()), {})
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm3d)]
    assert len(norms) == hidden
    assert isinstance(net.objectness, nn.Conv3d)
    assert isinstance(net.place, nn.Conv3d)
    net(volumes()).sum().backward()
    assert all(m.weight.grad is not None for m in norms)


@pytest.mark.parametrize("name", ["sgd", "sgd_bn", "sngd"])
def test_it_trains_with_each_of_the_papers_optimizers(name: str) -> None:
    net = detector()
    optimizer = build(name, Task(net, Gaussian()), {"lr": 1e-3})
    target = torch.zeros(2, 5, 4, 4, 6)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = Gaussian().nll(net(volumes()), target).mean()
        torch.autograd.backward(loss)
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(6)]
    assert losses[-1] < losses[0]


def test_a_network_with_norms_of_its_own_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    with pytest.raises(UsageError, match="this has LayerNorm"):
        build("sgd_bn", Task(net, Categorical()), {})
