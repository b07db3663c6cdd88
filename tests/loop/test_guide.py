"""The code in the guide to training loops runs, block after block."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "training-loops.md"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile's own
def test_the_guides_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) >= 10
    torch.compiler.reset()
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    torch.compiler.reset()
    assert "6 of 6 parameters preconditioned" in capsys.readouterr().out
    assert names["figures"]["skipped"] == 0


def test_the_guide_speaks_of_every_theme():
    headings = re.findall(r"^## (.*)$", GUIDE.read_text(), re.MULTILINE)
    assert len(headings) == 15


def test_the_code_of_the_guide_to_self_tuning_runs():
    guide = GUIDE.with_name("self-tuning.md")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL):
        exec(compile(block, str(guide), "exec"), names)
    assert names["opt"].stats()["lr"] > 0


def test_the_code_of_the_guide_to_speed_runs(capsys):
    guide = GUIDE.with_name("speed.md")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL):
        exec(compile(block, str(guide), "exec"), names)
    assert "A 601 in 3, G 40" in capsys.readouterr().out
