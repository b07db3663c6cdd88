import pytest
import torch

from natgrad.lab.bench.intervals import SHORT, Interval, Rhythm
from natgrad.lab.bench.measuring import Conditions, measure
from natgrad.lab.bench.method import Method
from natgrad.lab.bench.methods import METHODS, method
from natgrad.lab.bench.results import Row
from natgrad.lab.bench.tasks import Task
from natgrad.lab.bench.turns import start, take_turns
from natgrad.lab.errors import UsageError
from tests.lab.bench.conftest import COSTS, FakeClock


def silent(done: int, of: int, what: str) -> None:
    pass


def test_every_kind_of_step_is_timed_and_the_first_period_dropped(small: Task) -> None:
    names = ("sgd", "kfac", "kfac_fused", "ekfac", "prong", "sngd_compensated")
    records = take_turns(small, [method(name) for name in names], SHORT, 18, skip=6)
    counts = [{k: len(v) for k, v in record.seconds.items()} for record in records]
    assert [record.problem for record in records] == [None] * len(names)
    assert counts[0] == {"plain": 12}
    assert counts[1] == counts[2] == counts[3] == {"refresh": 2, "statistics": 4, "plain": 6}
    assert counts[4] == counts[5] == {"refresh": 2, "plain": 10}


def test_methods_begin_at_the_same_weights_and_see_the_same_batches(small: Task) -> None:
    x, y = small.batches()[0]
    losses = [start(small, method(name), SHORT, "cpu")(x, y) for name in ("sgd", "adamw", "tekfac")]
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(small.batches()[3][0], small.batches()[3][0])
    assert not torch.equal(small.batches()[0][0], small.batches()[1][0])


def test_a_method_that_fails_has_a_row_that_says_why(small: Task, broken: tuple[str, ...]) -> None:
    how = Conditions(broken, (Interval(1, 1),))
    result = measure(small, how, silent)
    problems = {row.name: row.problem for row in result.rows}
    assert problems == {
        "sgd": None,
        "missing": "the package no_such_package is not installed: pip install no-such-package",
        "crashing": "RuntimeError: it can't do this",
        "diverging": "the loss is nan",
    }
    assert result.complete
    assert [row.ratio(Interval(1, 1)) for row in result.rows] == [1.0, None, None, None]


def test_a_run_of_the_schedule_itself_costs_what_is_amortised(
    small: Task, clock: FakeClock
) -> None:
    interval, rhythm = Interval(10, 100), Rhythm("both")
    plain = Method("sgd", clock.costing(Rhythm(), COSTS))
    both = Method("both", clock.costing(rhythm, COSTS), rhythm)
    short = take_turns(small, [plain, both], SHORT, 12, skip=6, clock=clock)
    row = Row(short[1], short[0])
    long = take_turns(small, [plain, both], interval, 101, skip=1, clock=clock)
    times = [[s for found in record.seconds.values() for s in found] for record in long]
    row.direct[interval] = times[1], times[0]
    assert row.ratio(interval) == pytest.approx(1.67)
    assert row.direct_ratio(interval) == pytest.approx(1.67)


def test_where_memory_is_short_methods_take_turns_in_parts_with_sgd(small: Task) -> None:
    how = Conditions(("kfac", "sgd", "adamw", "tkfac"), (Interval(1, 1),), together=2)
    result = measure(small, how, silent)
    assert [row.name for row in result.rows] == ["sgd", "kfac", "adamw", "tkfac"]
    baselines = {id(row.baseline) for row in result.rows}
    assert len(baselines) == 3
    assert all(row.ratio(Interval(1, 1)) is not None for row in result.rows)


def test_what_was_measured_before_a_stop_is_kept(small: Task) -> None:
    asked = iter(range(1000))
    how = Conditions(("kfac",), (Interval(1, 1),), direct=5, memory=True)
    result = measure(small, how, silent, stop=lambda: next(asked) > 18)
    assert not result.complete
    assert [row.name for row in result.rows] == ["sgd", "kfac"]
    assert result.rows[0].times()
    assert all(not row.memory for row in result.rows)


def test_settings_follow_a_name() -> None:
    found = method("kfac:damping=0.5:fused=True:fisher=exact")
    assert found.options == {"damping": 0.5, "fused": True, "fisher": "exact"}
    assert found.name == "kfac:damping=0.5:fused=True:fisher=exact"
    assert method("kfac_pytorch_eigen").options == {"method": "eigen"}
    with pytest.raises(UsageError, match='did you mean "kfac"'):
        method("kfacc:damping=1")
    with pytest.raises(UsageError, match='as :key=value, got "damping"'):
        method("kfac:damping")


def test_every_optimizer_of_ours_is_there() -> None:
    ours = {name for name, found in METHODS.items() if found.ours}
    assert {"kfac", "ekfac", "tkfac", "tekfac", "prong", "prongplus", "sngd"} <= ours


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("soap", "pytorch_optimizer"),
        ("shampoo", "pytorch_optimizer"),
        ("kfac_pytorch", "kfac"),
        ("kfac_pytorch_eigen", "kfac"),
        ("asdl", "asdl"),
        ("singd", "singd"),
    ],
)
def test_peers_that_are_installed_run(name: str, module: str, small: Task) -> None:
    pytest.importorskip(module)
    (record,) = take_turns(small, [method(name)], SHORT, 7, skip=0)
    assert record.problem is None
    assert {"plain", "refresh"} <= record.seconds.keys()
