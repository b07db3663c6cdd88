"""Image sets through Hugging Face ``datasets``: local parquet files or the hub, decoded once."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natgrad.lab.errors import DataMissingError

__all__ = ["ImageSet", "Images", "cache_folder", "data_folder", "read_images"]

HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ImageSet:
    """Where an image set is found, and how its images are decoded.

    Attributes:
        folder: its folder among the local data sets.
        hub: its name on the Hugging Face hub.
        mode: Pillow's mode, ``"L"`` for grey or ``"RGB"``.
        label: the column of the labels.
        config: which of several sets of that name on the hub.
        hub_splits: what the hub calls a split, where local files have another name.
    """

    folder: str
    hub: str
    mode: str
    label: str = "label"
    config: str | None = None
    hub_splits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Images:
    """One split: ``images [n, h, w]`` or ``[n, h, w, 3]``, ``labels [n]``, where from."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    source: str


def data_folder(given: Path | None) -> Path | None:
    """The folder of local data sets: as given, else ``NATGRAD_DATA``, else none."""
    named = os.environ.get("NATGRAD_DATA")
    return given or (Path(named) if named else None)


def cache_folder() -> Path:
    """Where decoded images are kept: ``NATGRAD_CACHE``, else ``~/.cache/natgrad``."""
    named = os.environ.get("NATGRAD_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "natgrad"


def read_images(what: ImageSet, splits: Sequence[str], folder: Path | None) -> list[Images]:
    """The splits of an image set, from local parquet files if a folder is named, else the hub.

    Raises:
        DataMissingError: not there; says which files are expected where.
    """
    local = data_folder(folder)
    if local is None:
        return _from_hub(what, splits)
    return [_from_files(what, split, _files(what, split, local)) for split in splits]


def _files(what: ImageSet, split: str, local: Path) -> list[Path]:
    where = local / what.folder
    found = sorted([*where.glob(f"{split}.parquet"), *where.glob(f"{split}-*.parquet")])
    if not found:
        raise DataMissingError(
            f"no {split} images of {what.folder} in {local}: expected "
            f"{where / f'{split}.parquet'} with columns image (or img) {{bytes, path}} and "
            f"{what.label}, as the Hugging Face hub has them ({what.hub})"
        )
    return found


def _from_files(what: ImageSet, split: str, files: Sequence[Path]) -> Images:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    checksum = digest.hexdigest()
    source = f"{what.folder}/{split} parquet, sha256 {checksum[:16]}"
    place = cache_folder() / what.folder / f"{split}-{checksum[:16]}"
    arrays = _cached(place)
    if arrays is None:
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()
        with tempfile.TemporaryDirectory() as scratch:
            table = Dataset.from_parquet([str(f) for f in files], cache_dir=scratch)
            arrays = _keep(place, *_decoded(table, what))
            del table
    return Images(*arrays, source)


def _from_hub(what: ImageSet, splits: Sequence[str]) -> list[Images]:
    revision = _revision(what)
    found = []
    for split in splits:
        place = cache_folder() / what.folder / f"{split}-hub-{revision[:16]}"
        arrays = _cached(place)
        if arrays is None:
            from datasets import load_dataset

            config = () if what.config is None else (what.config,)
            named = what.hub_splits.get(split, split)
            table = load_dataset(what.hub, *config, split=named, revision=revision)
            arrays = _keep(place, *_decoded(table, what))
        found.append(Images(*arrays, f"hub {what.hub} {split}, revision {revision[:16]}"))
    return found


def _revision(what: ImageSet) -> str:
    """The hub's present revision; one quick question, so that being offline shows at once."""
    from huggingface_hub import HfApi

    try:
        revision = HfApi().dataset_info(what.hub, timeout=HUB_TIMEOUT_S).sha
    except Exception as error:  # whatever the network raises
        raise DataMissingError(
            f"{what.hub} can't be had from the Hugging Face hub ({type(error).__name__}); put "
            f"{what.folder}/train.parquet and {what.folder}/test.parquet, as the hub has them, "
            "into a folder and name it with --data or NATGRAD_DATA"
        ) from error
    return revision or "main"


def _decoded(table: Any, what: ImageSet) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from datasets import Image as Encoded

    column = "image" if "image" in table.column_names else "img"
    table = table.cast_column(column, Encoded(decode=False))
    images = np.stack(list(_pixels((row["bytes"] for row in table[column]), what.mode)))
    return images, np.asarray(table[what.label], dtype=np.int64)


def _pixels(encoded: Iterable[bytes], mode: str) -> Iterable[NDArray[np.uint8]]:
    from PIL import Image

    for data in encoded:
        with Image.open(io.BytesIO(data)) as image:
            yield np.asarray(image.convert(mode))


Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _cached(place: Path) -> Arrays | None:
    try:
        return np.load(place / "images.npy"), np.load(place / "labels.npy")
    except (OSError, ValueError):  # absent, or damaged: decode again
        return None


def _keep(place: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Arrays:
    """Write the arrays where :func:`_cached` looks, whole or not at all."""
    draft = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=place.parent))
        np.save(draft / "images.npy", images)
        np.save(draft / "labels.npy", labels)
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)
    except OSError:  # a cache that can't be written only costs time
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return images, labels
