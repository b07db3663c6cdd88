"""Forward passes that do not count: those of evaluation, and those without a backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.loop.loops import backward, every_fisher, every_method, train, waiting, weights
from tests.networks import mlp, normal


@every_method
@every_fisher
def test_evaluation_between_the_steps_and_within_them_changes_nothing(method, fisher):
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    opt, other = (method(m, lr=0.1, **fisher) for m in (net, twin))
    for k in range(4):
        opt.zero_grad()
        net.eval()
        with torch.no_grad():
            net(normal(5, 4, seed=k))
        inputs = normal(5, 4, seed=k).requires_grad_()
        torch.autograd.grad(net(inputs).sum(), inputs)  # a saliency map
        net.train()
        with torch.inference_mode():
            net(normal(5, 4, seed=k))
        x = normal(8, 4, seed=k)
        f = net(x)
        with torch.no_grad():
            net(2 * x)
        F.cross_entropy(f, x[:, :3].argmax(1)).backward()
        net.eval()
        with torch.no_grad():
            net(3 * x)
        net.train()
        opt.step()
    train(twin, other, range(4))
    assert torch.equal(weights(net), weights(twin))


@every_method
def test_a_loop_in_eval_mode_is_told_what_it_lacks(method):
    net = mlp(4, 6, 3).eval()
    opt = method(net, lr=0.1)
    backward(net, 0)
    with pytest.raises(RuntimeError, match=r"no statistics: .* in training mode"):
        opt.step()


@every_method
@every_fisher
def test_a_forward_without_a_backward_does_not_count(method, fisher):
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    opt, other = (method(m, lr=0.1, **fisher) for m in (net, twin))
    train(net, opt, [0])
    net(normal(8, 4, seed=9))
    assert waiting(opt) == 0
    train(net, opt, [1])
    train(twin, other, [0, 1])
    assert torch.equal(weights(net), weights(twin))
