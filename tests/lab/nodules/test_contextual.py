import pytest
import torch
from torch import nn

import natgrad
from natgrad import Categorical
from natgrad.lab.nodules.contextual import FUSION, LEVELS, Grey, MultiLevel, fused, planar


def test_full_width_is_the_papers_network() -> None:
    """Parameters of Dou et al.'s tables: 64 channels; dense layers of 150, 250 and 250 units."""
    net = MultiLevel()
    first, second, third = (sum(p.numel() for p in each.parameters()) for each in net.levels)
    convolutions = 64 * 75 + 64 + 64 * 64 * 75 + 64
    assert first == convolutions + 64 * 64 * 25 + 64 + 64 * 2 * 8 * 8 * 150 + 150 + 302
    assert second == convolutions + 64 * 64 * 75 + 64 + 64 * 4 * 5 * 5 * 250 + 250 + 502
    assert third == convolutions + 64 * 64 * 75 + 64 + 64 * 8 * 10 * 10 * 250 + 250 + 502


@pytest.mark.parametrize("flat", [False, True])
def test_each_level_sees_its_own_field_and_nothing_else(flat: bool) -> None:
    torch.manual_seed(0)
    levels = planar() if flat else LEVELS
    net = MultiLevel(levels, width=1 / 16)
    x = torch.randint(0, 256, (1, *levels[-1].field), dtype=torch.uint8)
    before = net(x)
    assert before.shape == (1, 3, 2)
    for k, level in enumerate(levels[:-1]):
        changed = x.clone()
        cut = tuple(
            slice((n - f) // 2, (n - f) // 2 + f)
            for n, f in zip(levels[-1].field, level.field, strict=True)
        )
        changed[(0, *cut)] = 255 - changed[(0, *cut)]
        outside = 255 - x
        outside[(0, *cut)] = x[(0, *cut)]
        assert torch.equal(net(outside)[:, k], before[:, k])
        assert not torch.equal(net(changed)[:, k], before[:, k])


def test_inputs_may_be_larger_than_the_widest_field() -> None:
    torch.manual_seed(0)
    net = MultiLevel(planar(), width=1 / 32, size=(50, 50))
    x = torch.randint(0, 256, (2, 50, 50), dtype=torch.uint8)
    edge = x.clone()
    edge[:, :5] = 0
    assert torch.equal(net(x), net(edge))
    with pytest.raises(ValueError, match="do not hold a field"):
        MultiLevel(size=(20, 40, 40))


def test_probabilities_are_fused_by_their_weights() -> None:
    logits = torch.tensor([[[0.0, 2.0], [1.0, 0.0], [3.0, 3.0]]])
    one, two, three = torch.sigmoid(torch.tensor([2.0, -1.0, 0.0]))
    expected = 0.3 * one + 0.4 * two + 0.3 * three
    assert fused(logits).item() == pytest.approx(expected.item())
    assert sum(FUSION) == pytest.approx(1)


def test_grey_values_are_centred_and_scaled_into_one_channel() -> None:
    x = torch.tensor([[10, 30]], dtype=torch.uint8)
    assert Grey(20.0, 10.0)(x).tolist() == [[[-1.0, 1.0]]]


def test_a_width_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves none of 64"):
        MultiLevel(width=1e-3)


@pytest.mark.parametrize("flat", [False, True])
def test_sngd_whitens_every_layer_and_folds_back(flat: bool) -> None:
    torch.manual_seed(0)
    levels = planar() if flat else LEVELS
    net = MultiLevel(levels, width=1 / 32)
    keys = list(net.state_dict())
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d, nn.Linear))]
    whitener = natgrad.whiten(net, natgrad.SNGD(likelihood=Categorical()))
    assert len(whitener.layers) == len(layers) == 15
    x = torch.randint(0, 256, (2, *levels[-1].field), dtype=torch.uint8)
    sgd = torch.optim.SGD(net.parameters(), lr=0.01)
    whitener.attach(sgd)
    loss = Categorical().nll(net(x), torch.randint(0, 2, (2, 3))).mean()
    torch.autograd.backward(loss)
    sgd.step()
    net.eval()
    before = net(x)
    natgrad.fold(net)
    assert torch.allclose(net(x), before, atol=1e-4)
    assert list(net.state_dict()) == keys
