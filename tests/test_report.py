"""The report: every parameter of a model stands in it once, with what happens to it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import natgrad
from natgrad import Categorical
from natgrad.machine import H100
from tests.networks import mlp, normal


class Odd(nn.Module):
    """Scales its input by a parameter that no view reads."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def trained(net: nn.Module, steps: int = 1) -> natgrad.KFAC:
    opt = natgrad.KFAC(net, lr=0.1, likelihood=Categorical())
    for _ in range(steps):
        F.cross_entropy(net(normal(8, 4)), torch.zeros(8, dtype=torch.long)).backward()
        opt.step()
    return opt


def network() -> nn.Sequential:
    net = nn.Sequential(*mlp(4, 6), Odd(), *mlp(6, 3)).double()
    net[2].bias.requires_grad_(False)
    return net


def test_every_parameter_stands_in_it_once_in_the_models_order():
    net = network()
    report = trained(net).report()
    assert [row.parameter for row in report.rows] == [name for name, _ in net.named_parameters()]
    assert [row.shape for row in report.rows] == [tuple(p.shape) for p in net.parameters()]


def test_it_says_how_each_parameter_is_handled_and_why():
    rows = {row.parameter: row for row in trained(network()).report().rows}
    assert rows["0.weight"].handled == rows["0.bias"].handled == "KFAC"
    assert rows["0.weight"].block == "A 5, G 6"
    assert rows["2.weight"].block == "A 6, G 3"
    assert (rows["2.bias"].handled, rows["2.bias"].reason) == ("frozen", "requires_grad=False")
    assert rows["1.scale"].handled == "plain gradient"
    assert rows["1.scale"].reason == "no view for Odd"


def test_a_frozen_layer_is_frozen_and_not_called_plain():
    net = network()
    net[0].requires_grad_(False)
    rows = {row.parameter: row for row in trained(net).report().rows}
    assert rows["0.weight"].handled == rows["0.bias"].handled == "frozen"


def test_before_any_statistics_it_says_that_gradients_are_plain():
    rows = {row.parameter: row for row in trained(network(), steps=0).report().rows}
    assert "until its first statistics" in rows["0.weight"].reason
    assert "until its first statistics" in rows["0.bias"].reason


def test_memory_is_that_of_the_blocks_counted_once():
    opt = trained(mlp(4, 6, 3))
    report = opt.report()
    buffers = [b for layer in opt.preconditioner.layers for b in layer.block.buffers()]
    assert report.bytes == sum(b.numel() * b.element_size() for b in buffers)
    moments_and_inverses = 2 * 8 * (25 + 36 + 49 + 9)
    assert moments_and_inverses <= report.bytes < moments_and_inverses + 200


def test_it_prints_as_a_table_with_a_total():
    text = str(trained(network()).report())
    lines = text.splitlines()
    header = [
        "parameter",
        "shape",
        "handled",
        "block",
        "memory",
        "work",
        "stats/dec/solve",
        "reason",
    ]
    assert lines[0].split() == header
    assert "0.weight   6x4     KFAC" in text
    assert "scalar" in text
    assert lines[-2].startswith("3 of 5 parameters preconditioned")
    assert lines[-1].endswith("at the last batch")
    assert len(lines) == 2 + 5 + 2


@pytest.mark.parametrize("steps", [0, 1])
def test_the_total_counts_the_weight_and_the_bias_of_a_layer_alike(steps):
    total = str(trained(mlp(4, 6, 3), steps).report()).splitlines()[-2]
    assert total.split()[0] in (("4",) if steps else ("0", "4"))


def test_work_is_split_by_stage_and_adds_up():
    opt = trained(mlp(4, 6, 3))
    row = opt.report().rows[0]
    layer, schedule = opt.preconditioner.layers[0], opt.preconditioner.schedule
    every = schedule.stats_every, schedule.refresh_every
    assert row.work == layer.block.flops(layer.rows).averaged(*every)
    assert sum(row.work) == row.flops
    split = "/".join(f"{100 * part / row.flops:.0f}" for part in row.work)
    assert split in str(opt.report()).splitlines()[2].split()


def test_seconds_are_predicted_for_a_machine_and_averaged_over_the_schedule():
    net = mlp(4, 6, 3)
    opt = natgrad.KFAC(
        net, lr=0.1, likelihood=Categorical(), damping=0.1, stats_every=2, refresh_every=4
    )
    F.cross_entropy(net(normal(8, 4)), torch.zeros(8, dtype=torch.long)).backward()
    opt.step()
    layers = opt.preconditioner.layers
    stages = [H100.stages(layer.block.cost(layer.rows)).averaged(2, 4) for layer in layers]
    report = opt.report(machine=H100)
    assert report.seconds(H100) == pytest.approx(
        [sum(column) for column in zip(*stages, strict=True)]
    )
    assert report.seconds(H100) == opt.report().seconds(H100)
    (line,) = (line for line in str(report).splitlines() if "predicted" in line)
    assert "for the layers' own passes" in line
    assert line.endswith("in the average step, predicted (H100, on paper)")
    assert "predicted" not in str(opt.report())


def test_a_block_that_nobody_counted_spoils_no_other_figures():
    class Own(natgrad.blocks.Diagonal):
        cost = natgrad.blocks.Block.cost

    net = mlp(4, 6, 3)
    pre = natgrad.Preconditioner(net, Own, damping=0.1, likelihood=Categorical())
    report = pre.report(H100)
    assert report.flops == 0
    assert report.seconds(H100) == (0, 0, 0)
    assert "0.weight" in str(report)
