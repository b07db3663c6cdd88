"""Reading folders, whole and broken."""

import json
import math

import pytest

from natgrad.lab.report import ResultsError, summarize
from natgrad.lab.report.read import read_results

from .conftest import row, write_manifest, write_run


def test_reads_a_comparison(comparison):
    results = read_results(comparison)
    assert results.optimizers == ("sgd", "adam", "muon", "kfac")
    assert [run.status for run in results.runs["adam"]] == ["finished", "finished", "interrupted"]
    assert [run.status for run in results.runs["muon"]] == ["finished", "diverged", "finished"]
    assert results.metric.unit == "%"
    assert len(results.tuning["kfac"]) == 8


def test_runs_of_another_program_stand_beside_those_of_the_manifest(tmp_path):
    write_manifest(tmp_path, optimizers=["sgd"], seeds=[0])
    for name in ("sgd", "kfac_jax"):
        write_run(tmp_path / f"runs/{name}/seed0", [row(1, 10, 1.0, validation_loss=0.5)])
    write_run(tmp_path / "tuning/kfac_jax/0", [row(1, 10, 1.0, validation_loss=0.5)])
    assert read_results(tmp_path).optimizers == ("sgd", "kfac_jax")
    assert [entry.name for entry in summarize(tmp_path).entries] == ["SGD", "kfac-jax"]


def test_a_cut_off_last_line_is_left_out(tmp_path):
    write_manifest(tmp_path, optimizers=["sgd"])
    rows = [row(1, 10, 1.0, validation_loss=0.5), row(2, 20, 2.0, validation_loss=0.4)]
    write_run(tmp_path / "runs/sgd/seed0", rows, tail='{"optimizer": "sgd", "epo')
    (run,) = read_results(tmp_path).runs["sgd"]
    assert len(run.rows) == 2
    assert run.final("validation_loss") == 0.4


def test_the_later_of_two_evaluations_at_one_place_stands(tmp_path):
    write_manifest(tmp_path, optimizers=["sgd"])
    rows = [row(1, 10, 1.0, validation_loss=0.5), row(1, 10, 1.5, validation_loss=0.3)]
    write_run(tmp_path / "runs/sgd/seed0", rows)
    (run,) = read_results(tmp_path).runs["sgd"]
    assert [r.seconds for r in run.rows] == [1.5]


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_a_run_that_ends_without_a_finite_loss_has_diverged(tmp_path, bad):
    write_manifest(tmp_path, optimizers=["sgd"])
    rows = [row(1, 10, 1.0, validation_loss=0.5), row(2, 20, 2.0, validation_loss=bad)]
    write_run(tmp_path / "runs/sgd/seed0", rows, status="finished")
    assert read_results(tmp_path).runs["sgd"][0].status == "diverged"


def test_runs_without_a_readable_status_count_as_unfinished(tmp_path):
    write_manifest(tmp_path, optimizers=["sgd"])
    for seed, text in enumerate(["", '{"status": "fin']):
        folder = tmp_path / f"runs/sgd/seed{seed}"
        write_run(folder, [row(1, 10, 1.0, validation_loss=0.5)])
        (folder / "run.json").unlink() if not text else (folder / "run.json").write_text(text)
    assert [run.status for run in read_results(tmp_path).runs["sgd"]] == ["running", "running"]


def test_seeds_come_in_numerical_order(tmp_path):
    write_manifest(tmp_path, optimizers=["sgd"])
    for seed in (10, 2):
        write_run(tmp_path / f"runs/sgd/seed{seed}", [row(1, 10, 1.0, validation_loss=0.5)])
    assert [run.label for run in read_results(tmp_path).runs["sgd"]] == ["seed2", "seed10"]


def test_no_folder(tmp_path):
    with pytest.raises(ResultsError, match="no folder"):
        summarize(tmp_path / "nowhere")


def test_not_a_results_folder(tmp_path):
    with pytest.raises(ResultsError, match=r"expected manifest\.json"):
        summarize(tmp_path)


def test_no_rows_yet(tmp_path):
    write_manifest(tmp_path, optimizers=["sgd"])
    with pytest.raises(ResultsError, match="no evaluation yet"):
        summarize(tmp_path)


def test_another_schema(tmp_path):
    write_manifest(tmp_path, schema=99)
    with pytest.raises(ResultsError, match="schema 99"):
        summarize(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ResultsError, match=r"not valid JSON|schema None"):
        summarize(tmp_path)


def test_a_bare_manifest_is_enough(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1}))
    write_run(tmp_path / "runs/sgd/seed0", [row(1, 10, 1.0, validation_loss=0.5)])
    assert read_results(tmp_path).optimizers == ("sgd",)
