"""Agreement with curvlinops, layer by layer: another library, another implementation."""

from __future__ import annotations

import pytest
import torch
from curvlinops import EKFACLinearOperator, KFACLinearOperator
from torch import Tensor, nn

from natgrad.blocks import EKFAC, KFAC
from natgrad.layers import LayerView
from tests.layers import laws
from tests.networks import normal, relative

LOSSES = {"categorical": nn.CrossEntropyLoss(), "gaussian": nn.MSELoss()}


def networks(name: str) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A network and the shape of its input: examples enough for factors of full rank."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=1, dilation=(1, 2))
    return {
        "linear": lambda: (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), (9, 3)),
        "no bias": lambda: (nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)),
                            (9, 3)),
        "sequence": lambda: (
            nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.AdaptiveAvgPool2d((1, 3)),
                          nn.Flatten()), (9, 4, 3)),
        "convolution": lambda: (
            nn.Sequential(conv, nn.ReLU(), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.LazyLinear(3)),
            (20, 2, 6, 5)),
    }[name]()  # fmt: skip


def theirs(
    Operator: type, net: nn.Module, x: Tensor, kind: str, view: LayerView, **options
) -> Tensor:
    """One layer's block as curvlinops has it, in the order of the matrix."""
    f = net(x)
    y = f.argmax(-1) if kind == "categorical" else torch.zeros_like(f).detach()
    parameters = list(view.parameters().values())
    operator = Operator(
        net, LOSSES[kind], parameters, [(x, y)], fisher_type="type-2", check_deterministic=False,
        separate_weight_and_bias=False, **options,
    )  # fmt: skip
    dense = operator @ torch.eye(operator.shape[0], dtype=x.dtype)
    index, start = {}, 0
    for name, p in view.parameters().items():
        index[name] = torch.arange(start, start + p.numel()).view(p.shape)
        start += p.numel()
    order = view.to_matrix(index).flatten()
    # their MSELoss is 2 / entries times the negative log-likelihood of ours
    scale = f[0].numel() / 2 if kind == "gaussian" else 1
    return scale * dense[order][:, order]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("name", ["linear", "no bias", "sequence", "convolution"])
@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_kfac_and_ekfac(name, kind, shared):
    net, shape = networks(name)
    x = normal(*shape)
    net.double()(x)
    for view, sample in laws.tapped(net, x, kind):
        found = laws.block_of(KFAC, view, sample, shared=shared).dense()
        expected = theirs(KFACLinearOperator, net, x, kind, view, kfac_approx=shared)
        assert relative(found, expected) < 1e-10, view
        found = laws.block_of(EKFAC, view, sample, shared=shared).dense()
        expected = theirs(EKFACLinearOperator, net, x, kind, view, kfac_approx=shared)
        assert relative(found, expected) < 1e-10, view
