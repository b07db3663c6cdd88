import json
import subprocess
from typing import Any

import pytest

from natgrad.lab.bench import memory
from natgrad.lab.bench.methods import method
from natgrad.lab.bench.tasks import Task


@pytest.mark.usefixtures("small")
def test_a_peak_is_printed_or_what_went_wrong(
    capsys: pytest.CaptureFixture[str], broken: tuple[str, ...]
) -> None:
    memory.main(["small", "kfac", "cpu", "1"])
    assert json.loads(capsys.readouterr().out)["mib"] >= 0
    memory.main(["small", "crashing", "cpu", "1"])
    assert json.loads(capsys.readouterr().out) == {"problem": "RuntimeError: it can't do this"}


@pytest.mark.parametrize(
    ("output", "errors", "code", "found"),
    [
        ('a word\n{"mib": 3.5}\n', "", 0, {"mib": 3.5}),
        ("", "Traceback\nMemoryError\n", 1, {"problem": "MemoryError"}),
        ("", "", -9, {"problem": "the process was killed (signal 9)"}),
    ],
)
def test_what_the_process_of_a_method_answers(
    output: str, errors: str, code: int, found: dict[str, Any],
    small: Task, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert words[1:] == ["-m", "natgrad.lab.bench.memory", "small", "kfac", "cpu", "2"]
        return subprocess.CompletedProcess(words, code, output, errors)

    monkeypatch.setattr(subprocess, "run", run)
    assert memory.used_by(small, method("kfac"), "cpu", 2) == found
