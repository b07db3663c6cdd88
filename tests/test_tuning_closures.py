"""The loss asked for again after a step: how closures are called, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.loop.loops import data, every_method, waiting, weights
from tests.networks import mlp
from tests.test_optim_state import same
from tests.test_tuning import Closure, always, every_lr, make, train


@every_method
@every_lr
def test_closures_of_both_kinds_are_called_as_they_can_be_and_give_the_same(method, lr):
    ends = []
    for guarded in (True, False):
        net, opt = make(method, lr=lr, damping=always())
        closures = train(net, opt, range(3), guarded=guarded)
        calls = [closure.with_gradients for closure in closures]
        if guarded:
            assert calls == [[True, False]] * 3
        else:
            assert calls == [[True, False, True], [True, True], [True, True]]
        ends.append((weights(net), opt.stats()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == pytest.approx(ends[1][1], nan_ok=True)


def test_an_error_of_the_closures_own_goes_through_and_gradients_come_back():
    net, opt = make(damping=always())
    closure = Closure(net, opt, then=lambda loss: (_ for _ in ()).throw(RuntimeError("mine")))
    with pytest.raises(RuntimeError, match="mine"):
        opt.step(closure)
    assert all(p.grad is not None for p in net.parameters())
    assert not opt.preconditioner.tap.running


class Random(nn.Module):
    """Running means, and a mask that is kept."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
        self.norm, self.drop = nn.BatchNorm1d(6).double(), nn.Dropout(0.5)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.norm(self.first(x)))
        self.masks.append((h != 0).detach())
        return self.last(h)


@every_method
@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("to_none", [True, False])
def test_it_leaves_everything_as_it_was(method, guarded, to_none):
    ends = []
    for reduction_every in (None, 1):
        net, opt = make(method, Random(), lr=0.1, reduction_every=reduction_every, seed=2)
        torch.manual_seed(5)
        for k in range(3):
            net.masks.clear()
            (closure,) = train(net, opt, range(k, k + 1), guarded=guarded, to_none=to_none)
            assert len(net.masks) == len(closure.with_gradients)
            assert all(torch.equal(net.masks[0], mask) for mask in net.masks)
        grads = {name: p.grad for name, p in net.named_parameters()}
        ends.append((net.state_dict(), grads, torch.get_rng_state(), opt.preconditioner))
    (one, grads, random, pre), (other, found, again, measured) = ends
    assert same(one, other)
    assert same(grads, found)
    assert torch.equal(random, again)
    assert same(pre.state_dict(), measured.state_dict())


@every_method
@pytest.mark.parametrize("by", ["closure", "targets"])
def test_choosing_draws_nothing_either_and_both_losses_share_their_mask(method, by):
    net, opt = make(method, Random(), damping=always(reject_every=None))
    torch.manual_seed(5)
    for k in range(2):
        net.masks.clear()
        random, closure = torch.get_rng_state(), Closure(net, opt, k)
        if by == "closure":
            opt.step(closure)
        else:
            closure()
            opt.step(targets=closure.batch[1])
        whole = [mask for mask in net.masks if len(mask) == 8]
        assert len(whole) == 2
        assert torch.equal(*whole)
        parts = [mask for mask in net.masks if len(mask) == 2]
        assert len(parts) == k + 1, "U, then the last step too"
        after = torch.get_rng_state()
        torch.set_rng_state(random)
        torch.nn.functional.dropout(torch.ones(8, 6).double())
        assert torch.equal(torch.get_rng_state(), after)
        assert waiting(opt) == 0
    assert float(net.norm.num_batches_tracked) == 2


def test_the_loss_is_that_of_the_new_weights_inside_of_autocast_too():
    net = mlp(4, 6, 3).float()
    _, opt = make(net=net, lr=1.0, damping=always(reject_every=None))
    x, y = data(0)
    losses = []

    def closure() -> Tensor:
        opt.zero_grad()
        loss = F.cross_entropy(net(x.float()), y)
        losses.append(loss.item())
        if torch.is_grad_enabled():
            loss.backward()
        return loss

    with torch.autocast("cpu", torch.bfloat16):
        opt.step(closure)
    assert losses[1] < losses[0] - 0.01
