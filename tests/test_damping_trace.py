"""Damping restricted by the trace: (3.5), its readings beside convolutions, and its laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.damping import FC_SCALES, TraceRestricted
from tests import oracle
from tests.brute_force import (
    BruteForce,
    cnn,
    damped_factors,
    fisher_columns,
    grouped_rows,
    matrices,
    per_example,
    solve,
)  # fmt: skip
from tests.networks import mlp, normal, relative

BLOCKWISE = ("KFAC", "EKFAC", "TKFAC", "TEKFAC")
every_method = pytest.mark.parametrize("method", BLOCKWISE)


def batch(net: nn.Sequential, n: int = 16) -> tuple[Tensor, Tensor]:
    x = normal(n, 2, 5, 5) if isinstance(net[0], nn.Conv2d) else normal(n, 4)
    return x, oracle.targets("categorical", x.new_zeros(n, 3))


def natural(method: str, net: nn.Sequential, damping, loss_scale: float = 1.0, **kwargs):
    """The natural gradient of each layer, ``[q, o, i]``, that one step leaves in ``.grad``."""
    kwargs = {"likelihood": Categorical(), "fisher": "exact", **kwargs}
    opt = getattr(natgrad, method)(net, lr=0.0, damping=damping, **kwargs)
    x, y = batch(net)
    (loss_scale * oracle.mean_nll("categorical", net(x), y)).backward()
    opt.step()
    return matrices(net, {name: p.grad.clone() for name, p in net.named_parameters()})


class Layer:
    """One layer's factors or corrected blocks by brute force, one for each group."""

    def __init__(self, method: str, net: nn.Sequential, name: str) -> None:
        x, y = batch(net)
        made = BruteForce(method, net, "categorical", lr=0, damping=0)
        made.count, self.corrected = 1, "EK" in method
        a, g = grouped_rows(net, x, "categorical", None)[name]
        J = fisher_columns(net, x, "categorical", None)[name]
        self.M = per_example(net, x, y, "categorical")[name].mean(0)
        self.factors = [made._factors(f"{k}", a[k], g[k]) for k in range(len(a))]
        if self.corrected:
            made.averages.clear()
            self.blocks = [
                made._corrected(f"{k}", *self.factors[k], J[:, k].flatten(1), len(x))
                for k in range(len(a))
            ]
        else:
            self.blocks = [torch.kron(G.contiguous(), A.contiguous()) for A, G in self.factors]

    def trace(self) -> Tensor:
        return torch.stack([F.trace() for F in self.blocks]).sum()

    def ridge(self, nu: float) -> Tensor:
        return self.trace().clamp_min(nu) / self.M.numel()

    def natural(self, ridge: Tensor | float, times: Tensor | float = 1.0) -> Tensor:
        """``(times F + ridge)^-1 M``."""
        found = []
        for F, (A, G), M in zip(self.blocks, self.factors, self.M, strict=True):
            if self.corrected:
                found.append(solve(times * F, M, ridge))
                continue
            p, root = (A.trace() / G.trace()).sqrt(), torch.as_tensor(ridge / times).sqrt()
            found.append(solve(damped_factors(A, G, p * root, root / p), M) / times)
        return torch.stack(found)


@every_method
@pytest.mark.parametrize("nu", [1e-4, 0.3, 50.0])
@pytest.mark.parametrize("make", [cnn, lambda: mlp(4, 5, 3)], ids=["cnn", "mlp"])
def test_every_layer_is_damped_by_its_mean_eigenvalue(method, make, nu):
    net = make()
    found = natural(method, net, TraceRestricted(nu))
    for name in found:
        layer = Layer(method, net, name)
        assert relative(found[name], layer.natural(layer.ridge(nu))) < 1e-9, name


@every_method
@pytest.mark.parametrize("fc_scale", FC_SCALES)
@pytest.mark.parametrize("nu", [1e-4, 5.0])
def test_dense_layers_beside_convolutions_follow_the_reading(method, fc_scale, nu):
    net = cnn()
    found = natural(method, net, TraceRestricted(nu, fc_scale))
    layers = {name: Layer(method, net, name) for name in found}
    beta = torch.stack([layers[name].ridge(nu) for name in ("0", "2")]).amax()
    for name in ("0", "2"):
        assert relative(found[name], layers[name].natural(layers[name].ridge(nu))) < 1e-9
    own, head = layers["5"].ridge(nu), layers["5"]
    expected = {
        "none": lambda: head.natural(own),
        "paper": lambda: head.natural(own) / beta,
        "theta": lambda: head.natural(own, beta),
        "as_damping": lambda: head.natural(beta),
    }[fc_scale]()
    assert relative(found["5"], expected) < 1e-9
    if fc_scale != "none":
        assert relative(found["5"], head.natural(own)) > 1e-3


@every_method
@pytest.mark.parametrize("fc_scale", FC_SCALES[1:])
def test_without_convolutions_the_readings_are_one(method, fc_scale):
    plain, read = (
        natural(method, mlp(4, 5, 3), TraceRestricted(0.01, scale)) for scale in ("none", fc_scale)
    )
    assert all(torch.equal(plain[name], read[name]) for name in plain)


@every_method
@pytest.mark.parametrize(("fc_scale", "degree"), [("none", -1), ("as_damping", -1), ("paper", -3)])
def test_above_the_floor_the_step_is_homogeneous_in_the_scale_of_the_loss(method, fc_scale, degree):
    """Of degree -1 (V:C16): the empirical Fisher of ``c`` times the loss is ``c^2`` times it."""
    one, ten = (
        natural(method, cnn(), TraceRestricted(1e-9, fc_scale), c, likelihood=None)
        for c in (1.0, 10.0)
    )
    for name in one:
        own = -1 if name in ("0", "2") else degree
        assert relative(ten[name], one[name] * 10.0**own) < 1e-9, name


@every_method
def test_the_damping_is_the_mean_eigenvalue_of_the_block(method):
    net = cnn()
    opt = getattr(natgrad, method)(
        net, lr=0.0, damping=TraceRestricted(1e-9), likelihood=Categorical(), fisher="exact"
    )
    x, y = batch(net)
    oracle.mean_nll("categorical", net(x), y).backward()
    opt.step()
    for name in ("0", "2", "5"):
        J = fisher_columns(net, x, "categorical", None)[name].flatten(1)
        found = opt.stats()[f"{name}/damping"]
        if method == "TKFAC":  # keeps the trace of the block pooled over positions (V:C22)
            assert found == pytest.approx(float(Layer(method, net, name).ridge(0.0)))
        if "EK" in method:  # that of the exact block (V:C17)
            assert found == pytest.approx(float(J.square().sum()) / len(x) / J.shape[1])


def test_below_the_floor_the_damping_is_constant():
    rule = TraceRestricted(2.0)
    traces = torch.tensor([0.0, 1e-3, 1.999, 2.0, 4.0])
    found = [float(rule.ridge(trace, 8)) for trace in traces]
    assert found == pytest.approx([0.25, 0.25, 0.25, 0.25, 0.5])


@pytest.mark.parametrize("nu", [-1.0, float("nan"), float("inf")])
def test_a_floor_that_is_none_is_refused(nu):
    with pytest.raises(ValueError, match=f"nu must be a finite number >= 0, got {nu}"):
        TraceRestricted(nu)


def test_an_unknown_reading_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"fc_scale must be one of .*'as_damping'.*got 'beta'"):
        TraceRestricted(0.1, "beta")


@every_method
@pytest.mark.parametrize("fc_scale", FC_SCALES)
def test_dead_convolutions_without_a_floor_leave_the_head_finite(method, fc_scale):
    net = nn.Sequential(*cnn()[:2], nn.Flatten(), nn.Linear(36, 3).double())
    with torch.no_grad():
        net[3].weight.zero_()  # no gradient gets to the convolution
    with torch.no_grad():
        net[0].weight.zero_(), net[0].bias.zero_()
    damping = TraceRestricted(1e-9 if "EK" not in method else 0.0, fc_scale)
    found = natural(method, net, damping)
    assert all(bool(torch.isfinite(M).all()) for M in found.values())
    assert float(found["3"].norm()) > 0
