"""What the studies measure, against the dense Fisher matrix and by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from natgrad import PRONG, Categorical, fisher, whiten
from natgrad.lab.conditioning import read_conditioning
from natgrad.lab.data import Splits
from natgrad.lab.folder import Results, read_rows
from natgrad.lab.optimizers import Task, build
from natgrad.lab.recipe import Recipe
from natgrad.lab.running import carry_out
from natgrad.lab.studies.alongside import Alongside, read_alongside
from natgrad.lab.studies.approximation_error import ApproximationError, mean_eigenvalues
from natgrad.lab.studies.conditioning import FisherBeforeAndAfter, layer_fisher
from natgrad.lab.studies.whitening_time import WhiteningTime
from natgrad.lab.study import Study, Work
from natgrad.lab.tables import StudyFolder, study_folder
from natgrad.lab.training import Budget, Run, Training
from natgrad.whiten import Whitened, whitening_report


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 10))


@pytest.fixture
def small(tiny: Recipe) -> Recipe:
    return dataclasses.replace(tiny, network=network, epochs=1, l2=0.0)


def never() -> bool:
    return False


def concluded(
    study: Study, recipe: Recipe, digits: Splits, folder: Path, *names: str
) -> StudyFolder:
    """A comparison of these optimizers with a study, from two seeds."""
    results, found = Results(folder), study_folder(folder)
    watch = study.watch(results)
    chosen = {name: dict(recipe.settings.get(name, {})) for name in names}
    for name in names:
        for seed in (0, 1):
            run = Run(recipe, name, chosen[name], seed, Budget(epochs=1))
            training_watch = (
                watch if watch is not None else Alongside(results, "none", lambda t: [])
            )
            carry_out(run, digits, results.run(name, seed), training_watch, never)
    results.update_manifest(tuned=chosen)
    study.conclude(Work(recipe, names, (0, 1), digits, results, found, lambda line: None, never))
    return found


def test_the_fisher_of_a_layer_is_the_dense_block(digits: Splits) -> None:
    torch.manual_seed(0)
    model, x = network(), digits.train.inputs[:5]
    whole = fisher(model, x, Categorical(), kind="exact", structure="dense").dense()
    start = sum(p.numel() for p in model[0].parameters())
    stop = start + sum(p.numel() for p in model[2].parameters())
    torch.testing.assert_close(
        layer_fisher(model, "2", x, Categorical()), whole[start:stop, start:stop],
        rtol=1e-4, atol=1e-7,
    )  # fmt: skip


def test_the_fisher_of_a_whitened_layer_is_in_its_own_coordinates(digits: Splits) -> None:
    torch.manual_seed(0)
    model, x = network(), digits.train.inputs
    whiten(model, PRONG(every=1, eps=1e-4), data=x)
    found = torch.linalg.eigvalsh(layer_fisher(model, "2", x[:40], Categorical()).double())
    row = next(r for r in whitening_report(model, x[:40], Categorical()).rows if r.layer == "2")
    assert float(found[-1]) == pytest.approx(row.largest, rel=1e-3)


def test_mean_eigenvalues_are_traces_over_dimensions(digits: Splits) -> None:
    torch.manual_seed(0)
    model, pair = network(), digits.validation.first(6)
    whole = fisher(model, pair.inputs, Categorical(), kind="exact", structure="dense").dense()
    found = mean_eigenvalues(model, pair, Categorical())
    start = 0
    for name in ("0", "2", "4"):
        stop = start + sum(p.numel() for p in model.get_submodule(name).parameters())
        assert found[name] == pytest.approx(float(whole.diagonal()[start:stop].mean()), rel=1e-4)
        start = stop


def test_conditioning(small: Recipe, digits: Splits, tmp_path: Path) -> None:
    study = FisherBeforeAndAfter(layers=("2",), examples=40)
    recipe = dataclasses.replace(small, settings={**small.settings, "prong": {"eps": 1e-4}})
    found = concluded(study, recipe, digits, tmp_path, "sgd", "sgd_bn", "prong")
    table = found.table("conditioning")
    assert table is not None
    assert [row[0] for row in table.rows] == ["SGD", "SGD + BatchNorm", "PRONG"]
    assert table.cell("PRONG", "reduction [%]") > table.cell("SGD", "reduction [%]")
    assert table.cell("SGD", "seeds") == 2
    losses = [row[2] for row in table.rows]
    assert max(losses) - min(losses) < 1.5
    first = found.table("first-whitening")
    assert first is not None
    assert [row[0] for row in first.rows] == ["layer 2", "mean"]
    assert first.cell("mean", "seeds") == 2
    start = {
        (row["optimizer"], row["seed"]): row["condition"]
        for row in read_conditioning(tmp_path)
        if row["layer"] == "2" and row["update"] == 0
    }
    shares = [start["prong", seed] / start["sgd", seed] for seed in (0, 1)]
    mean = math.sqrt(shares[0] * shares[1])
    assert first.cell("mean", "reduction [%]") == pytest.approx(100 * (1 - mean))
    assert set(found.figures()) == {"fisher", "conditioning"}
    assert (found.path / "fisher.pdf").stat().st_size > 1000


def test_approximations(small: Recipe, digits: Splits, tmp_path: Path) -> None:
    study = ApproximationError("sgd", examples=8, fixed=(1e-5, 1e5), multiples=(1e-4, 1e6))
    found = concluded(study, small, digits, tmp_path, "sgd")
    errors, damping = found.table("errors"), found.table("damping")
    assert errors is not None
    assert damping is not None
    assert errors.cell("EKFAC", "error") < errors.cell("KFAC", "error")
    assert errors.cell("EKFAC", "trace") == pytest.approx(1, rel=1e-3)
    for seed, error in errors.by_seed["EKFAC"]["log10 error"].items():
        assert error < errors.by_seed["KFAC"]["log10 error"][seed]
    for row in damping.rows:  # far above the eigenvalues a natural gradient is the gradient
        assert row[-1] == pytest.approx(1, abs=1e-4)
        assert row[-2] < row[-1]
    first_order = found.table("first_order")
    assert first_order is not None
    assert first_order.cell("100000", "least cosine") == pytest.approx(1, abs=1e-4)
    assert first_order.cell("1e-05", "least cosine") < 0.9
    assert set(first_order.by_seed["1e-05"]["least cosine"]) == {"0", "1"}
    assert set(found.figures()) == {"errors", "eigenvalues"}


def test_where_the_time_of_prong_goes(small: Recipe, digits: Splits, tmp_path: Path) -> None:
    recipe = dataclasses.replace(small, settings={"prong": {"every": 7}})
    found = concluded(WhiteningTime(steps=2, repeats=1), recipe, digits, tmp_path, "prong")
    table = found.table("shares")
    assert table is not None
    assert [row[0] for row in table.rows] == ["7 steps", "statistics", "whitening"]
    assert sum(row[2] for row in table.rows) == pytest.approx(100)
    assert table.cell("whitening", "seeds") == 1  # though the runs are of two


def test_rows_later_than_the_checkpoint_are_dropped(
    small: Recipe, digits: Splits, tmp_path: Path
) -> None:
    results = Results(tmp_path)
    watch = Alongside(
        results, "loss", lambda t: [{"weight": float(t.model[0].weight.detach().norm())}]
    )
    run = Run(small, "sgd", {"lr": 0.1}, 0, Budget(epochs=1))
    carry_out(run, digits, results.run("sgd", 0), watch, never)
    before = read_alongside(results, "loss")
    assert [row["update"] for row in before] == [0, 24]
    watch.begin(Training(run, digits))  # at update 0
    assert read_rows(results.run("sgd", 0).path / "loss.jsonl") == []


def test_a_white_start_whitens_the_network_it_makes(digits: Splits) -> None:
    torch.manual_seed(0)
    model, x = network(), digits.train.inputs
    drawn = [p.clone() for p in model.parameters()]
    task = Task(model, Categorical(), inputs=x)
    build("prong[white_start=1]", task, {"eps": 1e-6, "samples": len(x)})
    layers = [m for m in model.modules() if isinstance(m, Whitened)]
    assert len(layers) == 3
    for p, before in zip(model.parameters(), drawn, strict=True):
        torch.testing.assert_close(p.data, before)
    rows = whitening_report(model, x, Categorical()).rows
    assert max(row.deviation for row in rows[1:]) < 0.01
    assert max(row.mean for row in rows) < 1e-3
