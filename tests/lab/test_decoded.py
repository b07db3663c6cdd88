from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from natgrad.lab import decoded
from natgrad.lab.decoded import FileImages, class_folders


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Eleven images of one colour each, of several shapes."""
    found = []
    for k in range(11):
        pixels = np.full((20 + k, 30, 3), 20 * k, dtype=np.uint8)
        found.append(tmp_path / f"{k:02}.png")
        Image.fromarray(pixels).save(found[-1])
    return found


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded."""
    seen, reader = [], decoded._reader

    def counting(side: int):
        read = reader(side)
        return lambda file: (seen.append(file), read(file))[1]

    monkeypatch.setattr(decoded, "_reader", counting)
    return seen


def colours(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0].long() // 20).tolist()


def test_it_has_the_shape_of_what_it_stands_for(files: list[Path], opened: list[Path]) -> None:
    images = FileImages(files, side=8)
    assert images.shape == (11, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert len(images) == 11
    assert "11 files" in repr(images)
    assert not opened


def test_rows_are_decoded_when_picked(files: list[Path], opened: list[Path]) -> None:
    images = FileImages(files, side=8)
    picked = images[torch.tensor([7, 2, 2])]
    assert type(picked) is torch.Tensor
    assert picked.shape == (3, 3, 8, 8)
    assert colours(picked) == [7, 2, 2]
    assert len(opened) == 3
    assert colours(images[torch.arange(11) > 8]) == [9, 10]
    assert colours(images.index_select(0, torch.tensor([4, 3]))) == [4, 3]
    assert len(opened) == 7


def test_slices_and_parts_are_of_files(files: list[Path], opened: list[Path]) -> None:
    images = FileImages(files, side=8)
    parts = torch.split(images[2:9], 3)
    assert [type(part) for part in parts] == [FileImages] * 3
    assert not opened
    assert colours(torch.cat([part + 0 for part in parts])) == [2, 3, 4, 5, 6, 7, 8]
    assert len(opened) == 7
    assert colours(images[:3][1:] + 0) == [1, 2]
    assert colours(images[::5] + 0) == [0, 5, 10]


def test_any_operation_is_on_the_pixels(files: list[Path]) -> None:
    images = FileImages(files[:4], side=8)
    expected = torch.arange(0, 80, 20, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    assert torch.equal(images.to(torch.float32), expected.float())
    assert torch.equal(torch.nn.functional.pad(images, (1, 1, 1, 1))[..., 1:-1, 1:-1], expected)


def test_the_shorter_side_is_scaled_and_the_middle_taken(tmp_path: Path) -> None:
    pixels = np.zeros((40, 120, 3), dtype=np.uint8)
    pixels[:, 40:80] = 200  # the middle third, once scaled exactly what is kept
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found = FileImages([tmp_path / "wide.png"], side=20)[torch.tensor([0])]
    assert found.shape == (1, 3, 20, 20)
    assert (found[..., 1:-1] == 200).all()


def test_grey_images_become_colours_and_small_ones_grow(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 4), 90, dtype=np.uint8)).save(tmp_path / "grey.jpg", quality=95)
    found = FileImages([tmp_path / "grey.jpg"], side=16)[torch.tensor([0])]
    assert found.shape == (1, 3, 16, 16)
    assert (found.long() - 90).abs().max() <= 1


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("n02/b.JPEG", "n02/a.JPEG", "n01/c.jpg", "n02/notes.txt", "n00/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files, labels, names = class_folders(tmp_path)
    assert [file.name for file in files] == ["c.jpg", "a.JPEG", "b.JPEG"]
    assert (labels, names) == ([0, 1, 1], ["n01", "n02"])
