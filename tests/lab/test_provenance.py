import sys
from pathlib import Path

import pytest

import natgrad
from natgrad.lab import provenance


def test_the_command_hides_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    data = str(Path.home() / "data")
    monkeypatch.setattr(sys, "argv", ["/anywhere/natgrad", "run", "x y", "--data", data])
    assert provenance.command() == "natgrad run 'x y' --data ~/data"


def test_versions_and_machine() -> None:
    assert provenance.versions()["natgrad"] == natgrad.__version__
    assert {"python", "torch", "numpy"} <= set(provenance.versions())
    machine = provenance.machine()
    assert machine["cores"] >= 1
    assert machine["threads"] >= 1


def test_no_revision_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natgrad, "__file__", str(tmp_path / "__init__.py"))
    assert provenance.git() == {"revision": None, "dirty": None}


def test_time_is_utc() -> None:
    assert provenance.now().endswith("+00:00")
