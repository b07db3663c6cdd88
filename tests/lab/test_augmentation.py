import pytest
import torch

from natgrad.lab.augmentation import RandomCrop, centre_crop, randomness


def numbered(n: int, h: int, w: int) -> torch.Tensor:
    """Images whose three channels hold the row, the column and the number of the image."""
    rows, columns = torch.arange(1, h + 1), torch.arange(1, w + 1)
    images = torch.zeros(n, 3, h, w, dtype=torch.uint8)
    images[:, 0], images[:, 1] = rows[:, None], columns
    images[:, 2] = torch.arange(1, n + 1)[:, None, None]
    return images


def reference(image: torch.Tensor, top: int, left: int, size: int, flip: bool) -> torch.Tensor:
    window = image[:, top : top + size, left : left + size]
    return window.flip(-1) if flip else window


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_window_is_one_of_its_own_image(layout: torch.memory_format) -> None:
    images = numbered(40, 9, 9).contiguous(memory_format=layout)
    found = RandomCrop(size=6)(images, randomness(0))
    assert found.shape == (40, 3, 6, 6)
    assert found.is_contiguous()
    for image, window in zip(images, found, strict=True):
        top = int(window[0, 0, 0]) - 1
        first, last = int(window[1, 0, 0]), int(window[1, 0, -1])
        left = min(first, last) - 1
        assert torch.equal(window, reference(image, top, left, 6, first > last))


def test_places_and_reflections_are_uniform_and_independent() -> None:
    n = 18_000
    images = torch.zeros(n, 2, 4, 4, dtype=torch.uint8)
    images[:, 0], images[:, 1] = torch.arange(4)[:, None], torch.arange(4)
    found = RandomCrop(size=2)(images, randomness(1))
    top, first, second = found[:, 0, 0, 0], found[:, 1, 0, 0], found[:, 1, 0, 1]
    left, flip = torch.minimum(first, second), first > second
    outcomes = (top.long() * 3 + left.long()) * 2 + flip.long()  # 3 x 3 places, 2 directions
    counts = outcomes.bincount(minlength=18)
    chi2 = ((counts - n / 18) ** 2 / (n / 18)).sum().item()
    assert chi2 < 40.8  # 17 degrees of freedom, one in a thousand; the seed is fixed


def test_padding_is_black_and_the_rest_is_the_image() -> None:
    images = numbered(200, 5, 5)
    found = RandomCrop(padding=2, flip=False)(images, randomness(2))
    assert found.shape == images.shape
    padded = torch.nn.functional.pad(images, (2,) * 4)
    places = set()
    for image, window in zip(padded, found, strict=True):
        fits = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(window, reference(image, top, left, 5, False))
        ]
        assert len(fits) == 1
        places.add(fits[0])
    assert len(places) == 25


def test_without_flip_nothing_is_mirrored() -> None:
    found = RandomCrop(size=4, flip=False)(numbered(100, 6, 6), randomness(3))
    assert (found[:, 1].diff(dim=-1) == 1).all()


def test_a_draw_is_a_function_of_its_key() -> None:
    images, crop = numbered(50, 8, 8), RandomCrop(padding=4)
    again = crop(images, randomness(5, 7))
    assert torch.equal(crop(images, randomness(5, 7)), again)
    assert not torch.equal(crop(images, randomness(5, 8)), again)
    assert not torch.equal(crop(images, randomness(6, 7)), again)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    RandomCrop(padding=4)(numbered(3, 8, 8), randomness(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_centre() -> None:
    images = numbered(2, 8, 8)
    assert torch.equal(centre_crop(images, 4), images[:, :, 2:6, 2:6])
    assert centre_crop(images, 8).data_ptr() == images.data_ptr()
    with pytest.raises(ValueError, match="8x8 have no window of 9x9"):
        centre_crop(images, 9)


def test_a_window_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="10x10 have no window of 12x12"):
        RandomCrop(size=12, padding=1)(numbered(1, 8, 8), randomness(0))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"padding": -1}, {"flip": False}])
def test_what_is_no_crop_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"crop|size"):
        RandomCrop(**wrong)


def test_in_words() -> None:
    assert RandomCrop(padding=4).about == "random crops of images padded by 4 and horizontal flips"
    assert RandomCrop(24, flip=False).about == "random 24x24 crops"
