"""``natgrad bench`` as a user calls it, in this process."""

import json
import re
from pathlib import Path

import pytest

from natgrad.lab.bench import command, measuring
from natgrad.lab.bench.tasks import Task
from natgrad.lab.errors import INTERRUPTED
from tests.lab.test_cli import natgrad_command, refused


def bench(*words: str | Path) -> list[str]:
    result = natgrad_command("bench", *words)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.mark.usefixtures("small")
def test_a_table_with_what_it_was_measured_on(broken: tuple[str, ...]) -> None:
    names = f"adamw,kfac,kfac:fused=True,prong,{','.join(broken)}"
    lines = bench("small", "--optimizers", names, "--rounds", "2", "--direct", "3")
    assert "cores" in lines[0]
    assert "natgrad" in lines[1]
    title, header, _, *rows = lines[4:]
    assert title.startswith("small: 5-4-3, batch 8; a step of SGD takes ")
    assert [word for word in header.split() if word in ("1/1", "10/100", "direct")] == [
        "1/1", "direct", "10/100", "direct",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows[:8]] == ["sgd", *names.split(",")]
    assert rows[0].split()[4:7] == ["1.00", "(1.00)", "+0.00"]
    text = "\n".join(rows)
    assert re.search(
        r"10/100: adding least: of ours kfac\S* \(\S+\), of the reparametrizations prong", text
    )
    assert "missing: the package no_such_package is not installed: pip install" in text
    assert "crashing: RuntimeError: it can't do this" in text


@pytest.mark.usefixtures("small")
def test_all_figures_as_json(tmp_path: Path, broken: tuple[str, ...]) -> None:
    out = tmp_path / "deep" / "out.json"
    names = f"kfac,{broken[0]}"
    bench("small", "--optimizers", names, "--intervals", "2/4", "--direct", "4", "--out", out)
    found = json.loads(out.read_text())
    assert found["device"] == "cpu"
    assert found["clock"] == "wall time"
    assert {"machine", "versions", "git", "started", "command"} <= found.keys()
    (about,) = found["tasks"]
    assert about["complete"] is True
    assert about["intervals"] == ["2/4"]
    sgd, kfac, missing = about["rows"]
    assert about["sgd_ms"] == 1e3 * sgd["median"]["plain"]
    assert kfac["steps"] == {"plain": 3, "statistics": 2, "refresh": 1}
    times = kfac["median"]
    amortised = (2 * times["plain"] + times["statistics"] + times["refresh"]) / 4
    assert kfac["ratio"]["2/4"] == pytest.approx(amortised / sgd["median"]["plain"])
    assert kfac["direct_steps"] == {"2/4": 4}
    assert kfac["direct_ratio"]["2/4"] > 0
    assert missing["ratio"] == {"2/4": None}
    assert "not installed" in missing["problem"]


@pytest.mark.usefixtures("small")
def test_memory_has_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"sgd": {"mib": 12.3}, "kfac": {"problem": "the process was killed (signal 9)"}}
    found = lambda task, method, device, threads: answers[method.name]  # noqa: E731
    monkeypatch.setattr(measuring, "used_by", found)
    lines = bench("small", "--optimizers", "kfac", "--memory")
    assert lines[5].endswith("peak, MiB")
    assert lines[7].endswith("12")
    assert "kfac: the process was killed (signal 9)" in lines


def test_stopping_prints_and_writes_what_there_is(
    small: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stopped:
        asked = 0

        def __enter__(self) -> "Stopped":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __call__(self) -> bool:
            self.asked += 1
            return self.asked > 20

    monkeypatch.setattr(command, "Interruption", Stopped)
    words = ("small", "mlp", "--optimizers", "kfac", "--rounds", "9", "--out", tmp_path / "o.json")
    result = natgrad_command("bench", *words)
    assert result.exit_code == INTERRUPTED
    assert "(stopped before the end)" in result.stdout
    assert "mlp" not in result.stdout
    (about,) = json.loads((tmp_path / "o.json").read_text())["tasks"]
    assert about["complete"] is False


def test_mistakes_are_told_in_one_line() -> None:
    assert 'did you mean "mlp"' in refused(2, "bench", "mpl")
    assert 'did you mean "kfac"' in refused(2, "bench", "mlp", "--optimizers", "kfc")
    assert "names none" in refused(2, "bench", "mlp", "--optimizers", ",")
    assert "written 10/100" in refused(2, "bench", "mlp", "--intervals", "10-100")
    assert "There are: cpu, cuda" in refused(2, "bench", "mlp", "--device", "tpu")
    assert "--threads 1" in refused(2, "bench", "mlp", "--processor-time")
    assert "no recipe for vgg16bn" in refused(2, "bench", "vgg16bn", "--to-loss", "1")
    words = ("bench", "mlp", "--to-loss", "1", "--optimizers")
    assert 'did you mean "adam"' in refused(2, *words, "adm")


@pytest.mark.usefixtures("small")
def test_time_to_a_loss(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    names = ("--optimizers", "sgd,adam")
    lines = bench("small", "--to-loss", "1.5", "--seconds", "20", *names, "--out", out)
    assert lines[4].startswith("digits-mlp: to a training loss of 1.5")
    (found,) = json.loads(out.read_text())["recipes"]
    for race in found["races"]:
        assert race["updates"] >= 20
        assert 0 < race["seconds"] < 20
        assert race["lowest"] <= 1.5
        assert race["problem"] is None
    never = bench("small", "--to-loss", "0", "--seconds", "0.1", *names)
    assert any("sgd: not reached in 0.1 s; " in line for line in never)
