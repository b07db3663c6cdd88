"""``report()``: how each parameter is handled, its share of memory and work, and why not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.optim import NaturalGradient
from natgrad.report import Report, Row
from tests.loop.loops import BLOCKWISE, backward, every_method, named, train
from tests.networks import mlp, normal

N = 8


class Odd(nn.Module):
    """Scales its input by a parameter that no view reads."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Overridden(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def reported(
    net: nn.Module, x: Tensor, method: type[NaturalGradient] = natgrad.KFAC, **kwargs
) -> Report:
    """After one step on ``x``; the loss takes the output for logits of three classes."""
    opt = method(
        net, lr=0.1, likelihood=Categorical(), **{"fisher": "sampled", "damping": 1e-3, **kwargs}
    )
    f = net(x)
    F.cross_entropy(f, torch.zeros(f.shape[0], dtype=torch.long)).backward()
    opt.step()
    return opt.report()


def rows_of(report: Report) -> dict[str, Row]:
    return {row.parameter: row for row in report.rows}


def grouped() -> nn.Sequential:
    """Groups of a convolution, units of a BatchNorm."""
    parts = [nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 3)]
    return nn.Sequential(*parts).double()


def test_block_sizes_of_layers_in_groups():
    rows = rows_of(reported(grouped(), normal(N, 4, 4, 4)))
    assert rows["0.weight"].block == "2 x (A 19, G 3)"
    assert rows["1.weight"].block == "6 x (A 2, G 1)"
    assert (rows["1.weight"].handled, rows["1.bias"].handled) == ("Exact", "Exact")
    assert rows["3.weight"].block == "A 25, G 3"


@pytest.mark.parametrize("method", BLOCKWISE, ids=named)
def test_bytes_are_those_of_the_moments_and_decompositions(method):
    net = grouped()
    report = reported(net, normal(N, 4, 4, 4), method)
    rows = rows_of(report)
    o, i = 3, 25
    moments = i * i + o * o
    found = {
        "KFAC": 2 * moments,  # A, G and their inverses
        "TKFAC": 2 * moments,  # the same, of Phi and Psi
        "EKFAC": 2 * moments + i + o + o * i,  # eigenvectors and eigenvalues, and the scale
        "TEKFAC": 2 * moments + i + o + o * i,
    }[method.__name__]
    assert 8 * found <= rows["3.weight"].bytes <= 8 * (found + 6)  # and counters
    assert report.bytes == sum(row.bytes for row in report.rows)


@pytest.mark.parametrize("stats_every", [1, 4])
@pytest.mark.parametrize("refresh_every", [1, 8])
def test_flops_of_a_dense_layer(stats_every, refresh_every):
    schedule = {"stats_every": stats_every, "refresh_every": refresh_every}
    report = reported(mlp(4, 3), normal(N, 4), fisher="exact", **schedule)
    i, o, columns = 5, 3, 3
    statistics = 2 * N * (i**2 + columns * o**2)
    expected = statistics / stats_every + (i**3 + o**3) / refresh_every + 2 * o * i * (o + i)
    assert report.flops == expected
    assert report.model_flops == 6 * N * o * i


def test_flops_of_a_convolution_count_its_positions():
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten()).double()
    report = reported(net, normal(N, 2, 4, 4))
    i, o, positions = 2 * 4 + 1, 3, 9
    expected = 2 * N * positions * (i**2 + o**2) + i**3 + o**3 + 2 * o * i * (o + i)
    assert report.flops == expected
    assert report.model_flops == 6 * N * positions * o * i


def test_flops_of_a_convolution_count_what_its_input_factor_takes(monkeypatch):
    monkeypatch.setattr("natgrad.shifts.PRODUCT", 0.0)
    monkeypatch.setattr("natgrad.shifts.ADDITION", 0.0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten()).double()
    i, o, positions = 2 * 9 + 1, 3, 16
    shifts = N * 2**2 * 4 * (4 * 3 + 3 * 5 + 2 * 5)
    dearer = N * positions * i**2 - shifts
    given = normal(N, 2, 4, 4)
    rest = i**3 + o**3 + 2 * o * i * (o + i)
    expected = 2 * (shifts + N * positions * o**2) + rest
    assert reported(net, given).flops == expected
    assert reported(net, given, natgrad.TKFAC).flops == expected + 2 * dearer
    assert reported(net, given, shared="reduce").flops == 2 * N * (i**2 + o**2) + rest


def test_flops_of_a_corrected_convolution_rotate_gradients_or_rows():
    i, o = 2 * 4 + 1, 4
    for size, rotated in ((8, o * i * (o + i)), (3, 4 * (i**2 + o**2))):
        net = nn.Sequential(nn.Conv2d(2, o, 2), nn.Flatten()).double()
        report = reported(net, normal(N, 2, size, size), natgrad.EKFAC)
        positions = (size - 1) ** 2
        assert (o * i * (o + i) < positions * (i**2 + o**2)) == (size == 8)
        basis = 2 * N * positions * (i**2 + o**2) + 9 * (i**3 + o**3) + 4 * o * i * (o + i)
        scale = 2 * N * o * i * positions
        carried = 2 * (i**3 + o**3) + 2 * o * i * (o + i)  # to the new bases
        assert report.flops == basis + 2 * N * rotated + scale + carried


def test_flops_of_an_embedding_leave_out_its_diagonal_factor():
    net = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 3)).double()
    tokens = torch.arange(2 * N).reshape(N, 2) % 7
    row = rows_of(reported(net, tokens))["0.weight"]
    assert row.block == "A 7, G 3"
    assert row.flops == 2 * N * 2 * 3**2 + 3**3 + 2 * 3 * 7 * 3


def test_flops_of_the_corrected_methods_add_rotations_and_the_scale():
    i, o = 5, 3
    basis = 2 * N * (i**2 + o**2) + 9 * (i**3 + o**3)
    corrected = 2 * N * (i**2 + o**2) + 2 * N * o * i + 4 * o * i * (o + i)
    carried = 2 * (i**3 + o**3) + 2 * o * i * (o + i)  # the scale to the new bases
    report = reported(mlp(4, 3), normal(N, 4), natgrad.EKFAC)
    assert report.flops == basis + corrected + carried


@every_method
def test_shares_add_up_with_those_of_the_passes_to_the_whole_step(method):
    report = reported(grouped(), normal(N, 4, 4, 4), method)
    whole = report.flops + report.model_flops
    assert report.model_flops > 0
    assert sum(row.share for row in report.rows) + report.model_flops / whole == pytest.approx(1)
    for row in report.rows:
        assert row.share == pytest.approx(row.flops / whole)
    assert f"{report.rows[0].share:.1%}" in str(report)


def test_every_reason_why_a_parameter_is_not_preconditioned():
    shared = nn.Linear(3, 3).double()
    net = nn.Sequential(
        *mlp(4, 3), Odd(), Overridden(3, 3).double(), nn.Linear(3, 3).double(), shared,
        nn.Bilinear(3, 3, 3).double(),
    )  # fmt: skip
    net[3].requires_grad_(False)
    net[4].bias.requires_grad_(False)
    net = nn.Sequential(net[:5])
    rows = rows_of(natgrad.KFAC(net, lr=0.1).report())
    assert rows["0.1.scale"].reason == "no view for Odd"
    assert rows["0.2.weight"].reason == "Overridden overrides nn.Linear.forward"
    assert rows["0.3.weight"].handled == "frozen"
    assert (rows["0.4.bias"].handled, rows["0.4.bias"].reason) == ("frozen", "requires_grad=False")
    assert rows["0.0.weight"].reason == "until its first statistics: plain gradient"


@every_method
def test_strict_raises_with_the_names_and_the_reasons(method):
    net = nn.Sequential(*mlp(4, 3), Odd(), Overridden(3, 3))
    with pytest.raises(ValueError, match=r"1: no view for Odd; 2: Overridden overrides nn.Linear"):
        method(net, lr=0.1, strict=True)
    net[1:].requires_grad_(False)
    method(net, lr=0.1, strict=True)


@every_method
def test_nothing_to_precondition_is_an_error_that_says_why(method):
    said = "no layer to precondition in the model; 0: no view for O"
    with pytest.raises(ValueError, match=said):
        method(nn.Sequential(Odd()), lr=0.1).step()  # residuals, which come in a step, need none


def test_the_exact_method_reports_one_block_over_all():
    net = nn.Sequential(*mlp(4, 6), Odd(), *mlp(6, 3))
    opt = natgrad.ExactNGD(net, lr=0.1, likelihood=Categorical())
    P = 6 * 5 + 3 * 7
    first = opt.report().rows[0]
    assert (first.block, first.bytes) == (f"F {P}", 0)
    assert "until its first statistics" in first.reason
    backward(net, 0)
    opt.step()
    report = opt.report()
    rows = rows_of(report)
    assert rows["0.weight"].block == f"F {P}, {3 * N} gradients"
    assert rows["0.weight"].bytes == 8 * P * 3 * N == report.bytes
    assert rows["0.bias"].block == "same"
    assert rows["1.scale"].reason == "no view for Odd"
    R = 3 * N
    assert report.flops == 2 * R * P * R + 9 * R**3
    assert report.model_flops == 6 * N * P
    assert "4 of 5 parameters preconditioned" in str(report)


def test_it_follows_what_is_frozen_and_added():
    net = mlp(4, 6, 3)
    opt = natgrad.KFAC(net, lr=0.1)
    train(net, opt, range(2))
    net[0].requires_grad_(False)
    net.append(nn.Linear(3, 3).double())
    opt.add_param_group({"params": net[3].parameters()})
    train(net, opt, range(2))
    handled = {name: row.handled for name, row in rows_of(opt.report()).items()}
    assert handled["0.weight"] == "frozen"
    assert handled["3.weight"] == "KFAC"
