"""Checkpoints of all five optimizers: bit-exact resuming, other precision, other optimizers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.damping import Constant, LayerDamping, TraceRestricted
from tests.brute_force import METHODS, cnn
from tests.networks import mlp, normal
from tests.test_optim_state import same, through_a_file

every_method = pytest.mark.parametrize("method", METHODS)


class ByLayer:
    """A rule over all layers that damps eigenvalues only."""

    def ridge(self, trace: Tensor, dim: int) -> Tensor:
        return trace / dim

    def across(self, layers):
        total = torch.stack([layer.trace for layer in layers]).sum()
        return [LayerDamping(0.1 * total / layer.dim, 0.9) for layer in layers]


SETTINGS = {
    "empirical": {"likelihood": None},
    "rarely": {
        "likelihood": Categorical(), "seed": 3, "stats_every": 2, "refresh_every": 4,
        "kl_clip": 1e-2,
    },
    "theta": {
        "likelihood": Categorical(), "damping": TraceRestricted(1e-3, "theta"),
        "stats_every": 1, "refresh_every": 4,
    },
    "paper": {
        "likelihood": None, "damping": TraceRestricted(1e-3, "paper"), "stats_every": 2,
        "refresh_every": 3,
    },
    "by layer": {"likelihood": Categorical(), "damping": ByLayer(), "refresh_every": 4},
    "fused": {
        "likelihood": Categorical(), "fused": True, "stats_every": 2, "refresh_every": 4,
        "kl_clip": 1e-2,
    },
}  # fmt: skip
COMBINATIONS = [
    (method, name)
    for name in SETTINGS
    for method in METHODS
    if not (name == "fused" and method == "ExactNGD")
]
every_setting = pytest.mark.parametrize(("method", "name"), COMBINATIONS)


def normed() -> nn.Sequential:
    """A convolution, a norm layer, and a linear head."""
    net = cnn()
    return nn.Sequential(*net[:2], nn.GroupNorm(2, 4).double(), *net[2:])


def make(method: str, name: str, **kwargs):
    net = normed()
    kwargs = {"lr": 0.1, "damping": 0.01, "weight_decay": 0.01, **SETTINGS[name], **kwargs}
    return net, getattr(natgrad, method)(net, **kwargs)


def backward(net: nn.Module, k: int) -> None:
    weight = next(net.parameters())
    x = normal(8, *((2, 5, 5) if weight.ndim == 4 else (4,)), seed=k).to(weight.dtype)
    F.cross_entropy(net(x), x.flatten(1)[:, :3].argmax(1)).backward()


def train(net: nn.Module, opt: torch.optim.Optimizer, steps: range) -> None:
    for k in steps:
        opt.zero_grad()
        backward(net, k)
        opt.step()


@every_setting
@pytest.mark.parametrize("steps", [3])
def test_training_resumes_bit_for_bit(method, name, steps):
    net, opt = make(method, name)
    train(net, opt, range(steps))
    saved = through_a_file({"net": net.state_dict(), "opt": opt.state_dict()})
    resumed, other = make(method, name)
    train(resumed, other, range(10, 12))
    resumed.load_state_dict(saved["net"])
    other.load_state_dict(saved["opt"])
    assert same(other.state_dict(), opt.state_dict())
    train(net, opt, range(steps, steps + 5))
    train(resumed, other, range(steps, steps + 5))
    assert same(resumed.state_dict(), net.state_dict())
    assert same(other.state_dict(), opt.state_dict())
    assert other.stats() == pytest.approx(opt.stats(), nan_ok=True)


@every_setting
@pytest.mark.parametrize("steps", [0, 5])
def test_training_resumes_bit_for_bit_in_the_middle_of_an_accumulation(method, name, steps):
    net, opt = make(method, name)
    train(net, opt, range(steps))
    opt.zero_grad()
    backward(net, 20)
    saved = through_a_file({"net": net.state_dict(), "opt": opt.state_dict()})
    resumed, other = make(method, name)
    resumed.load_state_dict(saved["net"])
    other.load_state_dict(saved["opt"])
    for p, q in zip(net.parameters(), resumed.parameters(), strict=True):
        q.grad = p.grad.clone()
    for model, optimizer in ((net, opt), (resumed, other)):
        backward(model, 21)
        optimizer.step()
        train(model, optimizer, range(22, 26))
    assert same(resumed.state_dict(), net.state_dict())
    assert same(other.state_dict(), opt.state_dict())


@every_method
@pytest.mark.parametrize(
    ("before", "after"), [(torch.float64, torch.float32), (torch.float32, torch.float64)]
)
@pytest.mark.parametrize("waiting", [False, True])
def test_a_checkpoint_goes_on_in_another_precision(method, before, after, waiting):
    nets, opts = [], []
    for dtype in (before, after):
        nets.append(mlp(4, 5, 3).to(dtype))
        opts.append(
            getattr(natgrad, method)(
                nets[-1],
                lr=0.1,
                damping=0.1,
                likelihood=Categorical(),
                fisher="exact",
                stats_every=2,
            )
        )
    train(nets[0], opts[0], range(3 if not waiting else 2))
    if waiting:
        opts[0].zero_grad()
        backward(nets[0], 7)
    nets[1].load_state_dict(nets[0].state_dict())
    opts[1].load_state_dict(through_a_file(opts[0].state_dict()))
    if waiting:
        for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            q.grad = p.grad.to(after)
        opts[0].step()
        opts[1].step()
    for tensor in tensors(opts[1].state_dict()["preconditioner"]["curvature"]):
        assert tensor.dtype in (after, torch.bool)
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, range(3, 7))
    assert all(p.dtype == p.grad.dtype == after for p in nets[1].parameters())
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(p.double(), q.double(), rtol=1e-3, atol=1e-4)


def tensors(tree) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, (dict, list, tuple)):
        parts = tree.values() if isinstance(tree, dict) else tree
        return [found for part in parts for found in tensors(part)]
    return []


@every_method
@pytest.mark.parametrize(
    "kind",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_a_checkpoint_of_a_plain_optimizer_loads_with_a_warning_and_training_goes_on(method, kind):
    net = mlp(4, 5, 3)
    plain = kind(net.parameters())
    train(net, plain, range(3))
    opt = getattr(natgrad, method)(net, lr=0.1, likelihood=Categorical())
    with pytest.warns(UserWarning, match="no curvature statistics"):
        opt.load_state_dict(through_a_file(plain.state_dict()))
    before = [p.detach().clone() for p in net.parameters()]
    train(net, opt, range(3, 6))
    for p, start in zip(net.parameters(), before, strict=True):
        assert bool(torch.isfinite(p).all())
        assert not torch.equal(p, start)
    again = getattr(natgrad, method)(net, lr=0.1, likelihood=Categorical())
    again.load_state_dict(through_a_file(opt.state_dict()))


def unfrozen_later(method: str, **kwargs):
    net = mlp(4, 5, 3)
    net[0].requires_grad_(False)
    return net, getattr(natgrad, method)(net, lr=0.05, likelihood=Categorical(), **kwargs)


@every_method
@pytest.mark.parametrize("kwargs", [{}, {"stats_every": 3, "refresh_every": 3}], ids=str)
def test_what_is_known_of_a_layer_waits_until_it_is_trained(method, kwargs):
    """Saved after unfreezing, loaded before."""
    net, opt = unfrozen_later(method, **kwargs)
    train(net, opt, range(2))
    net[0].requires_grad_(True)
    train(net, opt, range(2, 5))
    saved = through_a_file({"net": net.state_dict(), "opt": opt.state_dict()})
    resumed, other = unfrozen_later(method, **kwargs)
    resumed.load_state_dict(saved["net"])
    other.load_state_dict(saved["opt"])
    kept = through_a_file(other.state_dict())["preconditioner"]["curvature"]
    assert same(kept, saved["opt"]["preconditioner"]["curvature"])
    resumed[0].requires_grad_(True)
    for model, optimizer in ((net, opt), (resumed, other)):
        train(model, optimizer, range(5, 9))
    assert same(resumed.state_dict(), net.state_dict())


@every_method
def test_a_layer_new_between_statistics_stays_plain_and_the_others_do_not(method):
    net, opt = unfrozen_later(method, stats_every=3, refresh_every=3)
    train(net, opt, range(1))
    net[0].requires_grad_(True)
    opt.zero_grad()
    backward(net, 1)
    plain = [p.grad.clone() for p in net.parameters()]
    opt.step()
    moved = [not torch.allclose(p.grad, g) for p, g in zip(net.parameters(), plain, strict=True)]
    assert moved == [False, False, True, True]
    train(net, opt, range(2, 4))
    opt.zero_grad()
    backward(net, 9)
    plain = [p.grad.clone() for p in net.parameters()]
    opt.step()
    assert all(not torch.allclose(p.grad, g) for p, g in zip(net.parameters(), plain, strict=True))


def test_precision_of_the_damping_is_that_of_the_block():
    """What a rule over all layers decided is kept with the checkpoint, in the block's precision."""
    nets = [mlp(4, 5, 3).to(dtype) for dtype in (torch.float64, torch.float32)]
    opts = [
        natgrad.KFAC(net, lr=0.1, likelihood=Categorical(), damping=ByLayer(), refresh_every=9)
        for net in nets
    ]
    train(nets[0], opts[0], range(2))
    opts[1].load_state_dict(through_a_file(opts[0].state_dict()))
    given = [[layer.block.damping.value for layer in opt.preconditioner.layers] for opt in opts]
    assert [value.dtype for value in given[1]] == [torch.float32] * 2
    assert torch.allclose(torch.stack(given[0]).float(), torch.stack(given[1]))
    assert not isinstance(opts[1].preconditioner.layers[0].block.damping, Constant)
