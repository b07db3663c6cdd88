"""Characters of the King James Bible."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from natgrad.lab.data import KJV
from natgrad.lab.errors import DataMissingError
from natgrad.lab.networks import CharacterModel
from natgrad.lab.text import CHARACTERS, read_kjv, sequences

VERSES = [f"Verse {'abcdefghij'[k % 10] * (k % 7 + 1)}, and so on;" for k in range(400)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kjv").mkdir()
    (tmp_path / "kjv" / "kjv.txt").write_text("\n".join(VERSES), encoding="utf-8")
    return tmp_path


def test_the_alphabet_has_every_character_once() -> None:
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 63


def test_targets_are_the_next_characters() -> None:
    x, y = sequences(["In the beginning", "God created"], 9)
    assert x.shape == y.shape == (3, 9)
    assert torch.equal(x.flatten()[1:], y.flatten()[:-1])
    assert "".join(CHARACTERS[c] for c in x.flatten()) == "In the beginning\nGod create"
    assert CHARACTERS[y[-1, -1]] == "d"


def test_characters_outside_of_the_alphabet_become_spaces() -> None:
    x, _ = sequences(["a€b 1"], 4)
    assert "".join(CHARACTERS[c] for c in x[0]) == "a b "


def test_parts_follow_each_other_without_overlap(folder: Path) -> None:
    train, validation, test, source = read_kjv(folder)
    assert train + validation + test == VERSES
    assert min(map(len, (train, validation, test))) > 0
    assert "400 verses" in source


def test_the_data_set_is_made_of_64_characters(folder: Path) -> None:
    splits = KJV.load(folder)
    assert splits.train.inputs.shape[1] == 64
    assert splits.train.inputs.dtype == torch.int64


@pytest.mark.parametrize("given", [True, False])
def test_a_missing_text_says_what_is_expected_where(tmp_path: Path, given: bool) -> None:
    with pytest.raises(DataMissingError, match=r"kjv/kjv\.txt"):
        KJV.load(tmp_path if given else None)


def test_the_model_does_not_see_the_future() -> None:
    torch.manual_seed(0)
    model = CharacterModel(63, 16, width=8, heads=2, depth=1)
    x = torch.randint(0, 63, (2, 16))
    changed = x.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 63
    before, after = model(x), model(changed)
    assert torch.allclose(before[:, :10], after[:, :10], atol=1e-6)
    assert not torch.allclose(before[:, 10:], after[:, 10:], atol=1e-3)
