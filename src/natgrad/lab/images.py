"""Image sets through Hugging Face ``datasets``: local parquet files or the hub, decoded once."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from natgrad.lab.cache import Arrays, cache_folder, kept
from natgrad.lab.errors import DataMissingError

__all__ = ["ImageSet", "Images", "checksum", "data_folder", "mixed", "prepared", "read_images"]

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
    """One split, mapped from the cache.

    Attributes:
        images: ``[n, h, w]`` or ``[n, h, w, 3]``.
        labels: ``[n]``.
        source: where they are from.
        place: in the cache.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    source: str
    place: Path


def data_folder(given: Path | None) -> Path | None:
    """The folder of local data sets: as given, else ``NATGRAD_DATA``, else none."""
    named = os.environ.get("NATGRAD_DATA")
    return given or (Path(named) if named else None)


def read_images(what: ImageSet, splits: Sequence[str], folder: Path | None) -> list[Images]:
    """The splits of an image set, from local parquet files if a folder is named, else the hub.

    Raises:
        DataMissingError: not there; says which files are expected where.
    """
    local = data_folder(folder)
    if local is None:
        return _from_hub(what, splits)
    return [_from_files(what, split, _files(what, split, local)) for split in splits]


def mixed(images: Images) -> Images:
    """A split in an order drawn with a fixed seed, where it lies class by class.

    Of such a split a part cut off has few of the classes, or none that the rest has. One whose
    labels ever fall is left in its own order. What is mixed says so in its source, and is kept in
    the cache beside the split as it was found.
    """
    if (np.diff(images.labels) < 0).any():
        return images
    place = images.place.with_name(f"{images.place.name}-mixed")
    order = np.random.default_rng(0).permutation(len(images.labels))
    arrays = kept(place, lambda: {"images": images.images[order], "labels": images.labels[order]})
    source = f"{images.source}, its classes mixed with a fixed seed"
    return replace(images, source=source, place=place, **arrays)


def prepared(
    images: Images, how: str, prepare: Callable[[NDArray[np.uint8]], Tensor]
) -> tuple[Tensor, Tensor]:
    """Images as a network takes them, prepared once and mapped from the cache, and their labels.

    Args:
        images: a split.
        how: names the preparation with all its constants: another one is kept beside it.
        prepare: makes the network's inputs ``[n, ...]``.
    """
    key = hashlib.sha256(how.encode()).hexdigest()[:16]
    place = images.place.with_name(f"{images.place.name}-{key}")
    inputs = kept(place, lambda: {"inputs": prepare(images.images).numpy()})["inputs"]
    return torch.from_numpy(inputs), torch.from_numpy(images.labels)


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
    digest = checksum(files)
    source = f"{what.folder}/{split} parquet, sha256 {digest}"
    place = cache_folder() / what.folder / f"{split}-{digest}"
    arrays = kept(place, lambda: _parquet(files, what))
    return Images(arrays["images"], arrays["labels"], source, place)


def checksum(files: Iterable[Path]) -> str:
    """The first 16 digits of the sha256 of files one after the other."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _parquet(files: Sequence[Path], what: ImageSet) -> Arrays:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        table = Dataset.from_parquet([str(f) for f in files], cache_dir=scratch)
        found = _decoded(table, what)
        del table
    return found


def _from_hub(what: ImageSet, splits: Sequence[str]) -> list[Images]:
    revision = _revision(what, splits)
    found = []
    for split in splits:
        place = cache_folder() / what.folder / f"{split}-hub-{revision[:16]}"
        arrays = kept(place, lambda split=split: _hub(what, split, revision))  # type: ignore[misc]
        source = f"hub {what.hub} {split}, revision {revision[:16]}"
        found.append(Images(arrays["images"], arrays["labels"], source, place))
    return found


def _hub(what: ImageSet, split: str, revision: str) -> Arrays:
    from datasets import load_dataset

    config = () if what.config is None else (what.config,)
    named = what.hub_splits.get(split, split)
    return _decoded(load_dataset(what.hub, *config, split=named, revision=revision), what)


def _revision(what: ImageSet, splits: Sequence[str]) -> str:
    """The hub's present revision; one quick question, so that being offline shows at once."""
    from huggingface_hub import HfApi

    try:
        revision = HfApi().dataset_info(what.hub, timeout=HUB_TIMEOUT_S).sha
    except Exception as error:  # whatever the network raises
        files = " and ".join(f"{what.folder}/{split}.parquet" for split in splits)
        raise DataMissingError(
            f"{what.hub} can't be had from the Hugging Face hub ({type(error).__name__}); put "
            f"{files}, as the hub has them, into a folder and name it with --data or NATGRAD_DATA"
        ) from error
    return revision or "main"


def _decoded(table: Any, what: ImageSet) -> Arrays:
    from datasets import Image as Encoded

    column = "image" if "image" in table.column_names else "img"
    table = table.cast_column(column, Encoded(decode=False))
    images = np.stack(list(_pixels((row["bytes"] for row in table[column]), what.mode)))
    return {"images": images, "labels": np.asarray(table[what.label], dtype=np.int64)}


def _pixels(encoded: Iterable[bytes], mode: str) -> Iterable[NDArray[np.uint8]]:
    from PIL import Image

    for data in encoded:
        with Image.open(io.BytesIO(data)) as image:
            yield np.asarray(image.convert(mode))
