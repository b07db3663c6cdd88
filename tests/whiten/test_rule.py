"""What another way of whitening can build on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from natgrad.layers import Whitenable
from natgrad.whiten import Constants, Rule, Whitened, fold, whiten
from natgrad.whiten.statistics import RowMoments, Statistics
from tests.whiten.nets import attached, convnet, normal, output, relative, train

X = normal(12, 4, 5, 5) + 1


class ByBatch(Whitened):
    """Renews its constants in every training pass, and evaluates with others."""

    def __init__(self, view: Whitenable, start: Constants, rule: EveryForward) -> None:
        super().__init__(view, start)
        self.rule, self.calls = rule, 0

    def forward(self, input: Tensor) -> Tensor:
        if self.counts:
            moments = RowMoments()
            moments.add(self.view.features(input))
            self.refit(self.rule.constants(self, Statistics(moments, RowMoments())))
            self.calls += 1
        return super().forward(input)


@dataclass(frozen=True)
class EveryForward(Rule):
    """Uncentred diagonal scales of inputs and outputs, renewed by the layers themselves."""

    every: int | None = None
    samples: int | None = None

    def layer(self, view: Whitenable) -> Whitened:
        start, o = self.start(view), view.channels[0]
        P = start.P.diagonal(dim1=-2, dim2=-1).unsqueeze(-2).clone()
        Q = P.new_ones(*view.groups, o, 1)
        return ByBatch(view, replace(start, P=P, c=None, Q=Q), self)

    def constants(self, layer: Whitened, seen: Statistics) -> Constants:
        scale = seen.inputs.second_moment().diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
        P = 1 / (scale + 1e-2).sqrt()
        return Constants(P, None, torch.full_like(layer.Q, 0.5, dtype=P.dtype))


def test_a_rule_can_renew_constants_in_the_forward_pass():
    net = convnet()
    before = output(net, X)
    bias = net[5].bias
    opt = attached(whiten(net, EveryForward()), torch.optim.SGD(net.parameters(), 0.0, 0.9))
    train(net, opt, 3, shape=(4, 5, 5))
    layer = net[5]
    assert layer.calls == 3
    assert not torch.equal(layer.P, layer.identity().P)
    assert relative(output(net, X), before) < 1e-12
    velocity = 0.5 * opt.state[layer.weight]["momentum_buffer"] * layer.P
    net(2 * X)
    assert relative(0.5 * opt.state[layer.weight]["momentum_buffer"] * layer.P, velocity) < 1e-12
    assert layer.bias is bias
    fold(net)
    assert relative(output(net, X), before) < 1e-12


def test_what_is_folded_is_what_evaluation_uses():
    class Doubled(ByBatch):
        def in_use(self) -> Constants:
            return Constants(self.P if self.training else 2 * self.P, None, self.Q)

    class Doubling(EveryForward):
        def layer(self, view: Whitenable) -> Whitened:
            plain = super().layer(view)
            return Doubled(view, plain.in_use(), self)

    net = convnet()
    whiten(net, Doubling())
    assert relative(output(net.eval(), X), output(net.train(), X)) > 0.1
    before = output(net.eval(), X)
    fold(net.train())
    assert net[0].training
    assert relative(output(net, X), before) < 1e-12
