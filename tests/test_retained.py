"""Rows kept until the step give the natural gradient of what stands in ``.grad``, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical, flops
from natgrad.retained import RetainedRows
from tests.networks import mlp, normal, relative

METHODS = {
    "kfac": natgrad.KFAC,
    "tkfac": natgrad.TKFAC,
    "ekfac": natgrad.EKFAC,
    "tekfac": natgrad.TEKFAC,
}
N = 2  # few rows, for each of the
LAYERS = {"0", "2", "4"}


def batch(k: int = 0, n: int = N) -> tuple[Tensor, Tensor]:
    x = normal(n, 4, seed=k)
    return x, x[:, :3].argmax(1)


def loss_of(net: nn.Module, k: int = 0) -> Tensor:
    x, y = batch(k)
    return F.cross_entropy(net(x), y)


def solved_from_rows(opt: natgrad.KFAC) -> set[str]:
    """The layers whose rows would be used if the step came now."""
    pre = opt.preconditioner
    assert pre.listening.retained is not None
    return {pre.views[k].name for k, true in pre.listening.claims().items() if bool(true)}


def made(method: str = "kfac", net: nn.Module | None = None, **kwargs) -> tuple:
    net = mlp(4, 9, 8, 3) if net is None else net
    opt = METHODS[method](net, lr=0.05, damping=0.1, likelihood=Categorical(), **kwargs)
    return net, opt


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widest", [None, 5])
def test_rows_are_solved_as_the_gradient_is(method, bias, widest):
    net = mlp(4, 9, 8, 3, bias=bias)
    net, opt = made(method, net, stats_every=2, refresh_every=4, widest=widest)
    pre, used = opt.preconditioner, 0
    for k in range(9):
        opt.zero_grad()
        loss_of(net, k).backward()
        claims = pre.listening.claims()
        pre.listening.settle(claims)
        for index, true in claims.items():
            layer, explained = pre.layers[index], pre.listening.explained(index)
            if layer.block.is_ready and true:
                assert torch.equal(explained.M, layer.view.grad())
                usual = layer.block.solve(layer.view.grad())
                assert relative(layer.block.solve_rows(explained.rows), usual) < 1e-11
                used += 1
        opt.step()
    assert used == 8 * 3


@pytest.mark.parametrize("method", ["kfac", "tkfac"])
def test_steps_from_rows_are_the_usual_steps(method, monkeypatch):
    nets = []
    for worthwhile in (0, float("inf")):
        monkeypatch.setattr(flops, "WORTHWHILE", worthwhile)
        net, opt = made(method, stats_every=2, refresh_every=4)
        for k in range(9):
            opt.zero_grad()
            loss_of(net, k).backward()
            assert (solved_from_rows(opt) == LAYERS) == (worthwhile == 0)
            opt.step()
        nets.append(net)
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        assert relative(p, q) < 1e-9


def test_every_layer_with_few_rows_is_solved_from_them():
    net, opt = made()
    loss_of(net).backward()
    assert solved_from_rows(opt) == LAYERS
    opt.step()
    assert solved_from_rows(opt) == set()


def test_many_rows_are_not_kept():
    net, opt = made()
    x, y = batch(n=60)
    F.cross_entropy(net(x), y).backward()
    assert solved_from_rows(opt) == set()


def penalty(net: nn.Module) -> None:
    (loss_of(net) + 1e-6 * net[2].weight.square().sum()).backward()


def penalty_first(net: nn.Module) -> None:
    (1e-6 * net[2].weight.square().sum() + loss_of(net)).backward()


def penalty_of_the_bias(net: nn.Module) -> None:
    (loss_of(net) + 1e-6 * net[2].bias.square().sum()).backward()


def called_twice(net: nn.Module) -> None:
    (loss_of(net) + 1e-6 * net[2](normal(2, 9)).sum()).backward()


def accumulated(net: nn.Module) -> None:
    loss_of(net, 0).backward()
    loss_of(net, 1).backward()


def clipped(net: nn.Module) -> None:
    loss_of(net).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1e-3)


def scaled_behind(net: nn.Module) -> None:
    loss_of(net).backward()
    for p in net.parameters():
        p.grad.data.mul_(1 + 1e-3)


def clamped_behind(net: nn.Module) -> None:
    loss_of(net).backward()
    for p in net.parameters():
        top = p.grad.data.abs().amax()
        p.grad.data.clamp_(-0.9 * top, 0.9 * top)


def replaced(net: nn.Module) -> None:
    loss_of(net).backward()
    for p in net.parameters():
        p.grad = p.grad * 0.5


def noised(net: nn.Module) -> None:
    loss_of(net).backward()
    for p in net.parameters():
        p.grad.add_(1e-7)


def hooked(net: nn.Module) -> None:
    handle = net[2].weight.register_hook(lambda grad: grad * 2)
    loss_of(net).backward()
    handle.remove()


CHANGES = [
    penalty, penalty_first, penalty_of_the_bias, called_twice, accumulated, clipped, scaled_behind,
    clamped_behind, replaced, noised, hooked,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_gradient_that_rows_do_not_explain_is_solved_as_it_stands(
    change: Callable[[nn.Module], None], monkeypatch: pytest.MonkeyPatch
):
    net, opt = made()
    change(net)
    assert "2" not in solved_from_rows(opt)
    opt.step()
    monkeypatch.setattr(flops, "WORTHWHILE", float("inf"))
    twin, other = made()
    change(twin)
    other.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert relative(p, q) < 1e-12


def test_gradients_zeroed_in_place_accumulate_and_are_solved_as_they_stand():
    net, opt = made()
    for k in range(2):
        opt.zero_grad(set_to_none=False)
        loss_of(net, k).backward()
        assert bool(solved_from_rows(opt)) == (k == 0)
        opt.step()


def test_rows_of_a_step_that_was_not_taken_are_dropped():
    net, opt = made()
    loss_of(net).backward()
    opt.zero_grad()
    assert opt.preconditioner.listening.retained._kept == {}


def test_a_copy_keeps_rows_of_its_own_model():
    net, opt = made()
    loss_of(net).backward()
    twin, other = copy.deepcopy((net, opt))
    other.zero_grad()
    loss_of(twin, 1).backward()
    assert solved_from_rows(other) == LAYERS


def test_layers_on_sequences_and_in_autocast_are_left_alone():
    net, opt = made()
    net(normal(1, 2, 4)).sum().backward()
    assert solved_from_rows(opt) == set()
    opt.zero_grad()
    net = mlp(4, 9, 8, 3).float()
    net, opt = made(net=net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(net(batch()[0].float()), batch()[1])
    loss.backward()
    assert solved_from_rows(opt) == set()


def test_a_graph_of_the_gradients_keeps_no_rows():
    net, opt = made()
    with pytest.warns(UserWarning, match="create_graph"):
        loss_of(net).backward(create_graph=True)
    assert solved_from_rows(opt) == set()


def test_rows_that_were_not_asked_for_are_not_held():
    net = mlp(4, 9, 3)
    views, _ = natgrad.layers.views_of(net)
    kept = RetainedRows(views, wanted=lambda index, rows: index == 0, ignored=lambda: False)
    loss_of(net).backward()
    assert set(kept._kept) == {0}


@pytest.mark.parametrize("method", METHODS)
def test_products_of_rows_and_blocks_run_in_the_products_dtype(method):
    found = {}
    for dtype in (None, torch.float32, torch.bfloat16):
        net, opt = made(method, stats_every=2, refresh_every=4, widest=5, product_dtype=dtype)
        loss_of(net).backward()
        opt.step()
        opt.zero_grad()
        loss_of(net, 1).backward()
        pre, index = opt.preconditioner, 1
        layer = pre.layers[index]
        assert pre.listening.claims()[index]
        pre.listening.settle({index})
        M, rows = pre.listening.explained(index)
        found[dtype] = layer.block.solve_rows(rows), layer.block.solve(M)
        assert {x.dtype for x in found[dtype]} == {torch.float64}
        assert found[dtype][0].shape == M.shape
    exact, _ = found[None]
    for dtype, (least, most) in {
        torch.float32: (1e-12, 1e-6),
        torch.bfloat16: (1e-4, 2e-2),
    }.items():
        assert all(least < relative(each, exact) < most for each in found[dtype])


def test_split_factors_are_met_by_fewer_rows():
    block, split = (
        natgrad.blocks.KFAC((40, 41), damping=0.1, widest=widest) for widest in (None, 10)
    )
    assert max(n for n in range(60) if block.rows_pay(n)) == 26
    assert max(n for n in range(60) if split.rows_pay(n)) == 12
