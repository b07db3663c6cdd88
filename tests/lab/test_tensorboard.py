"""Event files: what a user's loop and the lab's runs leave for TensorBoard."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import natgrad
from natgrad.lab.cli import app
from natgrad.lab.tensorboard import TensorBoard

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = accumulator.EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def trained(log: TensorBoard, opt: torch.optim.Optimizer, net: nn.Module, steps: int) -> list[dict]:
    seen = []
    for step in range(steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(net(x), x[:, :3].argmax(1))
        opt.zero_grad()
        loss.backward()
        opt.step()
        log(opt, step, loss=loss.item())
        seen.append({"loss": loss.item(), **(opt.stats() if hasattr(opt, "stats") else {})})
    log.close()
    return seen


def test_a_loop_leaves_the_live_figures_of_every_step(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    opt = natgrad.TEKFAC(net, lr=0.25)
    seen = trained(TensorBoard(tmp_path), opt, net, 4)
    written = scalars(tmp_path)
    assert {"loss", "kl", "clip", "skipped", "0/damping", "2/effective_rank"} <= written.keys()
    assert written["lr/0"] == [(step, 0.25) for step in range(4)]
    for name, values in written.items():
        if name != "lr/0":
            expected = [(k, row[name]) for k, row in enumerate(seen) if math.isfinite(row[name])]
            assert values == [(k, pytest.approx(value, rel=1e-6)) for k, value in expected]


def test_it_may_write_now_and_then_and_of_any_optimizer(tmp_path: Path) -> None:
    net = nn.Linear(4, 3)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    trained(TensorBoard(tmp_path, every=3), sgd, net, 7)
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [0, 3, 6]


def test_the_lab_writes_a_folder_for_every_run(tmp_path: Path) -> None:
    arguments = ["run", "digits-mlp", "--optimizer", "tekfac", "--epochs", "1"]
    folders = ["--out", str(tmp_path / "out"), "--tensorboard", str(tmp_path / "events")]
    result = CliRunner().invoke(app, [*arguments, *folders])
    assert result.exit_code == 0, result.output
    written = scalars(tmp_path / "events" / "tekfac-seed-0")
    assert {"loss", "kl", "curve/validation_loss"} <= written.keys()
    assert len(written["loss"]) > 5
