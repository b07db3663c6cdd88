import io

import pytest
import torch
from torch import nn

from natgrad import Categorical
from natgrad.lab.errors import UsageError
from natgrad.lab.networks import mlp
from natgrad.lab.optimizers import Joint, Task, build, complete, first_order, parse
from natgrad.lab.optimizers.muon import FullMuon, orthogonalised

from .conftest import buildable


def task() -> Task:
    torch.manual_seed(0)
    return Task(mlp((5, 8, 8, 3)), Categorical())


def steps(one: Task, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for k in range(first, last):
        random = torch.Generator().manual_seed(k)
        x = torch.randn(16, 5, generator=random)
        y = torch.randint(0, 3, (16,), generator=random)

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = one.likelihood.nll(one.model(x), y).mean()
            torch.autograd.backward(loss)
            return loss.detach()

        optimizer.step(closure)


@pytest.mark.parametrize("name", buildable())
def test_state_round_trip_goes_on_bit_exactly(name: str) -> None:
    whole, broken = task(), task()
    steps(whole, build(name, whole, {}), 0, 13)
    before = build(name, broken, {})
    steps(broken, before, 0, 7)
    file = io.BytesIO()
    torch.save({"model": broken.model.state_dict(), "optimizer": before.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh = task()
    after = build(name, fresh, {})  # may rewrite the model
    fresh.model.load_state_dict(state["model"])
    after.load_state_dict(state["optimizer"])
    steps(fresh, after, 7, 13)
    for p, q in zip(whole.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_muon_takes_hidden_matrices_and_leaves_the_rest_to_adamw() -> None:
    one = task()
    joint = build("muon", one, {})
    assert isinstance(joint, Joint)
    muon, rest = joint.members
    layers = [layer for layer in one.model if isinstance(layer, nn.Linear)]
    hidden = {id(layer.weight) for layer in layers[:-1]}
    assert {id(p) for group in muon.param_groups for p in group["params"]} == hidden
    others = {id(p) for p in one.model.parameters()} - hidden
    assert {id(p) for group in rest.param_groups for p in group["params"]} == others


def test_muon_leaves_embeddings_to_adamw() -> None:
    net = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 4), nn.Linear(4, 3))
    joint = build("muon", Task(net, Categorical()), {})
    assert isinstance(joint, Joint)
    assert [p.shape for p in joint.members[0].param_groups[0]["params"]] == [(4, 5)]


def test_muon_needs_something_to_do() -> None:
    with pytest.raises(UsageError, match="hidden weight matrix"):
        build("muon", Task(mlp((5, 3)), Categorical()), {})


def test_muon_in_full_takes_the_steps_of_muon() -> None:
    ends = []
    for method in (torch.optim.Muon, FullMuon):
        torch.manual_seed(0)
        matrices = [nn.Parameter(torch.randn(shape)) for shape in ((6, 9), (9, 6))]
        start = [p.detach().clone() for p in matrices]
        optimizer = method(matrices, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            for p in matrices:
                p.grad = torch.randn(p.shape)
            optimizer.step()
        ends.append([p.detach() - q for p, q in zip(matrices, start, strict=True)])
    for mine, theirs in zip(ends[1], ends[0], strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 0.02  # theirs is in bfloat16


def test_newton_and_schulz_bring_singular_values_near_one() -> None:
    torch.manual_seed(0)
    found = orthogonalised(torch.randn(5, 12), (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(found)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


@pytest.mark.parametrize("native", [True, False])
def test_muon_is_torchs_where_bfloat16_is_multiplied_as_such(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_order, "natively", lambda dtype: native)
    joint = build("muon", task(), {})
    assert isinstance(joint, Joint)
    assert isinstance(joint.members[0], FullMuon) != native


def test_a_schedule_reaches_every_member_also_after_loading() -> None:
    one = task()
    joint = build("muon", one, {"lr": 1.0})
    assert isinstance(joint, Joint)
    joint.load_state_dict(joint.state_dict())
    for group in joint.param_groups:
        group["lr"] = 0.5
    assert [g["lr"] for member in joint.members for g in member.param_groups] == [0.5, 0.5]


def test_a_joint_step_runs_the_closure_once() -> None:
    one = task()
    calls = []

    def closure() -> torch.Tensor:
        calls.append(1)
        return one.model(torch.ones(1, 5)).sum()

    steps(one, build("muon", one, {}), 0, 1)
    assert build("muon", one, {}).step(closure) is not None
    assert calls == [1]


def test_settings_are_completed_with_defaults() -> None:
    assert complete("sgd", {"lr": 0.5}) == {"lr": 0.5, "momentum": 0.9}


def test_parse_reads_each_value_as_its_defaults_type() -> None:
    assert parse("kfac", ["lr=1", "stats_every=3"]) == {"lr": 1.0, "stats_every": 3}
    assert isinstance(parse("kfac", ["lr=1"])["lr"], float)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lr", "key=value"),
        ("lr=", "key=value"),
        ("lr=fast", 'lr takes a number, got "fast"'),
        ("stats_every=1.5", "a whole number"),
        ("dampin=1", 'did you mean "damping"'),
    ],
)
def test_a_bad_assignment_is_explained(given: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse("kfac", [given])


def test_an_unknown_optimizer_is_answered_with_the_names() -> None:
    with pytest.raises(UsageError, match='no optimizer "adamm"; did you mean "adam') as caught:
        build("adamm", task(), {})
    assert "kfac" in str(caught.value)


def test_a_refused_value_names_the_optimizer() -> None:
    with pytest.raises(UsageError, match="kfac: lr must be"):
        build("kfac", task(), {"lr": -1.0})


def test_the_settings_of_sngd_reach_its_rule() -> None:
    task = Task(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), Categorical())
    name = "sngd[average=1,decay=0.8,iterations=5,per_unit=1,every=7]"
    rule = build(name, task, {"eps": 0.5}).whitener.rule  # type: ignore[attr-defined]
    assert (rule.average, rule.decay, rule.iterations, rule.per_unit) == (True, 0.8, 5, True)
    assert (rule.every, rule.eps, rule.method) == (7, 0.5, "newton-schulz")
    plain = build("sngd[method=eigh]", Task(nn.Sequential(nn.Linear(4, 3)), Categorical()), {})
    rule = plain.whitener.rule  # type: ignore[attr-defined]
    assert (rule.average, rule.iterations, rule.method) == (False, None, "eigh")
