"""Where training ended in the variants of a suite, in one table."""

from __future__ import annotations

from pathlib import Path

import pytest

from natgrad.lab.report import single
from natgrad.lab.report.read import read_results
from natgrad.lab.report.suite import endings
from natgrad.lab.report.summary import summary_of

from .conftest import row, write_manifest, write_run


def variant(folder: Path, metric: str, unit: str, **figures: float) -> single.Written:
    """A variant whose optimizers, one seed each, end with these figures."""
    write_manifest(
        folder,
        optimizers=list(figures),
        metric={"name": metric, "unit": unit, "better": "higher"},
    )
    for name, figure in figures.items():
        rows = [
            row(k, k, k, validation_loss=1.0, train_metric=figure + 0.25, test_metric=figure)
            for k in range(2)
        ]
        write_run(folder / "runs" / name / "seed0", rows)
    results = read_results(folder)
    return single.Written(results, summary_of(results), [], folder / "report.html")


@pytest.mark.parametrize(
    ("metric", "columns", "last"),
    [
        ("CPM", ["metric", "train", "test"], ["CPM", "0.7500", "0.5000"]),
        ("AUC", ["train AUC", "test AUC"], ["0.7500", "0.5000"]),
    ],
)
def test_variants_below_each_other_name_their_metrics_where_these_differ(
    tmp_path: Path, metric: str, columns: list[str], last: list[str]
) -> None:
    first = variant(tmp_path / "patches", "AUC", "", sgd=0.25, sngd=0.5)
    second = variant(tmp_path / "generated", metric, "", sgd=0.5)
    table = endings({"patches": first, "generated": second})
    assert list(table.columns) == ["variant: optimizer", *columns]
    assert [cells[0] for cells in table.rows] == ["patches: SGD", "patches: SNGD", "generated: SGD"]
    assert table.rows[-1][1:] == last


def test_variants_side_by_side_name_their_metrics_in_the_headings(tmp_path: Path) -> None:
    first = variant(tmp_path / "patches", "AUC", "", sgd=0.25)
    second = variant(tmp_path / "whole", "accuracy", "%", sgd=50.0)
    table = endings({"patches": first, "whole": second})
    assert list(table.columns)[2:4] == ["patches: test AUC", "whole: train accuracy [%]"]
    assert table.rows == [["SGD", "0.5000", "0.2500", "50.25", "50.00"]]
