"""NoduleMNIST3D of MedMNIST (Yang et al. 2023): benign and malignant nodules, 28x28x28 voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from natgrad.lab.data import DataSet, Pair, Splits
from natgrad.lab.errors import DataMissingError
from natgrad.lab.images import data_folder

__all__ = ["NODULE_MNIST"]

FILE = "nodulemnist3d.npz"


def _read(folder: Path | None) -> Splits:
    """``{train,val,test}_images [n, 28, 28, 28]`` uint8 and ``_labels [n, 1]``, 1 is malignant."""
    local = data_folder(folder)
    if local is None or not (local / FILE).is_file():
        raise DataMissingError(
            f"NoduleMNIST3D is read from {FILE}, as MedMNIST gives it, in the folder named by "
            "--data or NATGRAD_DATA"
        )
    try:
        with np.load(local / FILE) as arrays:
            pairs = [
                Pair(
                    torch.from_numpy(arrays[f"{name}_images"]),
                    torch.from_numpy(arrays[f"{name}_labels"].reshape(-1).astype(np.int64)),
                )
                for name in ("train", "val", "test")
            ]
    except (KeyError, ValueError, OSError) as error:
        raise DataMissingError(f"{FILE} is not as MedMNIST gives it: {error}") from error
    return Splits(pairs[0], pairs[1], pairs[2], FILE)


#: its labels are of malignancy: another question than nodule or not
NODULE_MNIST = DataSet("NoduleMNIST3D", "MedMNIST's own", _read)
