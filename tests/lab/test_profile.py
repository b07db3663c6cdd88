"""Sizes of an experiment: what they change is said, and results of two are never mixed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from natgrad.lab import carrying
from natgrad.lab.data import Splits
from natgrad.lab.errors import UsageError
from natgrad.lab.manifest import check_unchanged, options, plan_of
from natgrad.lab.networks import mlp
from natgrad.lab.profile import Profile, held, whose
from natgrad.lab.recipe import Recipe, addresses, load

from .test_cli import natgrad_command, refused


def sized(tiny: Recipe) -> Recipe:
    smoke = Profile({"epochs": 0.5, "seeds": (0,), "data": tiny.data.first(50, 20, 10)})
    return dataclasses.replace(tiny, profiles={"smoke": smoke})


def test_a_profile_changes_its_fields_and_says_so(tiny: Recipe) -> None:
    recipe = sized(tiny).profiled("smoke")
    assert (recipe.epochs, recipe.seeds) == (0.5, (0,))
    assert recipe.network is tiny.network
    assert recipe.profile.name == "smoke"
    assert not recipe.profile.comparable
    assert "epochs: 0.5 instead of 2" in recipe.profile.differs
    assert "seeds: 1 instead of 5" in recipe.profile.differs
    assert "data: the first 50 / 20 / 10" in recipe.profile.differs
    assert recipe.data.load(None).sizes() == {"train": 50, "validation": 20, "test": 10}


def test_values_that_grids_hold_are_said(tiny: Recipe) -> None:
    whole = {"sngd": [{"lr": lr, "eps": eps, "every": 1000} for lr in (1, 2) for eps in (0.1, 1)]}
    small = {"sngd": [{"lr": lr, "eps": 0.1, "every": 100} for lr in (1, 2)]}
    recipe = dataclasses.replace(
        tiny, grids=whole, profiles={"cpu": Profile({"grids": small, "evaluations": 2})}
    ).profiled("cpu")
    assert recipe.profile.differs == (
        "grids: 2 points instead of 4, eps 0.1 instead of 0.1 or 1, every 100 instead of 1000; "
        f"evaluations: 2 over the run instead of {tiny.evaluations_per_epoch} an epoch"
    )


def test_what_a_grid_holds_names_whose_it_is() -> None:
    before = {name: [{"lr": 1, "eps": eps} for eps in (1, 2)] for name in ("prong", "sngd")}
    now = {"prong": [{"lr": 1, "eps": 3}], "sngd": [{"lr": 2, "eps": 3}], "sgd": [{"lr": 9}]}
    found = held(now, before)  # a single point holds everything: what others vary is not said
    assert found == {"lr 2 instead of 1": ["sngd"]}
    assert whose(found) == ["lr 2 instead of 1 (sngd)"]
    assert whose({"a": ["x", "y"], "b": ["x", "y"], "c": ["y"]}, ["x", "y"]) == ["a, b", "c (y)"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("prong-imagenet/tiny-imagenet", "every 50 instead of 1000, samples 200 instead of 1000"),
        ("prong-cifar", "samples 1600 instead of 4000 (prong[crops=0])"),
        ("tekfac-table3/resnet20-cifar10", "nu 0.01 instead of 0.01 or 1"),
    ],
)
def test_recipes_say_what_their_small_grids_hold(name: str, said: str) -> None:
    assert said in load(name, "cpu").profile.differs


def test_the_first_examples_are_those_of_the_whole_set(tiny: Recipe, digits: Splits) -> None:
    few = tiny.data.first(7, 5, 3).load(None)
    assert (few.train.inputs == digits.train.inputs[:7]).all()
    assert (few.test.targets == digits.test.targets[:3]).all()


def test_the_first_examples_of_a_copy_are_still_of_the_copy(tiny: Recipe, digits: Splits) -> None:
    copied = dataclasses.replace(tiny.data, load=lambda folder: digits.named("a copy"))
    assert copied.first(7, 5, 3).load(None).name == "a copy"


def test_full_is_the_recipe_and_cpu_falls_back_to_it(tiny: Recipe) -> None:
    for name in ("full", "cpu"):
        recipe = sized(tiny).profiled(name)
        assert recipe.epochs == tiny.epochs
        assert recipe.profile == type(recipe.profile)(name, "", True)


def test_wrong_profiles(tiny: Recipe) -> None:
    with pytest.raises(UsageError, match='no profile "smok"; did you mean "smoke"'):
        sized(tiny).profiled("smok")
    with pytest.raises(UsageError, match="no smoke profile"):
        dataclasses.replace(tiny, profiles={}).profiled("smoke")
    with pytest.raises(ValueError, match="must say so in architecture"):
        Profile({"network": lambda: mlp((64, 10))})
    with pytest.raises(ValueError, match="a profile is smoke or cpu"):
        dataclasses.replace(tiny, profiles={"full": Profile()})


@pytest.mark.parametrize("name", addresses())
def test_every_recipe_has_a_smoke_profile_that_is_smaller(name: str) -> None:
    full, smoke = load(name, "full"), load(name, "smoke")
    assert smoke.profile.differs
    assert not smoke.profile.comparable
    assert (smoke.seconds or 0) <= (full.seconds or 0)
    assert smoke.epochs <= full.epochs
    assert set(smoke.optimizers) <= set(smoke.grids)
    assert set(load(name, "cpu").optimizers) <= set(load(name, "cpu").grids)


def test_the_profile_is_recorded_and_kept_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "print_report", lambda folder: None)
    out = tmp_path / "out"
    words = ("compare", "digits-mlp", "--profile", "smoke", "--optimizers", "sgd", "--no-tune")
    assert natgrad_command(*words, "--out", out).exit_code == 0
    about = json.loads((out / "manifest.json").read_text())
    assert about["profile"]["name"] == "smoke"
    assert "epochs: 0.5 instead of 8" in about["profile"]["differs"]
    again = natgrad_command("compare", "digits-mlp", "--out", out, "--resume")
    assert again.exit_code == 0, again.output
    other = ("compare", "digits-mlp", "--profile", "cpu", "--optimizers", "sgd", "--no-tune")
    said = refused(2, *other, "--seeds", "1", "--epochs", "0.5", "--out", out, "--resume")
    assert "profile was" in said


def test_a_plan_can_be_made_again_from_its_options() -> None:
    recorded = {
        "schema": 1, "recipe": {"name": "digits-mlp", "schedule": "linear"},
        "profile": {"name": "smoke"}, "optimizers": ["sgd"], "seeds": [3],
        "budget": {"epochs": 2.0, "seconds": None}, "settings": {"sgd": {"lr": 0.1}},
        "compute": {"device": "cpu", "precision": "bf16"},
    }  # fmt: skip
    plan = plan_of(recorded)
    assert plan.recipe.profile.name == "smoke"
    assert options(plan) == recorded


def test_what_the_paper_states_may_change_before_a_run_goes_on() -> None:
    before = {"recipe": {"name": "a", "l2": 0.0, "paper": ["then"]}}
    check_unchanged(before, {"recipe": {"name": "a", "l2": 0.0, "paper": ["now"]}})
    with pytest.raises(UsageError, match="can't resume: recipe was"):
        check_unchanged(before, {"recipe": {"name": "a", "l2": 0.1, "paper": ["then"]}})
