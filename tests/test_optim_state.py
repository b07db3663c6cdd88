"""The optimizers: saving, resuming, and steps that must not happen."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.damping import Constant
from tests.networks import mlp, normal

SETTINGS = {
    "sampled": {"likelihood": Categorical(), "seed": 3},
    "exact": {"likelihood": Categorical(), "fisher": "exact"},
    "empirical": {"likelihood": None},
    "eigenbases": {"likelihood": Categorical(), "damping": Constant(0.01)},
    "rarely": {"likelihood": Categorical(), "stats_every": 2, "refresh_every": 4},
}


def make(name: str, seed: int = 0) -> tuple[nn.Module, natgrad.KFAC]:
    net = mlp(4, 6, 3, seed=seed)
    return net, natgrad.KFAC(net, lr=0.1, weight_decay=0.01, **SETTINGS[name])


def backward(net: nn.Module, k: int) -> None:
    x = normal(8, 4, seed=k)
    F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()


def train(net: nn.Module, opt: torch.optim.Optimizer, steps: range) -> None:
    for k in steps:
        opt.zero_grad()
        backward(net, k)
        opt.step()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def flat(tree, prefix: str = "") -> dict[str, object]:
    """All leaves of nested dictionaries and lists, by path."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    return {k: v for key, sub in items for k, v in flat(sub, f"{prefix}/{key}").items()}


def same(one, other) -> bool:
    """Whether two nested states are equal bit for bit."""
    one, other = flat(one), flat(other)
    return one.keys() == other.keys() and all(
        torch.equal(v, other[k]) if isinstance(v, Tensor) else v == other[k] for k, v in one.items()
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("steps", [0, 1, 3, 4])
def test_training_resumes_bit_for_bit(name, steps):
    net, opt = make(name)
    train(net, opt, range(steps))
    saved = through_a_file({"net": net.state_dict(), "opt": opt.state_dict()})
    resumed, other = make(name, seed=1)
    train(resumed, other, range(10, 13))
    resumed.load_state_dict(saved["net"])
    other.load_state_dict(saved["opt"])
    assert same(other.state_dict(), opt.state_dict())
    train(net, opt, range(steps, steps + 6))
    train(resumed, other, range(steps, steps + 6))
    assert same(resumed.state_dict(), net.state_dict())
    assert same(other.state_dict(), opt.state_dict())


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("steps", [0, 4])
def test_training_resumes_bit_for_bit_in_the_middle_of_an_accumulation(name, steps):
    net, opt = make(name)
    train(net, opt, range(steps))
    opt.zero_grad()
    backward(net, 20)
    saved = through_a_file({"net": net.state_dict(), "opt": opt.state_dict()})
    resumed, other = make(name, seed=1)
    resumed.load_state_dict(saved["net"])
    other.load_state_dict(saved["opt"])
    for p, q in zip(net.parameters(), resumed.parameters(), strict=True):
        q.grad = p.grad.clone()  # gradients are the user's to keep
    for model, optimizer in ((net, opt), (resumed, other)):
        backward(model, 21)
        optimizer.step()
        train(model, optimizer, range(22, 25))
    assert same(resumed.state_dict(), net.state_dict())
    assert same(other.state_dict(), opt.state_dict())


def test_what_waited_before_loading_does_not_survive_it():
    net, opt = make("exact")
    train(net, opt, range(2))
    saved = copy.deepcopy(opt.state_dict())
    opt.zero_grad()
    backward(net, 5)
    opt.load_state_dict(saved)
    assert same(opt.state_dict(), saved)


def test_a_checkpoint_of_plain_sgd_loads_with_a_warning_and_keeps_its_momentum():
    net = mlp(4, 6, 3)
    sgd = torch.optim.SGD(net.parameters(), lr=0.25, momentum=0.9)
    train(net, sgd, range(3))
    opt = natgrad.KFAC(net, lr=0.1, likelihood=Categorical())
    with pytest.warns(UserWarning, match="no curvature statistics"):
        opt.load_state_dict(through_a_file(sgd.state_dict()))
    for p in net.parameters():
        assert torch.equal(opt.state[p]["momentum_buffer"], sgd.state[p]["momentum_buffer"])
    assert opt.param_groups[0]["lr"] == 0.25
    train(net, opt, range(3, 5))


def test_a_checkpoint_of_another_model_is_refused():
    _, opt = make("exact")
    other = natgrad.KFAC(mlp(4, 5, 3), lr=0.1, likelihood=Categorical())
    with pytest.raises(RuntimeError, match=r"'0.weight' is \[6, 4\] there, \[5, 4\] here"):
        other.preconditioner.load_state_dict(opt.preconditioner.state_dict())


@pytest.mark.parametrize("name", ["exact", "empirical", "rarely"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_skipped_whole(name, bad):
    net, opt = make(name)
    train(net, opt, range(3))
    before = copy.deepcopy({"net": net.state_dict(), "opt": opt.state_dict()})
    opt.zero_grad()
    (bad * net(normal(8, 4)).square().sum()).backward()
    opt.step()
    after = {"net": net.state_dict(), "opt": opt.state_dict()}
    assert after["opt"]["preconditioner"].pop("skipped") == 1
    assert before["opt"]["preconditioner"].pop("skipped") == 0
    assert same(after, before)
    train(net, opt, range(3, 6))
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_a_skipped_step_leaves_no_trace_in_the_steps_that_follow():
    (net, opt), (twin, other) = make("exact"), make("exact")
    train(net, opt, range(2))
    opt.zero_grad()
    (net(normal(8, 4)).sum() * float("nan")).backward()
    opt.step()
    train(net, opt, range(2, 4))
    train(twin, other, range(4))
    assert same(net.state_dict(), twin.state_dict())


@pytest.mark.parametrize("bad", ["inputs", "loss"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_with_a_bad_batch_goes_on_as_if_it_had_not_been(name, bad):
    (net, opt), (twin, other) = make(name), make(name)
    train(net, opt, range(3))
    train(twin, other, range(3))
    opt.zero_grad()
    x = normal(8, 4) * (float("nan") if bad == "inputs" else 1.0)
    (net(x).logsumexp(1).sum() * float("nan")).backward()
    opt.step()
    assert opt.preconditioner.skipped == 1
    train(net, opt, range(3, 6))
    train(twin, other, range(3, 6))
    assert same(net.state_dict(), twin.state_dict())


def test_statistics_of_a_backward_whose_gradients_were_dropped_are_dropped_too():
    (net, opt), (twin, other) = make("exact"), make("exact")
    backward(net, 7)
    train(net, opt, range(2))  # zeroes the gradients first
    train(twin, other, range(2))
    assert same(net.state_dict(), twin.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1}, "lr must be >= 0, got -1"),
        ({"lr": float("nan")}, "lr must be >= 0"),
        ({"momentum": -0.1}, "momentum must be >= 0"),
        ({"weight_decay": -1}, "weight_decay must be >= 0"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov needs momentum"),
        ({"damping": -1e-3}, "damping must be a finite number >= 0, got -0.001"),
        ({"damping": float("nan")}, "damping must be a finite number"),
        ({"fisher": "mc"}, "fisher must be 'sampled' or 'exact', got 'mc'"),
        ({"reduction": "none"}, "reduction must be 'mean' or 'sum', got 'none'"),
        ({"shared": "conv"}, "shared must be 'expand' or 'reduce', got 'conv'"),
        ({"stats_every": 0}, "stats_every must be at least 1, got 0"),
        ({"refresh_every": 0}, "refresh_every must be at least 1, got 0"),
        ({"decay": 1.5}, r"decay must be in \[0, 1\], got 1.5"),
        ({"kl_clip": 0.0}, "kl_clip must be positive or None, got 0.0"),
    ],
)
def test_an_argument_out_of_range_is_refused_with_its_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        natgrad.KFAC(mlp(4, 3), **{"lr": 0.1, **arguments})


def test_parameters_in_place_of_the_model_are_refused():
    with pytest.raises(TypeError, match="take the model, not its parameters; got list"):
        natgrad.KFAC(list(mlp(4, 3).parameters()), lr=0.1)


def test_a_damping_without_a_rule_is_refused():
    with pytest.raises(TypeError, match=r"number or an object with ridges.*got str"):
        natgrad.KFAC(mlp(4, 3), lr=0.1, damping="strong")
