"""How soon others reach the best first-order method's final loss, against cases by hand."""

import math

import pytest

from natgrad.lab.report import publish, summarize
from natgrad.lab.report.race import race
from natgrad.lab.report.read import read_results
from natgrad.lab.report.text import NOTHING

from .conftest import row, write_manifest, write_run


def written(path, **optimizers):
    """Runs by optimizer and seed, each a list of training losses 2 s and 10 updates apart."""
    write_manifest(path, optimizers=list(optimizers), seeds=[0, 1, 2], budget={"seconds": 4.0})
    for name, seeds in optimizers.items():
        for seed, losses in enumerate(seeds):
            rows = [
                row(i, 10 * i, 2.0 * i, train_loss=v, validation_loss=9 - i)
                for i, v in enumerate(losses)
            ]
            status = "finished" if math.isfinite(losses[-1]) else "diverged"
            write_run(path / "runs" / name / f"seed{seed}", rows, status)
    return path


RUNS = {
    "sgd": [[9.0, 7.0, 5.0]] * 3,
    "adam": [[9.0, 6.0, 4.0], [9.0, 6.0, 3.0], [9.0, 6.0, 8.0]],  # median 4
    "kfac": [[9.0, 4.0, 1.0], [9.0, 5.0, 3.0], [9.0, 4.0, 2.0]],
    "tkfac": [[9.0, 4.0, math.nan]] * 3,  # diverged
}


def test_the_target_is_the_lowest_median_of_the_first_order_methods(tmp_path):
    found = race(read_results(written(tmp_path, **RUNS)))
    assert (found.leader, found.loss) == ("adam", 4.0)
    assert (found.updates, found.seconds) == (20, 4.0)


def test_each_is_timed_to_it(tmp_path):
    found = race(read_results(written(tmp_path, **RUNS)))
    by_name = found.arrivals
    assert (by_name["sgd"].arrived, by_name["sgd"].updates) == (0, None)
    # 4 is reached at the second point by two seeds, half way to the third by the other
    assert by_name["kfac"].updates == pytest.approx(10)
    assert by_name["kfac"].seconds == pytest.approx(2)
    assert (by_name["tkfac"].arrived, by_name["tkfac"].counted) == (0, 3)
    columns = {column.heading: column.cells for column in found.columns()}
    assert columns["times sooner"] == (NOTHING, NOTHING, "2.00", NOTHING)
    assert columns["times fewer"][2] == "2.00"


def test_the_leader_sets_the_target_and_is_not_timed_to_it(tmp_path):
    found = race(read_results(written(tmp_path, **RUNS)))
    assert found.optimizers == ("sgd", "adam", "kfac", "tkfac")
    assert "adam" not in found.arrivals
    row = [column.cells[1] for column in found.columns()]
    assert row == ["the target", *[NOTHING] * 4]
    assert "It sets the target and is not timed to it." in " ".join(found.notes())


def test_a_seed_that_does_not_arrive_counts_as_infinite(tmp_path):
    runs = {"sgd": [[9.0, 5.0]] * 3, "kfac": [[9.0, 5.0], [9.0, 6.0], [9.0, 6.0]]}
    found = race(read_results(written(tmp_path, **runs)))
    assert found.arrivals["kfac"].arrived == 1
    assert found.arrivals["kfac"].updates is None


@pytest.mark.parametrize("names", [("kfac", "tkfac"), ("sgd",)])
def test_there_is_none_without_a_first_order_method_or_a_competitor(tmp_path, names):
    runs = {name: [[9.0, 5.0]] * 3 for name in names}
    assert race(read_results(written(tmp_path, **runs))) is None


def test_is_printed_and_published(tmp_path):
    folder = written(tmp_path / "results", **RUNS)
    assert "times sooner" in summarize(folder).markdown()
    page = publish(folder, tmp_path / "page")
    assert "Adam's final training loss 4" in page.read_text()
