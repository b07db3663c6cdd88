"""Training losses at every tenth, against cases worked out by hand."""

import io
import math

import pytest
from rich.console import Console

from natgrad.lab.report import publish, summarize, write_report
from natgrad.lab.report.read import Row, Run
from natgrad.lab.report.tenths import Tenths, loss_at

from .conftest import row, write_manifest, write_run


def run(*losses, status="finished", every=2.0, begin=0.0):
    rows = tuple(Row(i, 10 * i, begin + every * i, {"train_loss": v}) for i, v in enumerate(losses))
    return Run("sgd", "seed0", {}, status, rows)


@pytest.mark.parametrize(
    ("seconds", "loss"),
    [(0.0, 8.0), (1.0, 6.0), (2.0, 4.0), (3.0, 3.0), (4.0, 2.0), (4.5, 2.0)],
)
def test_linear_between_evaluations(seconds, loss):
    assert loss_at(run(8.0, 4.0, 2.0), seconds) == pytest.approx(loss)


def test_before_the_first_evaluation_the_weights_are_the_initial_ones():
    assert loss_at(run(8.0, 4.0, begin=3.0), 1.0) == 8.0


def test_an_evaluation_without_a_value_is_skipped():
    assert loss_at(run(8.0, math.nan, 4.0), 2.0) == pytest.approx(6.0)


def test_a_diverged_run_is_infinite_after_its_last_evaluation():
    lost = run(8.0, 4.0, status="diverged")
    assert loss_at(lost, 2.0) == 4.0
    assert loss_at(lost, 2.1) == math.inf
    assert loss_at(run(status="diverged"), 0.0) == math.inf


def results(path, budget, **optimizers):
    """Runs by optimizer and seed, each a list of training losses 2 seconds apart."""
    write_manifest(path, optimizers=list(optimizers), seeds=[0, 1, 2], budget=budget)
    for name, seeds in optimizers.items():
        for seed, losses in enumerate(seeds):
            rows = [
                row(i, 10 * i, 2.0 * i, train_loss=v, validation_loss=v)
                for i, v in enumerate(losses)
            ]
            status = "finished" if len(losses) == 11 else "diverged"
            write_run(path / "runs" / name / f"seed{seed}", rows, status)
    return path


FALLING = [[10.0 - k + seed for k in range(11)] for seed in (0, 1, 5)]
LATE = [[10.0 - 1.5 * max(0, k - 5) for k in range(11)]] * 3
LOST = [[9.0, 1.0], [9.0, 1.0, 1.0], [9.0] * 11]


@pytest.fixture
def folder(tmp_path):
    seconds = {"epochs": None, "seconds": 20}
    return results(tmp_path / "r", seconds, sgd=FALLING, kfac=LATE, adam=LOST)


def test_medians_over_seeds_and_winners(folder):
    tenths = summarize(folder).tenths
    assert tenths.seconds == tuple(2.0 * k for k in range(1, 11))
    sgd, kfac, adam = tenths.losses
    assert sgd == tuple(11.0 - k for k in range(1, 11))  # the middle seed
    assert kfac[4:6] == (10.0, 8.5)
    assert adam[:3] == (1.0, 9.0, None)  # the second diverges after 4 s, the first after 2 s
    names = [tenths.optimizers[tenths.best(k)] for k in range(10)]
    assert names == ["adam", *["sgd"] * 9]
    assert tenths.winners() == "Lowest: Adam at tenth 1; SGD at tenths 2 to 10."


def test_stretches_that_are_interrupted():
    rows = ((1.0, 2.0, 1.0, 1.0, 2.0), (2.0, 1.0, 2.0, 2.0, 1.0))
    said = Tenths((1.0,) * 5, ("sgd", "adam"), rows).winners()
    assert said == "Lowest: SGD at tenths 1 and 3 to 4; Adam at tenths 2 and 5."


def test_a_budget_in_epochs_has_no_tenths(tmp_path):
    path = results(tmp_path / "r", {"epochs": 10, "seconds": None}, sgd=FALLING)
    assert summarize(path).tenths is None


def test_unfinished_runs_do_not_count(tmp_path):
    write_manifest(tmp_path, optimizers=["sgd"], budget={"epochs": None, "seconds": 20})
    rows = [row(i, 10 * i, 2.0 * i, train_loss=1.0, validation_loss=1.0) for i in range(3)]
    write_run(tmp_path / "runs/sgd/seed0", rows, "running")
    tenths = summarize(tmp_path).tenths
    assert tenths.losses == ((None,) * 10,)
    assert tenths.winners() == ""


def test_is_printed_and_published(folder, tmp_path):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summarize(folder).tenths.table())
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert "20.0 s" in shown
    page = publish(folder, tmp_path / "page").read_text(encoding="utf-8")
    assert "| optimizer | 2.00 s | 4.00 s |" in page
    assert "SGD at tenths 2 to 10" in page
    html = write_report(folder).read_text(encoding="utf-8")
    assert "Training loss at every tenth of the budget" in html


def test_commands_that_added_runs_are_listed(folder, tmp_path):
    write_manifest(folder, added_by=["python peer.py --out /home/someone/r"])
    page = publish(folder, tmp_path / "page").read_text(encoding="utf-8")
    assert "    python peer.py --out …/r" in page
    assert "python peer.py" in write_report(folder).read_text(encoding="utf-8")
