"""Arrays that are made once and then mapped into memory from disk.

```
CACHE/<set>/<key>/<name>.npy     the arrays
CACHE/<set>/<key>/entry.json     of each array: bytes, sha256, and a quick digest
CACHE/<set>/<key>.lock           held while they are made
```

An entry appears in one move when all of it is on the disk. Opening it compares sizes and quick
digests (of samples of the content), which takes milliseconds; :func:`check` reads everything.
What does not agree is made anew. Processes that start together wait for the first of them, and
share the memory that the system keeps the files in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from natgrad.lab.errors import WriteError
from natgrad.lab.files import alone, flush_folder

__all__ = ["Arrays", "cache_folder", "check", "entries", "filled", "kept", "write_rows"]

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
ENTRY = "entry.json"
SAMPLES, SAMPLE_BYTES = 64, 4096
PIECE = 1 << 20


def cache_folder() -> Path:
    """Where decoded data are kept: ``NATGRAD_CACHE``, else ``~/.cache/natgrad``."""
    named = os.environ.get("NATGRAD_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "natgrad"


def kept(place: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays at a place of the cache, made and written if they are not there or damaged.

    They are mapped copy-on-write (torch takes no read-only memory): a change stays in this process
    and never reaches the file.

    Args:
        place: the entry's folder; its name must change with whatever the arrays depend on.
        make: makes them.

    Returns:
        The arrays by name; in memory, not mapped, where the cache can't be written.
    """
    found = _opened(place)
    if found is not None:
        return found
    made: Arrays | None = None
    try:
        with _making(place):
            found = _opened(place)  # by another process, while this one waited
            if found is None:
                made = make()
                _write(place, partial(_save, made))
                found = _opened(place)
    except OSError:  # a cache that can't be written only costs time
        found = None
    return found if found is not None else made if made is not None else make()


def filled(place: Path, fill: Callable[[Path], object]) -> Arrays:
    """The same for arrays that no memory holds: they go to the disk as they are made.

    Args:
        place: the entry's folder; its name must change with whatever the arrays depend on.
        fill: writes ``<name>.npy`` files into the folder that it is given.

    Raises:
        WriteError: the cache can't be written, or what was written can't be mapped.
    """
    found = _opened(place)
    if found is not None:
        return found
    try:
        with _making(place):
            found = _opened(place)  # by another process, while this one waited
            if found is None:
                _write(place, fill)
                found = _opened(place)
    except OSError as error:
        raise WriteError(_no_room(place, error.strerror or str(error))) from error
    if found is None:
        raise WriteError(_no_room(place, "what was written can't be mapped into memory"))
    return found


def write_rows(
    path: Path, shape: Sequence[int], dtype: DTypeLike, parts: Iterable[NDArray[Any]]
) -> None:
    """Write a ``.npy`` file part by part, one part in memory at a time.

    Args:
        path: of the file.
        shape: of the whole array ``[n, ...]``.
        dtype: of its entries.
        parts: ``[k, ...]`` each, ``n`` rows in all.

    Raises:
        ValueError: parts of another shape or type, or too few or too many of them.
    """
    written = 0
    about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, about)
        for part in parts:
            if part.dtype != dtype or part.shape[1:] != tuple(shape[1:]):
                raise ValueError(
                    f"{path.name} takes parts [k, {', '.join(map(str, shape[1:]))}] of "
                    f"{np.dtype(dtype)}, got {list(part.shape)} of {part.dtype}"
                )
            file.write(np.ascontiguousarray(part).data)
            written += len(part)
    if written != shape[0]:
        raise ValueError(f"{path.name} takes {shape[0]} rows, got {written}")


def _no_room(place: Path, why: str) -> str:
    return (
        f"can't keep decoded data in {place}: {why}. Make room or give permission, or name "
        "another folder with NATGRAD_CACHE"
    )


def entries(folder: Path | None = None) -> list[Path]:
    """The entries of the cache."""
    return sorted(path.parent for path in (folder or cache_folder()).rglob(ENTRY))


def check(place: Path) -> list[str]:
    """Read all of an entry.

    Returns:
        The names of arrays that are not what was written.
    """
    record = _record(place)
    if record is None:
        return [ENTRY]
    return [name for name, about in record.items() if _sha256(place / name) != about["sha256"]]


@contextmanager
def _making(place: Path) -> Iterator[None]:
    place.parent.mkdir(parents=True, exist_ok=True)
    with alone(place.with_name(place.name + ".lock")):
        yield


def _opened(place: Path) -> Arrays | None:
    record = _record(place)
    if record is None or not all(_looks_whole(place / n, about) for n, about in record.items()):
        return None
    try:
        return {Path(name).stem: np.load(place / name, mmap_mode="c") for name in record}
    except (OSError, ValueError):
        return None


def _record(place: Path) -> dict[str, dict[str, Any]] | None:
    try:
        found: dict[str, dict[str, Any]] = json.loads((place / ENTRY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _looks_whole(path: Path, about: Mapping[str, Any]) -> bool:
    try:
        return bool(path.stat().st_size == about["bytes"] and _quick(path) == about["quick"])
    except OSError:
        return False


def _write(place: Path, fill: Callable[[Path], object]) -> None:
    """Have an entry made beside its place, and move it there when it is whole."""
    _drop_drafts(place)
    draft = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        fill(draft)
        record = {}
        for path in sorted(draft.glob("*.npy")):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            about = {"bytes": path.stat().st_size, "sha256": _sha256(path), "quick": _quick(path)}
            record[path.name] = about
        (draft / ENTRY).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        flush_folder(draft)
        shutil.rmtree(place, ignore_errors=True)  # damaged
        draft.rename(place)
        flush_folder(place.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _save(arrays: Arrays, folder: Path) -> None:
    for name, array in arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, array, allow_pickle=False)


def _drop_drafts(place: Path) -> None:
    """Remove what killed processes left: whoever holds the lock is alone."""
    if os.name == "posix":  # elsewhere there is no lock
        for path in place.parent.glob(f".{place.name}.*"):
            shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(PIECE):
                digest.update(piece)
        return digest.hexdigest()
    except OSError:
        return ""


def _quick(path: Path) -> str:
    """Digest of the size and of samples spread evenly over the file, both ends among them."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    last = max(size - SAMPLE_BYTES, 0)
    with path.open("rb") as file:
        for k in range(SAMPLES):
            file.seek(last * k // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
