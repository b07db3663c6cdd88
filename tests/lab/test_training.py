import dataclasses
import itertools
import math

import pytest
import torch

from natgrad.lab import objective, training
from natgrad.lab.data import Splits
from natgrad.lab.errors import UsageError
from natgrad.lab.recipe import Recipe
from natgrad.lab.training import Budget, Run, Training, data_order, evaluate

from .conftest import buildable


def start(recipe: Recipe, splits: Splits, optimizer: str = "sgd", seed: int = 0, **kwargs: object):
    kwargs.setdefault("budget", Budget(epochs=1))
    settings = kwargs.pop("settings", {})
    return Training(Run(recipe, optimizer, settings, seed, **kwargs), splits)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", buildable())
def test_weights_and_batches_do_not_depend_on_the_optimizer(
    tiny: Recipe, digits: Splits, optimizer: str
) -> None:
    mine, reference = start(tiny, digits, optimizer), start(tiny, digits)
    x = digits.train.inputs[:50]
    if optimizer != "sgd_bn":  # which changes the network
        torch.testing.assert_close(mine.model.eval()(x), reference.model(x))
        mine.model.train()
    for _ in range(26):  # into the second epoch
        assert torch.equal(mine._batch()[0], reference._batch()[0])
        mine.step()
        reference.step()


def test_seeds_differ(tiny: Recipe, digits: Splits) -> None:
    a, b = start(tiny, digits, seed=0), start(tiny, digits, seed=1)
    assert not torch.equal(next(a.model.parameters()), next(b.model.parameters()))
    assert not torch.equal(data_order(20, 0, 0), data_order(20, 1, 0))


def test_an_epoch_sees_every_example_once_in_a_new_order(tiny: Recipe, digits: Splits) -> None:
    one = start(tiny, digits)
    seen = []
    for _ in range(one.updates_per_epoch):
        seen.append(one._batch()[0])
        one.step()
    assert len(torch.unique(torch.cat(seen), dim=0)) == len(digits.train)
    assert one.epoch == 1
    assert not torch.equal(data_order(20, 0, 0), data_order(20, 0, 1))


def test_every_optimizer_sees_the_penalised_gradient(tiny: Recipe, digits: Splits) -> None:
    recipe = dataclasses.replace(tiny, l2=0.3)
    one = start(recipe, digits, settings={"lr": 0.0})
    x, y = one._batch()
    loss = recipe.likelihood.nll(one.model(x), y).mean()
    weights = [p for p in one.model.parameters() if p.ndim == 2]
    objective = loss + 0.3 / 2 * sum((w**2).sum() for w in weights)
    expected = torch.autograd.grad(objective, list(one.model.parameters()))
    one.step()
    for p, gradient in zip(one.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_only_steps_and_what_the_optimizer_prepares_are_on_the_clock(
    tiny: Recipe, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(ticks)))
    one = start(tiny, digits)
    one.evaluate()
    one.step()
    one.evaluate()
    one.step()
    # making the optimizer looks at the clock twice, each step four times: two are for the batch
    assert one.seconds == 1.0 + 2 * 3.0
    assert one.batches.seconds == 2 * 1.0


def test_points_of_the_curve(tiny: Recipe, digits: Splits) -> None:
    one = start(dataclasses.replace(tiny, evaluations_per_epoch=4), digits)
    due = []
    for _ in range(one.updates_per_epoch + 1):
        if one.due():
            due.append(one.update)
        one.update += 1
    assert due == [0, 6, 12, 18, 24]


def test_a_point_is_taken_once_and_the_end_has_one(tiny: Recipe, digits: Splits) -> None:
    one = start(tiny, digits)
    assert one.due()
    one.evaluate()
    assert not one.due()
    one.step()
    assert not one.due()
    assert one.due(last=True)


def test_a_row_holds_the_schema(tiny: Recipe, digits: Splits) -> None:
    row = start(tiny, digits, "kfac", seed=3).evaluate()
    figures = {f"{s}_{k}" for s in ("train", "validation", "test") for k in ("loss", "metric")}
    position = {"optimizer", "seed", "settings", "epoch", "update", "seconds"}
    assert set(row) == figures | position
    assert (row["optimizer"], row["seed"], row["update"]) == ("kfac", 3, 0)
    assert 0 < row["seconds"] < 5
    assert row["settings"]["damping"] > 0


def test_evaluation_is_the_mean_over_the_split_and_changes_nothing(
    tiny: Recipe, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "EVALUATED_AT_ONCE", 70)  # 300 is not a multiple
    model = tiny.network().train()
    loss, accuracy = evaluate(model, tiny.likelihood, tiny.metric, digits.test)
    f = model(digits.test.inputs)
    expected = torch.nn.functional.cross_entropy(f, digits.test.targets).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == pytest.approx(100 * (f.argmax(1) == digits.test.targets).float().mean())
    assert model.training


def test_the_training_curve_may_use_a_part(tiny: Recipe, digits: Splits) -> None:
    one = start(dataclasses.replace(tiny, train_evaluated=100), digits)
    part = evaluate(one.model, tiny.likelihood, tiny.metric, digits.train.first(100))
    assert (one.evaluate()["train_loss"], one.rows[0]["train_metric"]) == part


def test_a_loss_that_is_not_finite_makes_no_step(tiny: Recipe, digits: Splits) -> None:
    one = start(tiny, digits)
    with torch.no_grad():
        next(one.model.parameters()).fill_(math.nan)
    assert not math.isfinite(one.step())
    assert one.update == 0


@pytest.mark.parametrize(("epochs", "seconds"), [(None, None), (1, 1), (0, None), (None, -1.0)])
def test_a_budget_is_one_positive_number(epochs: float | None, seconds: float | None) -> None:
    with pytest.raises(UsageError, match="budget"):
        Budget(epochs, seconds)


def test_budgets() -> None:
    assert Budget(epochs=4).used(3, 100) == 0.75
    assert Budget(seconds=4).used(3, 1) == 0.25
    assert Budget(seconds=4).share(0.5) == Budget(seconds=2)
    assert Budget(epochs=4).share(0.5) == Budget(epochs=2)
    assert (str(Budget(epochs=4)), str(Budget(seconds=2.5))) == ("4 epochs", "2.5 seconds")
    assert str(Budget(epochs=1)) == "1 epoch"


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "kfac"])
def test_a_linear_schedule_ends_at_zero(tiny: Recipe, digits: Splits, optimizer: str) -> None:
    recipe = dataclasses.replace(tiny, schedule="linear")
    one = start(recipe, digits, optimizer, budget=Budget(epochs=0.5), settings={"lr": 0.02})
    rates = []
    while one.used < 1:
        one.step()
        assert len({group["lr"] for group in one.optimizer.param_groups}) == 1
        rates.append(one.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.02 * (1 - k / 12) for k in range(12)])
    again = start(recipe, digits, optimizer, budget=Budget(epochs=0.5), settings={"lr": 0.02})
    for _ in range(5):
        again.step()
    state = again.state_dict()
    resumed = start(recipe, digits, optimizer, budget=Budget(epochs=0.5), settings={"lr": 0.02})
    resumed.load_state_dict(state)
    while resumed.used < 1:
        resumed.step()
    for p, q in zip(one.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_is_judged_is_the_average_where_one_is_kept(tiny: Recipe, digits: Splits) -> None:
    given = {"average": 0.9, "per": "output"}
    one = start(tiny, digits, "kfac_auto", settings=given)
    last = start(tiny, digits, "kfac_auto", settings={**given, "average": 0.0})
    for _ in range(4):
        one.step()
        last.step()
    assert all(map(torch.equal, one.model.parameters(), last.model.parameters()))
    assert len(one.optimizer.param_groups) == 2
    assert one.evaluate()["train_loss"] != last.evaluate()["train_loss"]
    with one.averaged():
        assert one.evaluate()["train_loss"] == one.rows[0]["train_loss"]
