from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from natgrad.lab.batches import Batches
from natgrad.lab.data import Pair, Splits
from natgrad.lab.decoded import FileImages
from natgrad.lab.devices import Compute, compute_on
from natgrad.lab.errors import UsageError
from natgrad.lab.folder import RunFolder
from natgrad.lab.objective import outputs
from natgrad.lab.recipe import Recipe, load
from natgrad.lab.running import carry_out
from natgrad.lab.training import Budget, Run, Training

from .conftest import png
from .test_running import StopAfter, assert_alike, never

BF16 = Compute(precision="bf16")


def test_what_the_command_line_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compute_on(None, None) == Compute("cpu", "float32")
    assert compute_on("cpu", "bf16") == BF16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert compute_on("auto", None).device == "cuda"
    assert compute_on("cuda:1", None).described() == {"device": "cuda", "precision": "float32"}
    with pytest.raises(UsageError, match="there are 2 GPUs"):
        compute_on("cuda:2", None)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compute_on("auto", None) == Compute()
    with pytest.raises(UsageError, match=r"torch finds no GPU here.*take cpu or auto"):
        compute_on("cuda", None)


SETTINGS = {"prong": {"lr": 0.01}, "tekfac": {"lr": 0.05, "damping": 0.3}}


def run(recipe: Recipe, optimizer: str, compute: Compute) -> Run:
    settings = {**recipe.settings, **SETTINGS}[optimizer]
    return Run(recipe, optimizer, settings, 0, Budget(epochs=2), compute=compute)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon", "kfac", "tekfac", "prong"])
def test_bfloat16_trains_with_weights_and_figures_in_float32(
    tiny: Recipe, digits: Splits, optimizer: str
) -> None:
    seen = set()

    def note(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        seen.add(output.dtype)

    one = Training(run(tiny, optimizer, BF16), digits)
    other = Training(run(tiny, optimizer, Compute()), digits)
    first = one.evaluate()
    assert first["validation_loss"] == other.evaluate()["validation_loss"]  # in float32 both
    one.model.register_forward_hook(note)
    for _ in range(24):
        one.step()
        other.step()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in one.model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in one.model.parameters() if p.grad is not None} == {torch.float32}
    reached, expected = one.evaluate(), other.evaluate()
    assert reached["validation_loss"] < 0.9 * first["validation_loss"]
    assert reached["validation_loss"] == pytest.approx(expected["validation_loss"], rel=0.1)
    assert reached["validation_loss"] != expected["validation_loss"]


def test_bfloat16_goes_on_bit_exactly(tiny: Recipe, digits: Splits, tmp_path: Path) -> None:
    asked = run(tiny, "kfac", BF16)
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "broken")
    carry_out(asked, digits, whole, StopAfter(1000), never)
    stop = StopAfter(17)
    assert carry_out(asked, digits, broken, stop, stop) == "interrupted"
    assert carry_out(asked, digits, broken, StopAfter(1000), never) == "finished"
    assert_alike(broken, whole)


def test_networks_in_double_precision_are_refused() -> None:
    with pytest.raises(UsageError, match="this one is in float64"):
        BF16.take(load("poisson-pinn").network())


def test_data_stay_where_they_are_on_the_cpu(digits: Splits) -> None:
    compute = Compute()
    assert compute.hold(digits) is digits
    assert compute.first(digits.train.inputs) is digits.train.inputs
    assert compute.moved(digits.test).inputs is digits.test.inputs


def test_held_data_keep_their_name_and_what_is_shared(
    digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**30))
    copied = dataclasses.replace(digits.named("a copy"), test=Pair(*[digits.test.inputs] * 2))
    held = Compute("meta").hold(copied)
    assert held.name == "a copy"
    assert held.test.inputs is held.test.targets
    assert {p.inputs.device.type for p in (held.train, held.validation, held.test)} == {"meta"}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**10, 2**30))
    assert Compute("meta").hold(copied) is copied


def test_images_in_files_stay_there_and_go_over_part_by_part(tmp_path: Path) -> None:
    file = tmp_path / "0.png"
    file.write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    pair = Pair(FileImages([file] * 5, side=4), torch.zeros(5))
    moved = Compute("meta").moved(pair)
    assert moved.inputs is pair.inputs
    assert moved.targets.device.type == "meta"
    seen = []

    class Scaled(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            seen.append((type(input), input.device.type, len(input)))
            return super().forward(input.flatten(1).float())

    found = outputs(Scaled(48, 2, device="meta"), pair.inputs, 2)
    assert seen == [(torch.Tensor, "meta", count) for count in (2, 2, 1)]
    assert found.shape == (5, 2)


def test_batches_that_are_their_own_targets_are_fetched_once() -> None:
    x = torch.randn(10, 3)
    inputs, targets = Batches(Pair(x, x), 4, 0, Compute()).take(2)
    assert inputs is targets
    assert len(inputs) == 2


def test_the_time_of_fetching_is_saved(tiny: Recipe, digits: Splits, tmp_path: Path) -> None:
    place, stop = RunFolder(tmp_path), StopAfter(30)
    asked = dataclasses.replace(run(tiny, "sgd", Compute()))
    carry_out(asked, digits, place, stop, stop)
    status = place.status()
    assert 0 < status["fetch_seconds"] < status["seconds"]
    state = place.checkpoints.load(print)
    assert state is not None
    assert state["fetch_seconds"] == status["fetch_seconds"]
    resumed = Training(asked, digits)
    resumed.load_state_dict(state)
    assert resumed.batches.seconds == status["fetch_seconds"]
