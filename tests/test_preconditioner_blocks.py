"""Every block behind the preconditioner: one step, a run, a resume in the middle of a step."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import natgrad
from natgrad import Categorical, Preconditioner, blocks
from natgrad.damping import Constant
from tests.networks import mlp, normal, relative

BLOCKS = {
    "kfac": blocks.KFAC,
    "tkfac": blocks.TKFAC,
    "ekfac": blocks.EKFAC,
    "tekfac": blocks.TEKFAC,
    "diagonal": blocks.Diagonal,
    "block": blocks.Exact,
}
every_block = pytest.mark.parametrize("name", BLOCKS)


def data(k: int = 0, n: int = 12) -> tuple[Tensor, Tensor]:
    x = normal(n, 3, 5, seed=k)
    return x, x[..., :3].argmax(-1)


def loss_of(net: nn.Module, k: int = 0) -> Tensor:
    x, y = data(k)
    return F.cross_entropy(net(x).flatten(0, 1), y.flatten())


def make(name: str, **kwargs) -> tuple[nn.Module, Preconditioner]:
    net = mlp(5, 6, 3)
    kwargs = {"damping": Constant(0.05), "likelihood": Categorical(), **kwargs}
    return net, Preconditioner(net, block=BLOCKS[name], **kwargs)


def step(net: nn.Module, pre: Preconditioner, k: int) -> None:
    net.zero_grad()
    loss_of(net, k).backward()
    finish(net, pre)


def finish(net: nn.Module, pre: Preconditioner) -> None:
    if pre.step():
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad


@every_block
def test_one_step_with_the_exact_fisher_solves_with_the_fisher_matrix(name):
    net, pre = make(name, fisher="exact")
    loss_of(net).backward()
    gradient = parameters_to_vector([p.grad for p in net.parameters()])
    matrix = natgrad.fisher(net, data()[0], Categorical(), structure=name)
    assert pre.step()
    found = parameters_to_vector([p.grad for p in net.parameters()])
    assert relative(found, matrix.solve(gradient, damping=0.05)) < 1e-10
    assert relative(found, gradient) > 0.1


@every_block
def test_a_run_learns_with_statistics_and_bases_now_and_then(name):
    net, pre = make(name, stats_every=2, refresh_every=6)
    first = loss_of(net).item()
    for k in range(40):
        step(net, pre, k % 4)
    assert loss_of(net).item() < 0.8 * first


@every_block
@pytest.mark.parametrize("steps", [4, 5, 6])  # before a refresh, between statistics, and so on
def test_a_checkpoint_between_backward_and_step_resumes_bit_exactly(name, steps):
    net, pre = make(name, stats_every=2, refresh_every=4)
    for k in range(steps):
        step(net, pre, k)
    net.zero_grad()
    (loss_of(net, steps) / 2).backward()
    file = io.BytesIO()
    grads = [p.grad for p in net.parameters()]
    torch.save({"net": net.state_dict(), "pre": pre.state_dict(), "grads": grads}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin, other = make(name, stats_every=2, refresh_every=4)
    twin.load_state_dict(saved["net"])
    other.load_state_dict(saved["pre"])
    for p, grad in zip(twin.parameters(), saved["grads"], strict=True):
        p.grad = grad
    for model, preconditioner in ((net, pre), (twin, other)):
        (loss_of(model, steps + 1) / 2).backward()
        finish(model, preconditioner)
        for k in range(6):
            step(model, preconditioner, k)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


@every_block
def test_two_micro_batches_are_one_batch(name):
    (net, pre), (twin, other) = (make(name, fisher="exact") for _ in range(2))
    x, y = data()
    for part in (slice(0, 4), slice(4, 12)):
        share = len(x[part]) / len(x)
        (share * F.cross_entropy(net(x[part]).flatten(0, 1), y[part].flatten())).backward()
    F.cross_entropy(twin(x).flatten(0, 1), y.flatten()).backward()
    pre.step()
    other.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert relative(p.grad, q.grad) < 1e-9


@every_block
def test_fused_gradients_are_the_usual_ones(name):
    runs = []
    for fused in (False, True):
        net, pre = make(name, stats_every=2, refresh_every=4, fused=fused)
        for k in range(8):
            step(net, pre, k)
        runs.append(parameters_to_vector(net.parameters()))
    assert relative(runs[1], runs[0]) < 1e-10


def test_factors_that_are_decomposed_in_parts_give_the_same_steps(monkeypatch):
    nets = []
    for bytes_at_once in (2**27, 300, 1):
        monkeypatch.setattr("natgrad.curvature.renewal.DECOMPOSED_BYTES", bytes_at_once)
        torch.manual_seed(0)
        net = mlp(4, 6, 6, 6, 3)
        opt = natgrad.EKFAC(net, lr=0.05, damping=0.1, likelihood=natgrad.Categorical())
        for k in range(3):
            opt.zero_grad()
            x = normal(9, 4, seed=k)
            F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
            opt.step()
        nets.append(net)
    for p, *others in zip(*(net.parameters() for net in nets), strict=True):
        assert all(relative(p, q) < 1e-9 for q in others)
