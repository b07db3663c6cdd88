"""Text as sequences of characters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from natgrad.lab.errors import DataMissingError
from natgrad.lab.images import data_folder

__all__ = ["CHARACTERS", "read_kjv", "sequences"]

#: every character of the King James Bible, the new line among them
CHARACTERS = "\n !'(),-.:;?ABCDEFGHIJKLMNOPQRSTUVWYZabcdefghijklmnopqrstuvwxyz"
VERSES = 31_102
LETTERS_BEGIN = 3_171  #: verses from Romans to the end: the apostles' letters and Revelation
HEBREWS_BEGIN = 1_138  #: verses from Hebrews to the end


def read_kjv(folder: Path | None) -> tuple[list[str], list[str], list[str], str]:
    """The King James Bible split by book: up to Acts, Romans to Philemon, Hebrews to Revelation.

    Returns:
        Verses of the three parts, and where they came from.

    Raises:
        DataMissingError: ``kjv/kjv.txt`` is not in the folder of local data sets.
    """
    local = data_folder(folder)
    file = None if local is None else local / "kjv" / "kjv.txt"
    if file is None or not file.is_file():
        raise DataMissingError(
            "the text is read from a local file: expected kjv/kjv.txt (the King James Bible, one "
            "verse a line) in the folder named by --data or NATGRAD_DATA"
            + (f", {local}" if local is not None else "")
        )
    verses = [line for line in file.read_text(encoding="utf-8").splitlines() if line]
    a, b = len(verses) - LETTERS_BEGIN, len(verses) - HEBREWS_BEGIN
    if len(verses) != VERSES:  # another text: the same shares
        a, b = int(0.9 * len(verses)), int(0.95 * len(verses))
    return verses[:a], verses[a:b], verses[b:], f"kjv.txt, {len(verses)} verses"


def sequences(verses: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Verses as rows of character indices, and the same one character on: ``[n, length]`` each."""
    place = {character: index for index, character in enumerate(CHARACTERS)}
    unknown = place[" "]
    codes = np.array([place.get(c, unknown) for c in "\n".join(verses)], dtype=np.int64)
    n = (len(codes) - 1) // length
    inputs = codes[: n * length].reshape(n, length)
    targets = codes[1 : n * length + 1].reshape(n, length)
    return torch.from_numpy(inputs), torch.from_numpy(targets)
