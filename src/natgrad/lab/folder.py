"""The results folder: a manifest, and one folder per run with its rows and its checkpoint.

```
DIR/manifest.json                         what was run, with which settings, where
DIR/tuning/<optimizer>/<index>/           one run per point of the grid
DIR/runs/<optimizer>/seed<k>/
    rows.jsonl                            one JSON object per evaluation
    run.json                              status and settings of the run
    checkpoint-<update>-<sha256>.pt       the last two, while it is unfinished
    weights.pt                            the trained network's state_dict (runs only)
```

Every file but ``rows.jsonl`` is replaced whole; rows are appended line by line, so that a kill
costs at most the line being written, which readers skip.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from natgrad.lab.checkpoints import Checkpoints, digest_of, serialised
from natgrad.lab.errors import DamagedError, UsageError, WriteError
from natgrad.lab.files import replace_file, writing

__all__ = ["SCHEMA", "Results", "RunFolder", "open_results", "read_rows", "write_json"]

SCHEMA = 1
WEIGHTS = "weights_sha256"  #: in run.json, its first 16 digits


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    def status(self) -> dict[str, Any]:
        """What ``run.json`` says; empty for a run that never began."""
        return _read_json(self.path / "run.json")

    def set_status(self, status: Mapping[str, Any]) -> None:
        """Replace ``run.json``."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "run.json", status)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one evaluation."""
        path = self.path / "rows.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def set_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace all evaluations, to go on from an earlier point."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        replace_file(self.path / "rows.jsonl", lambda file: file.write(text.encode()))

    def rows(self) -> list[dict[str, Any]]:
        """All evaluations so far."""
        return read_rows(self.path / "rows.jsonl")

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run, while it is unfinished."""
        return Checkpoints(self.path)

    def save_weights(self, state: Mapping[str, Any]) -> dict[str, str]:
        """Write the trained network.

        Returns:
            What the status must say of it, so that :meth:`load_weights` knows it again.
        """
        content = serialised(state)
        replace_file(self.path / "weights.pt", lambda file: file.write(content))
        return {WEIGHTS: digest_of(content)}

    def has_weights(self) -> bool:
        """Whether the trained network is there."""
        return (self.path / "weights.pt").is_file()

    def load_weights(self) -> dict[str, Any] | None:
        """The trained network, if it was finished.

        Its checksum is compared with that of the status; without one there, as in folders of
        earlier versions, the CRC-32 of each tensor in the file.

        Raises:
            DamagedError: the file is not what was written.
        """
        if not self.has_weights():
            return None
        return _read_weights(self.path / "weights.pt", self.status().get(WEIGHTS))


@dataclass(frozen=True)
class Results:
    """A results folder."""

    path: Path

    def manifest(self) -> dict[str, Any]:
        """What ``manifest.json`` says; empty if there is none."""
        return _read_json(self.path / "manifest.json")

    def update_manifest(self, **entries: Any) -> None:
        """Replace entries of the manifest, keep the others."""
        write_json(self.path / "manifest.json", {**self.manifest(), **entries})

    def run(self, optimizer: str, seed: int) -> RunFolder:
        """The folder of a run that counts."""
        return RunFolder(self.path / "runs" / optimizer / f"seed{seed}")

    def tuning(self, optimizer: str, index: int) -> RunFolder:
        """The folder of a run at one point of the grid."""
        return RunFolder(self.path / "tuning" / optimizer / str(index))


def open_results(path: Path, *, resume: bool) -> Results:
    """A new results folder, or one to go on with.

    Raises:
        UsageError: it holds something already and ``resume`` was not asked for, or the reverse.
        WriteError: it can't be written.
    """
    results = Results(path)
    try:
        if resume:
            if not results.manifest():
                raise UsageError(f"nothing to resume in {path}: it has no manifest.json")
        elif path.is_dir() and any(path.iterdir()):
            raise UsageError(f"{path} is not empty; add --resume to go on, or name another --out")
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise WriteError(f"can't write results to {path}: {error.strerror}") from error
    return results


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; an incomplete last line is left out.

    Raises:
        DamagedError: a line before the last is no JSON.
    """
    if not path.exists():
        return []
    rows = []
    *lines, cut_off = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line.decode()))
        except ValueError as error:
            if number == len(lines) and not cut_off:
                break
            raise DamagedError(
                f"{path} is damaged: line {number} is no JSON ({error}). Put it back from a "
                f"backup, or remove {path.parent} and go on with --resume to repeat the run"
            ) from error
    return rows


def _read_weights(path: Path, digest: str | None) -> dict[str, Any]:
    """What ``torch.save`` wrote: a zip archive, in which each tensor has its CRC-32."""
    try:
        content = path.read_bytes()
        if digest is not None and digest != digest_of(content):
            raise ValueError(f"its sha256 is not the {digest}... that was written")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()  # torch.load compares no checksums
        if damaged is not None:
            raise ValueError(f"bad CRC-32 of {damaged}")
        found: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
    except Exception as error:  # whatever the system, zipfile or torch raise
        raise DamagedError(
            f"{path} is damaged ({error}). Put it back from a backup, or remove it and go on with "
            "--resume to repeat the run"
        ) from error
    return found


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write or replace a JSON file, whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))
