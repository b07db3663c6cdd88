"""Training on augmented images: schedules, resuming, and where statistics come from."""

import dataclasses
import io

import pytest
import torch
from torch import nn

from natgrad.lab.augmentation import RandomCrop, randomness
from natgrad.lab.data import DataSet, Pair, Splits
from natgrad.lab.errors import UsageError
from natgrad.lab.image_networks import CIFAR10_CHANNELS, of_pixels, vgg
from natgrad.lab.optimizers import Settings, Task, build
from natgrad.lab.recipe import Recipe
from natgrad.lab.training import Budget, Run, Training
from natgrad.likelihood import Categorical
from natgrad.whiten import Whitened

CROP = RandomCrop(size=8)


def images(count: int, seed: int) -> Pair:
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (count, 3, 12, 12), dtype=torch.uint8, generator=random)
    return Pair(x, torch.randint(0, 4, (count,), generator=random))


def network() -> nn.Sequential:
    return of_pixels(lambda: vgg((4, 0, 6), hidden=8, size=8, classes=4), CIFAR10_CHANNELS, 8)


@pytest.fixture
def splits() -> Splits:
    return Splits(images(40, 0), images(20, 1), images(20, 2), "made up")


@pytest.fixture
def recipe(tiny: Recipe, splits: Splits) -> Recipe:
    return dataclasses.replace(
        tiny, name="images", data=DataSet("noise", "", lambda folder: splits), network=network,
        batch_size=10, augmentation=CROP, schedule="steps:1", grids={}, settings={},
    )  # fmt: skip


def start(recipe: Recipe, splits: Splits, optimizer: str = "sgd", **settings: object) -> Training:
    return Training(Run(recipe, optimizer, settings, 3, Budget(epochs=3)), splits)  # type: ignore[arg-type]


RESUMED: list[tuple[str, Settings]] = [
    ("sgd", {}),
    ("sgd_bn", {}),
    ("rmsprop", {"momentum": 0.9}),
    ("tekfac_restricted", {"stats_every": 2, "refresh_every": 4}),
    ("prong", {"every": 3, "crops": 2, "samples": 20}),
    ("prongplus", {"every": 3, "reading": "batchnorm"}),
]


@pytest.mark.parametrize("schedule", ["steps:1", "plateau:0.5"])
@pytest.mark.parametrize(("optimizer", "settings"), RESUMED)
def test_a_resumed_run_sees_the_same_crops_and_rates(
    recipe: Recipe, splits: Splits, optimizer: str, settings: Settings, schedule: str
) -> None:
    recipe = dataclasses.replace(recipe, schedule=schedule)

    def advance(one: Training, updates: int) -> None:
        for _ in range(updates):
            if one.due():
                one.evaluate()
            one.step()

    whole, broken = (start(recipe, splits, optimizer, **settings) for _ in range(2))
    advance(whole, 12)
    advance(broken, 7)
    file = io.BytesIO()
    torch.save(broken.state_dict(), file)
    file.seek(0)
    resumed = start(recipe, splits, optimizer, **settings)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    torch.manual_seed(99)  # what else is drawn must not matter
    advance(resumed, 5)
    assert whole.optimizer.param_groups[0]["lr"] == resumed.optimizer.param_groups[0]["lr"]
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert whole.rows[-1]["validation_loss"] == resumed.rows[-1]["validation_loss"]


def test_the_rate_falls_at_the_first_update_of_an_epoch(recipe: Recipe, splits: Splits) -> None:
    one, rates = start(recipe, splits, lr=1e-3), []
    for _ in range(12):
        one.step()
        rates.append(one.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 4 + [1e-5] * 4)


def test_batches_are_augmented_and_what_is_evaluated_is_not(recipe: Recipe, splits: Splits) -> None:
    one = start(recipe, splits)
    plain = start(dataclasses.replace(recipe, augmentation=None), splits)
    x, _ = one._batch()
    whole, _ = plain._batch()
    assert torch.equal(x, CROP(whole, randomness(3, 0)))
    assert one.evaluate()["train_loss"] == plain.evaluate()["train_loss"]


def test_every_optimizer_sees_the_same_crops(recipe: Recipe, splits: Splits) -> None:
    one, other = start(recipe, splits), start(recipe, splits, "tekfac_restricted")
    for _ in range(5):
        assert torch.equal(one._batch()[0], other._batch()[0])
        one.step()
        other.step()


def of_images(augmentation: RandomCrop | None = CROP) -> Task:
    torch.manual_seed(0)
    pair = images(30, 4)
    return Task(network(), Categorical(), inputs=pair.inputs, augmentation=augmentation)


def constants(model: nn.Module) -> torch.Tensor:
    first = next(m for m in model.modules() if isinstance(m, Whitened))
    assert first.c is not None
    return first.c


@pytest.mark.parametrize("crops", [0, 3])
def test_prongs_statistics_are_of_crops_or_of_images_as_they_are_evaluated(crops: int) -> None:
    one = of_images()
    assert one.inputs is not None
    front, inputs = network()[0], one.inputs[:20]
    build("prong", one, {"samples": 20, "crops": crops})
    draws = [CROP(inputs, randomness(0, 0, k)) for k in range(crops)]
    seen = front(torch.cat(draws) if crops else inputs)
    torch.testing.assert_close(constants(one.model).float(), seen.mean((0, 2, 3)))


def test_crops_need_an_augmentation() -> None:
    with pytest.raises(UsageError, match="augments its training images"):
        build("prong", of_images(None), {"crops": 2})


def test_batchnorm_is_put_behind_every_hidden_layer_of_a_convolutional_network() -> None:
    one = of_images()
    build("sgd_bn", one, {})
    kinds = [m for m in one.model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert [norm.num_features for norm in kinds] == [4, 6, 8]
    assert isinstance(list(one.model)[-1], nn.Linear)
    assert one.inputs is not None
    one.model(one.inputs).sum().backward()


def test_crops_are_accepted_before_there_is_any_data() -> None:
    build("prong", Task(network(), Categorical(), augmentation=CROP), {"crops": 2})
