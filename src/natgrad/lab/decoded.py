"""Images that stay in their files until they are asked for: for sets that no memory holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from natgrad.lab.errors import DamagedError

__all__ = ["FileImages", "class_folders", "decoders"]

SIDE = 256  #: of what is kept of an image: the middle, its shorter side scaled to this
SUFFIXES = (".jpeg", ".jpg", ".png")
_SLICE, _SPLIT = torch.ops.aten.slice.Tensor, torch.ops.aten.split.Tensor
_INDEX, _SELECT = torch.ops.aten.index.Tensor, torch.ops.aten.index_select.default
_ALIASES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


class FileImages(Tensor):
    """Bytes ``[n, 3, side, side]`` of image files, decoded by the operation that needs them.

    Slices along the first dimension are of files, and decode nothing; rows picked by a tensor of
    indices are decoded, by a thread for each processor. So a loop that indexes batches, and one
    that splits a set into parts, hold one batch in memory. Any other operation decodes all files
    of the tensor.

    Args:
        files: the images, in any format that Pillow reads; grey ones become colours.
        side: height and width. The shorter side of an image is scaled to it (bilinear, with
            antialiasing), and the middle is taken.
        pool: decodes; None has threads started whenever there is something to decode.
    """

    files: Sequence[Path]
    side: int
    pool: Executor | None

    @staticmethod
    def __new__(
        cls, files: Sequence[Path], side: int = SIDE, pool: Executor | None = None
    ) -> FileImages:
        """A tensor without memory of its own."""
        made: FileImages = torch.Tensor._make_wrapper_subclass(
            cls, (len(files), 3, side, side), dtype=torch.uint8
        )
        made.files, made.side, made.pool = files, side, pool
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"FileImages({len(self.files)} files, {self.side}x{self.side})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch does with the tensor: of files where it can be, else of their pixels."""
        first = args[0] if args else None
        if isinstance(first, FileImages):
            if func in _ALIASES:
                return FileImages(first.files, first.side, first.pool)
            if func is _SLICE and (len(args) < 2 or args[1] == 0):
                return first._sliced(*args[2:])
            if func is _SPLIT and (len(args) < 3 or args[2] == 0):
                return [first._sliced(k, k + args[1]) for k in range(0, len(first), args[1])]
            if func is _INDEX and len(args[1]) == 1:
                return first.decoded(args[1][0])
            if func is _SELECT and args[1] == 0:
                return first.decoded(args[2])
        return func(*tree_map(_whole, tuple(args)), **tree_map(_whole, dict(kwargs or {})))

    def _sliced(self, start: int | None = 0, end: int | None = None, step: int = 1) -> FileImages:
        return FileImages(self.files[slice(start, end, step)], self.side, self.pool)

    def decoded_by(self, pool: Executor) -> FileImages:
        """The same images, decoded by threads that are there already."""
        return FileImages(self.files, self.side, pool)

    def decoded(self, index: Tensor | None = None) -> Tensor:
        """The pixels of the chosen files; of all without ``index``.

        Raises:
            DamagedError: a file can't be decoded; says which.
        """
        if index is None:
            chosen = list(self.files)
        elif index.dtype == torch.bool:
            chosen = [self.files[k] for k in index.nonzero().flatten().tolist()]
        else:
            chosen = [self.files[k] for k in index.flatten().tolist()]
        found = torch.empty(len(chosen), self.side, self.side, 3, dtype=torch.uint8)
        with decoders() if self.pool is None else nullcontext(self.pool) as pool:
            for row, pixels in zip(found, pool.map(_reader(self.side), chosen), strict=True):
                row.copy_(torch.from_numpy(pixels))
        return found.permute(0, 3, 1, 2)


def decoders() -> ThreadPoolExecutor:
    """A thread for each processor: Pillow decodes outside of Python's lock."""
    return ThreadPoolExecutor(os.cpu_count(), "decoder")


def _whole(value: Any) -> Any:
    return value.decoded() if isinstance(value, FileImages) else value


def _reader(side: int) -> Callable[[Path], NDArray[np.uint8]]:
    def read(file: Path) -> NDArray[np.uint8]:
        try:
            return _middle(file, side)
        except Exception as error:  # whatever Pillow raises
            raise DamagedError(
                f"{file} can't be decoded ({error}): put a whole image in its place, and go on "
                "with --resume"
            ) from error

    return read


def _middle(file: Path, side: int) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(file) as image:
        image.draft("RGB", (side, side))  # JPEG: decoded at a fraction of its size
        scale = side / min(image.size)
        size = [max(side, round(scale * length)) for length in image.size]
        left, top = ((length - side) // 2 for length in size)
        scaled = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BILINEAR)
        return np.array(scaled.crop((left, top, left + side, top + side)))


def class_folders(folder: Path) -> tuple[list[Path], list[int], list[str]]:
    """Image files of a folder of class folders, as ImageNet has them, sorted by name.

    Returns:
        The files, the number of each one's class, and the names of the classes. Classes without a
        folder, and folders without an image, don't count.
    """
    found = {
        path.name: sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
        for path in sorted(folder.iterdir())
        if path.is_dir()
    }
    names = [name for name, files in found.items() if files]
    files = [file for name in names for file in found[name]]
    labels = [number for number, name in enumerate(names) for _ in found[name]]
    return files, labels, names
