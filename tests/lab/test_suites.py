"""Several experiments under one name, and a study of an experiment's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from natgrad.lab import carrying, suites
from natgrad.lab.data import DataSet, Splits
from natgrad.lab.errors import DamagedError, DataMissingError, UsageError
from natgrad.lab.folder import Results
from natgrad.lab.recipe import Suite, addresses, find, load, names, parts
from natgrad.lab.report import figures, publish
from natgrad.lab.study import Work
from natgrad.lab.tables import Table, study_folder

from .test_cli import natgrad_command, refused


@pytest.fixture
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (carrying, suites):
        monkeypatch.setattr(module, "print_report", lambda folder: None)


@pytest.fixture(autouse=True)
def _few_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing every panel of every page takes most of the time."""
    monkeypatch.setattr(figures, "PANELS", ((figures.Panel("train_loss", "updates"),),))
    monkeypatch.setattr(figures, "OVERVIEW", figures.PANELS)


def variant(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name / "manifest.json").read_text())
    return found


def test_variants_have_addresses(made_up: str) -> None:
    assert made_up in names()
    assert {"made-up/plain", "made-up/studied"} <= set(addresses())
    found = find(made_up)
    assert isinstance(found, Suite)
    assert [recipe.name for recipe in parts(found)] == ["made-up/plain", "made-up/studied"]
    assert load("made-up/studied").l2 == 0.01
    with pytest.raises(UsageError, match="name one of them: made-up/plain, made-up/studied"):
        load(made_up)
    with pytest.raises(UsageError, match='did you mean "plain"'):
        load("made-up/plane")
    with pytest.raises(UsageError, match="digits-mlp has no variants"):
        load("digits-mlp/plain")
    assert "made-up/plain" in natgrad_command("list").output


def test_all_variants_with_one_command_one_report_on_top(made_up: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = natgrad_command("compare", made_up, "--no-tune", "--out", out)
    assert result.exit_code == 0, result.output
    for name in ("plain", "studied"):
        assert variant(out, name)["status"] == "finished"
        assert (out / name / "report.html").is_file()
    page = (out / "report.html").read_text()
    assert 'href="studied/report.html"' in page
    assert "plain: test accuracy [%]" in page
    assert "l2 helps" in page
    assert "<td>as plain</td>" in page  # what the profile changes is said once
    shown = natgrad_command("report", out, "--paper")
    assert "other data" in shown.output
    assert "Table 9" in shown.output
    published = publish(out, tmp_path / "page").read_text()
    assert "(plain/README.md)" in published
    assert (tmp_path / "page" / "studied" / "empty.pdf").is_file()
    assert "Points of the curves" in (tmp_path / "page" / "studied" / "README.md").read_text()


@pytest.mark.usefixtures("_no_report")
def test_a_suite_goes_on_where_it_was_left(made_up: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("compare", made_up, "--no-tune", "--optimizers", "sgd", "--seeds", "1")
    assert natgrad_command(*words, "--out", out).exit_code == 0
    first = (out / "plain" / "runs" / "sgd" / "seed0" / "run.json").read_text()
    study = study_folder(out / "studied")
    (study.path / "counts.json").unlink()
    place = Results(out / "studied").run("sgd", 0)
    place.set_status({**place.status(), "status": "interrupted"})
    assert natgrad_command("compare", made_up, "--out", out, "--resume").exit_code == 0
    assert (out / "plain" / "runs" / "sgd" / "seed0" / "run.json").read_text() == first
    assert study.table("counts") is not None
    assert place.status()["status"] == "finished"
    said = refused(2, "compare", made_up, "--seeds", "2", "--out", out, "--resume")
    assert "other options" in said
    assert "does not hold" in refused(2, "compare", made_up, "--out", out / "plain", "--resume")


@pytest.mark.usefixtures("_no_report")
def test_device_and_precision_are_those_of_every_variant(made_up: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("compare", made_up, "--no-tune", "--optimizers", "sgd", "--profile", "smoke")
    given = ("--precision", "bf16", "--checkpoint-every", "3")
    assert natgrad_command(*words, *given, "--out", out).exit_code == 0
    expected = {"device": "cpu", "precision": "bf16"}
    for name in ("plain", "studied"):
        assert variant(out, name)["compute"] == expected
        assert variant(out, name)["profile"]["name"] == "smoke"
    assert natgrad_command("compare", made_up, "--out", out, "--resume").exit_code == 0
    said = refused(2, *words, "--precision", "float32", "--out", out, "--resume")
    assert "other options" in said


@pytest.mark.usefixtures("_no_report")
def test_variants_whose_runs_all_diverge_are_left_out_and_end_it_with_their_code(
    made_up: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = find(made_up).variants  # type: ignore[union-attr]
    hopeless = dataclasses.replace(variants["plain"], settings={"sgd": {"lr": 1e12}})
    monkeypatch.setitem(variants, "plain", hopeless)  # type: ignore[arg-type]
    words = ("compare", made_up, "--no-tune", "--optimizers", "sgd", "--out", tmp_path / "out")
    said = " ".join(refused(5, *words).split())
    assert "made-up/plain is left out: no run came to its end" in said
    assert "natgrad: plain: no run came to its end" in said
    assert variant(tmp_path / "out", "studied")["status"] == "finished"
    on_top = variant(tmp_path, "out")
    assert on_top["status"] == "finished"
    assert list(on_top["left_out"]) == ["plain"]
    assert "no run came to its end" in on_top["left_out"]["plain"]
    monkeypatch.setitem(variants, "studied", hopeless)  # type: ignore[arg-type]
    assert "no run came to its end" in refused(5, *words[:-1], tmp_path / "other")


def changed(monkeypatch: pytest.MonkeyPatch, name: str, **changes: object) -> None:
    """The made-up suite with a variant changed."""
    variants = find("made-up").variants  # type: ignore[union-attr]
    own = dataclasses.replace(variants[name], **changes)  # type: ignore[arg-type]
    monkeypatch.setitem(variants, name, own)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Unfounded:
    """Has nothing to conclude from, as a pool of folds of which one is missing."""

    error: type[Exception] = DataMissingError

    def watch(self, results: Results) -> None:
        return None

    def conclude(self, work: Work) -> None:
        raise self.error("fold3 is not finished")


def test_a_variant_that_can_not_be_concluded_ends_it_with_3_after_the_report(
    made_up: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, reported = tmp_path / "out", list[Path]()
    monkeypatch.setattr(suites, "print_report", reported.append)
    words = ("--no-tune", "--optimizers", "sgd", "--seeds", "1", "--epochs", "0.2", "--out", out)
    with monkeypatch.context() as patched:
        changed(patched, "plain", study=Unfounded())
        assert "plain: fold3 is not finished" in refused(3, "compare", made_up, *words)
        assert variant(out, "plain")["status"] == "interrupted"
    assert variant(out, "studied")["status"] == "finished"
    on_top = variant(tmp_path, "out")
    assert on_top["status"] == "interrupted"
    assert on_top["left_out"] == {"plain": "fold3 is not finished"}
    assert reported == [out]
    assert natgrad_command("compare", made_up, "--out", out, "--resume").exit_code == 0
    on_top = variant(tmp_path, "out")
    assert (on_top["status"], on_top["left_out"]) == ("finished", {})


@pytest.mark.usefixtures("_no_report")
def test_a_variant_whose_data_are_not_at_hand_is_left_out(
    made_up: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ("--no-tune", "--optimizers", "sgd", "--seeds", "1", "--epochs", "0.2", "--out")

    def absent(folder: Path | None) -> Splits:
        raise DataMissingError("no cubes there")

    changed(monkeypatch, "plain", data=DataSet("cubes", "", absent))
    assert natgrad_command("compare", made_up, *words, out).exit_code == 0
    on_top = variant(tmp_path, "out")
    assert (on_top["status"], on_top["left_out"]) == ("finished", {"plain": "no cubes there"})
    changed(monkeypatch, "studied", data=DataSet("cubes", "", absent))
    assert "no cubes there" in refused(3, "compare", made_up, *words, tmp_path / "other")


@pytest.mark.usefixtures("_no_report")
@pytest.mark.parametrize("error", [DamagedError, ZeroDivisionError])
def test_a_study_that_fails_has_not_finished(
    made_up: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    changed(monkeypatch, "plain", study=Unfounded(error))
    out = tmp_path / "out"
    words = ("--optimizer", "sgd", "--epochs", "0.2", "--out", out)
    assert natgrad_command("run", "made-up/plain", *words).exit_code == (
        4 if error is DamagedError else 1
    )
    assert variant(tmp_path, "out")["status"] == "interrupted"


@pytest.mark.usefixtures("_no_report")
def test_run_takes_one_variant(made_up: str, tmp_path: Path) -> None:
    words = ("--optimizer", "sgd", "--epochs", "0.2", "--out", tmp_path / "out")
    result = natgrad_command("run", "made-up/studied", *words)
    assert result.exit_code == 0, result.output
    assert study_folder(tmp_path / "out").table("counts") is not None
    assert "name one of them" in refused(2, "run", made_up)


def test_tables_come_back_as_they_were_written(tmp_path: Path) -> None:
    folder = study_folder(tmp_path)
    assert folder.tables() == {}
    table = Table("One", ["who", "what"], [["a", 1.5], ["b", None]], "A note.")
    folder.write_table("one", table)
    assert folder.tables() == {"one": table}
    assert table.cell("a", "what") == 1.5
    assert table.cell("a", "absent") is None
    assert table.cell("c", "what") is None
