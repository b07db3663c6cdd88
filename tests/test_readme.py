"""The code in the README runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_code_runs_in_order_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    assert BLOCKS
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert names["loss"].item() < 1.0
    assert "KFAC" in capsys.readouterr().out


def test_the_loop_fits_in_twenty_odd_lines() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 22


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert target.startswith("http") or (README.parent / target).exists(), target
