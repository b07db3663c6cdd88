"""The code in the guide to least squares runs, block after block."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "least-squares.md"


def test_the_guides_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert names["error"] < 1e-5
    assert names["fitted"] < 1e-8
    assert names["figures"]["least_squares/step"] == 10
