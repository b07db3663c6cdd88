import dataclasses

import pytest

from natgrad.lab.errors import UsageError
from natgrad.lab.optimizers import complete
from natgrad.lab.recipe import Recipe, addresses, load, names

PARAMETERS = {"digits-mlp": 8_970, "mnist-mlp": 76_570, "autoencoder": 2_837_314}


def test_every_file_is_a_recipe() -> None:
    assert {"digits-mlp", "mnist-mlp", "autoencoder"} <= set(names())


@pytest.mark.parametrize("name", addresses())
def test_a_recipe_is_complete(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert set(recipe.optimizers) <= set(recipe.grids)
    assert set(recipe.settings) == set(recipe.grids)
    for optimizer, grid in recipe.grids.items():
        for settings in grid:
            assert complete(optimizer, settings).items() >= settings.items()
        assert recipe.settings[optimizer] in grid
        assert len({tuple(settings.items()) for settings in grid}) == len(grid)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_network_is_the_papers(name: str) -> None:
    network = load(name).network()
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='did you mean "digits-mlp"') as caught:
        load("digit-mlp")
    assert "mnist-mlp" in str(caught.value)


def test_a_name_far_from_all_gets_no_suggestion() -> None:
    with pytest.raises(UsageError, match="There are: ") as caught:
        load("xyz")
    assert "did you mean" not in str(caught.value)


def test_grids_must_be_equally_long(tiny: Recipe) -> None:
    with pytest.raises(ValueError, match="equally long"):
        dataclasses.replace(tiny, grids={"sgd": [{"lr": 0.1}], "adam": []})


def test_a_grid_that_is_not_there(tiny: Recipe) -> None:
    recipe = dataclasses.replace(tiny, grids={"sgd": [{"lr": 0.1}]})
    with pytest.raises(UsageError, match="no tuning grid for kfac"):
        recipe.grid("kfac")


def test_a_recipe_with_another_schedule() -> None:
    recipe = load("digits-mlp")
    assert recipe.scheduled(None) is recipe
    assert recipe.scheduled("linear").schedule == "linear"
    with pytest.raises(UsageError, match="linear"):
        recipe.scheduled("cosine")
