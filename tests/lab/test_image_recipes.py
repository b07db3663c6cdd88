"""The recipes of the TEKFAC paper and of the PRONG paper's Fig. 4 are what they claim to be."""

import statistics

import pytest

from natgrad.lab.augmentation import RandomCrop
from natgrad.lab.paper import Claim, Number
from natgrad.lab.recipe import Recipe, Suite, addresses, find, load
from natgrad.lab.schedules import Steps, parse
from natgrad.lab.tekfac import DAMPINGS, NUS, RATES

TABLE3 = [name for name in addresses() if name.startswith("tekfac-table3/")]
SWEEPS = [name for name in addresses() if name.startswith(("tekfac-nu/", "tekfac-lr/"))]
PRONG = [name for name in addresses() if name.startswith(("prong-cifar", "prong-imagenet/"))]


def printed(recipe: Recipe) -> dict[str, float]:
    return {n.what.split(",")[0]: n.value for n in recipe.paper if isinstance(n, Number)}


def test_there_is_a_variant_for_each_network_and_data_set() -> None:
    found = find("tekfac-table3")
    assert isinstance(found, Suite)
    assert set(found.variants) == {
        f"{network}-{data}"
        for network in ("vgg16", "resnet20")
        for data in ("cifar10", "cifar100", "svhn")
    }


@pytest.mark.parametrize(("network", "gain"), [("vgg16", 0.96), ("resnet20", 3.06)])
def test_the_papers_table_adds_up_to_what_its_text_says(network: str, gain: float) -> None:
    table = printed(load(f"tekfac-table3/{network}-cifar100", "full"))
    assert table["TEKFAC"] - table["EKFAC"] == pytest.approx(gain)


def test_the_tables_of_the_paper_agree_where_they_overlap() -> None:
    table = printed(load("tekfac-table3/resnet20-cifar100", "full"))
    assert printed(load("tekfac-nu/cifar100", "full"))["nu 0.01"] == table["TEKFAC"]
    assert printed(load("tekfac-lr/cifar100", "full"))["lr 0.001"] == table["TEKFAC"]


@pytest.mark.parametrize("name", TABLE3)
def test_full_has_the_papers_settings(name: str) -> None:
    recipe = load(name, "full")
    digits = name.endswith("svhn")
    assert (recipe.batch_size, recipe.l2, len(recipe.seeds)) == (128, 0.0, 3)
    assert parse(recipe.schedule) == Steps(20 if digits else 40)
    assert recipe.augmentation == (None if digits else RandomCrop(padding=4))
    for grid in recipe.grids.values():
        for point in grid:
            assert point["lr"] in RATES
            assert point.get("damping", DAMPINGS[0]) in DAMPINGS
            assert point.get("nu", NUS[0]) in NUS
    for number in recipe.paper:
        if isinstance(number, Number):
            assert number.data == recipe.data.name


@pytest.mark.parametrize("name", TABLE3)
def test_damping_and_factorisation_are_told_apart(name: str) -> None:
    recipe = load(name)
    assert {"ekfac", "ekfac_restricted", "tekfac_restricted"} <= set(recipe.optimizers)
    compared = [
        (claim.better.optimizer, claim.worse.optimizer)  # type: ignore[union-attr]
        for claim in recipe.paper
        if isinstance(claim, Claim)
    ]
    assert ("tekfac_restricted", "ekfac_restricted") in compared


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tekfac-table3/resnet20-cifar10", 272_474),  # the paper: 0.27 M
        ("tekfac-table3/vgg16-cifar10", 14_724_042),  # about 15 M
        ("prong-cifar", 1_738_058),
    ],
)
def test_the_networks_are_of_the_papers_size(name: str, count: int) -> None:
    assert sum(p.numel() for p in load(name, "full").network().parameters()) == count


@pytest.mark.parametrize("name", SWEEPS)
def test_one_setting_takes_the_papers_values_and_the_others_stay(name: str) -> None:
    recipe = load(name)
    key = name[len("tekfac-") :].partition("/")[0]
    points = [grid[0] for grid in recipe.grids.values()]
    assert len({point[key] for point in points}) == len(points) == len(printed(recipe))
    other = "lr" if key == "nu" else "nu"
    assert {point[other] for point in points} == {1e-3 if key == "nu" else 0.01}
    assert {name.partition("[")[0] for name in recipe.optimizers} == {"tekfac_restricted"}


def test_prong_with_crops_and_without_differ_in_nothing_else() -> None:
    """As many inputs make their statistics: four crops of an image, or four images."""
    for profile in ("full", "cpu", "smoke"):
        recipe = load("prong-cifar", profile)
        cropped, whole = (
            [*recipe.grids[name], recipe.settings[name]]
            for name in ("prong[crops=4]", "prong[crops=0]")
        )
        assert [{**point, "samples": 4 * int(point["samples"])} for point in cropped] == whole


@pytest.mark.parametrize("name", [*TABLE3, *SWEEPS, *PRONG])
@pytest.mark.parametrize("profile", ["full", "cpu", "smoke"])
def test_what_is_used_without_tuning_is_a_point_of_the_grid(name: str, profile: str) -> None:
    recipe = load(name, profile)
    assert set(recipe.optimizers) <= set(recipe.grids) == set(recipe.settings)
    for optimizer, settings in recipe.settings.items():
        assert settings in recipe.grids[optimizer]


@pytest.mark.parametrize("name", TABLE3)
def test_two_cores_get_a_network_and_a_budget_that_they_can_carry(name: str) -> None:
    full, cpu = load(name, "full"), load(name, "cpu")
    sizes = [sum(p.numel() for p in r.network().parameters()) for r in (full, cpu)]
    assert sizes[1] < sizes[0] / 3
    assert cpu.profile.differs
    assert not cpu.profile.comparable
    assert statistics.fmean(map(len, cpu.grids.values())) == 3
