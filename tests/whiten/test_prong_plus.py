"""PRONG+: a diagonal that follows each batch, and batch normalization in its place."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from natgrad.whiten import PRONG, Constants, PRONGPlus, Whitened, fold, whiten
from natgrad.whiten.normalized import Normalized
from natgrad.whiten.scaled import Scaled
from tests.whiten.nets import (
    CONVS,
    attached,
    convnet,
    dense,
    eye,
    loss_of,
    mlp,
    normal,
    output,
    relative,
    train,
)  # fmt: skip

SGD = torch.optim.SGD
X = normal(200, 4) @ normal(4, 4, seed=1) + 2
READINGS = ("diagonal", "batchnorm")
BASES = ("pca", "zca", "cholesky", "diagonal")
every_reading = pytest.mark.parametrize("reading", READINGS)
every_basis = pytest.mark.parametrize("basis", BASES)
every_conv = pytest.mark.parametrize("kind", CONVS)


def white(layer: Whitened, h: Tensor) -> Tensor:
    """``P (x - c)`` as rows ``[(q,) r, k]``."""
    x = layer.view.features(h)
    x = x if layer.c is None else x - layer.c.unsqueeze(-2)
    return x * layer.P if layer.P.shape[-2] < layer.P.shape[-1] else x @ layer.P.mT


def hear(net: nn.Sequential, x: Tensor) -> dict[Whitened, Tensor]:
    """What each whitened layer takes in."""
    seen = {}
    handles = [
        m.register_forward_pre_hook(lambda m, args: seen.update({m: args[0].detach()}))
        for m in net
        if isinstance(m, Whitened)
    ]
    output(net, x)
    for handle in handles:
        handle.remove()
    return seen


def follow(net: nn.Module, x: Tensor | None = None, lr: float = 0.0, **kwargs) -> SGD:
    """Whitened by PRONG+, its first reading, and attached."""
    opt = SGD(net.parameters(), lr=lr, momentum=0.9)
    whiten(net, PRONGPlus(**kwargs), x).attach(opt)
    return opt


# the diagonal ------------------------------------------------------------------------------------


@every_basis
def test_features_have_unit_variance_on_every_batch(basis):
    net = mlp(4, 6, 3)
    opt = follow(net, X, eps=0.0, basis=basis)
    for k in range(3):
        batch = normal(20, 4, seed=k) * (k + 1) + k
        net(batch).sum().backward()
        for layer, h in hear(net, batch).items():
            assert isinstance(layer, Scaled)
            spread = white(layer, h).var(-2, correction=0)
            assert torch.allclose(spread, torch.ones_like(spread), rtol=1e-9)
        opt.step()


@every_basis
def test_with_eps_the_damped_variance_is_one_and_rows_stay_short(basis):
    net, eps = mlp(4, 6, 3), 0.1
    follow(net, X, eps=eps, basis=basis)
    batch = normal(20, 4) * torch.tensor([1e-6, 1, 1, 0], dtype=torch.float64)
    net(batch).sum().backward()
    for layer, h in hear(net, batch).items():
        P = layer.P[0].diag() if basis == "diagonal" else layer.P
        damped = P @ (torch.cov(h.mT, correction=0) + eps * eye(len(P))) @ P.mT
        assert torch.allclose(damped.diagonal(), torch.ones(len(P)).double(), rtol=1e-9)
        assert P.norm(dim=1).max() <= eps**-0.5 * (1 + 1e-12)


def test_on_the_data_of_a_refit_the_diagonal_is_the_identity():
    net = mlp(4, 6, 3)
    follow(net, X, eps=0.1)
    before = net[0].P.clone()
    net(X).sum().backward()
    assert relative(net[0].P, before) < 1e-12


@every_conv
@every_basis
def test_D11_the_function_stays_for_every_convolution(kind, basis):
    make, shape = CONVS[kind]
    conv, x = make().double(), normal(6, *shape) + 2
    net, centred = nn.Sequential(conv), conv.bias is not None
    before = output(net, x)
    follow(net, x, eps=1e-3, basis=basis)
    V, P, old = net[0].weight.detach().clone(), net[0].P.clone(), dense(net[0])
    batch = normal(4, *shape, seed=1) * 3
    net(batch).sum().backward()
    assert relative(net[0].P, P) > 0.1  # D did change
    assert relative(net[0].weight, V) > 0.1
    found = [pair for pair in zip(dense(net[0]), old, strict=True) if pair[1] is not None]
    assert all(relative(*pair) < 1e-12 for pair in found)
    h = white(net[0], batch)
    h = h - h.mean(-2, keepdim=True) if centred else h
    length = (net[0].P ** 2).sum(-1) if basis != "diagonal" else (net[0].P ** 2).squeeze(-2)
    assert torch.allclose(h.square().mean(-2) + 1e-3 * length, torch.ones(1).double())
    assert relative(output(net, x), before) < 1e-10
    fold(net)
    assert net[0] is conv
    assert relative(output(net, x), before) < 1e-10


def test_D11_in_float32_many_steps_keep_the_function():
    net = mlp(4, 16, 3).float()
    before = output(net, X.float())
    opt = follow(net, X.float(), eps=1e-3, every=1000)
    for k in range(100):
        opt.zero_grad()
        net(normal(8, 4, seed=k).float() * (k % 7 + 1)).sum().backward()
        opt.step()
    assert relative(output(net, X.float()), before) < 1e-5


def test_the_diagonal_is_a_constant_to_autograd():
    """Gradients are those of a PRONG layer whose ``P`` happens to be ``D U``."""
    net, twin = mlp(4, 6, 3), mlp(4, 6, 3)
    follow(net, X)
    whiten(twin, PRONG(), X)
    batch = (normal(20, 4) * 3).requires_grad_()
    loss_of(net, batch).backward()
    found = batch.grad.clone()
    for mine, other in zip((net[0], net[2]), (twin[0], twin[2]), strict=True):
        other.refit(Constants(mine.P.clone(), mine.c.clone()))
    batch.grad = None
    loss_of(twin, batch).backward()
    assert relative(found, batch.grad) < 1e-10
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert relative(p.grad, q.grad) < 1e-9


def canonical_velocity(layer: Whitened, opt: torch.optim.Optimizer, name: str, way: str) -> Tensor:
    M = opt.state[layer.weight][name]
    if way == "displacement":
        return M @ layer.P
    P_inv = torch.linalg.inv(layer.P)
    return M @ P_inv.mT if way == "gradient" else M


@pytest.mark.parametrize("state", ["transport", "rotate", "reset"])
def test_momentum_is_carried_at_every_step(state):
    net = mlp(4, 6, 3)
    opt = SGD(net.parameters(), lr=1e-3, momentum=0.9)
    whiten(net, PRONGPlus(every=1000), X).attach(opt, state=state)
    train(net, opt, 3)
    before = [canonical_velocity(m, opt, "momentum_buffer", "displacement") for m in net[::2]]
    md = [opt.state[m.bias]["momentum_buffer"].clone() for m in net[::2]]
    P = net[0].P.clone()
    net(normal(9, 4) * 5)
    assert relative(net[0].P, P) > 0.1
    for m, old, d in zip(net[::2], before, md, strict=True):
        assert relative(canonical_velocity(m, opt, "momentum_buffer", "displacement"), old) < 1e-12
        assert torch.equal(opt.state[m.bias]["momentum_buffer"], d)


def test_kept_momentum_is_not():
    net = mlp(4, 6, 3)
    opt = SGD(net.parameters(), lr=1e-3, momentum=0.9)
    whiten(net, PRONGPlus(every=1000), X).attach(opt, state="keep")
    train(net, opt, 3)
    before = canonical_velocity(net[0], opt, "momentum_buffer", "displacement")
    net(normal(9, 4) * 5)
    after = canonical_velocity(net[0], opt, "momentum_buffer", "displacement")
    assert relative(after, before) > 0.1


@pytest.mark.parametrize(
    ("make", "powers"),
    [
        (lambda p: torch.optim.Adam(p, amsgrad=True),
         {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}),
        (torch.optim.Adamax, {"exp_avg": 1, "exp_inf": 1}),
        (torch.optim.Adadelta, {"square_avg": 2, "acc_delta": -2}),
        (lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
         {"square_avg": 2, "grad_avg": 1, "momentum_buffer": -1}),
        (torch.optim.Adagrad, {"sum": 2}),
        (torch.optim.Rprop, {"prev": 1, "step_size": -1}),
        (torch.optim.ASGD, {"ax": -1}),
    ],
)  # fmt: skip
def test_the_state_of_every_optimizer_follows_the_diagonal(make, powers):
    net = mlp(4, 6, 3)
    opt = make(net.parameters())
    whiten(net, PRONGPlus(every=1000, basis="diagonal"), X).attach(opt)
    train(net, opt, 3)
    P, state = net[0].P.clone(), copy.deepcopy(opt.state[net[0].weight])
    steps = state["step"].clone()
    net(normal(9, 4) * 5)
    ratio = net[0].P / P
    assert (ratio - 1).abs().max() > 0.1
    found = opt.state[net[0].weight]
    tensors = {k for k, x in state.items() if isinstance(x, Tensor) and x.ndim}
    assert tensors == set(powers)
    for name, power in powers.items():
        assert relative(found[name], state[name] * ratio**power) < 1e-12
    assert torch.equal(found["step"], steps)


# when --------------------------------------------------------------------------------------------


def test_micro_batches_of_one_step_share_the_diagonal():
    net = mlp(4, 6, 3)
    opt = follow(net, X)
    net(normal(9, 4) * 2).sum().backward()
    first = net[0].P.clone()
    net(normal(9, 4, seed=1) * 5).sum().backward()
    assert torch.equal(net[0].P, first)
    opt.step()
    net(normal(9, 4, seed=1) * 5)
    assert not torch.equal(net[0].P, first)


@pytest.mark.parametrize("reading", READINGS)
def test_gradients_of_micro_batches_add_up(reading):
    """Accumulated gradients are those of the same constants; for BN, of the batches apart."""
    parts = normal(8, 4), normal(8, 4, seed=1)
    net = mlp(4, 6, 3)
    opt = SGD(net.parameters(), lr=0.0)
    rule = PRONGPlus(reading=reading)
    whiten(net, rule, X).attach(opt) if reading == "diagonal" else whiten(net, rule, X)
    net(parts[0])  # the step's diagonal
    alone = []
    for part in parts:
        net.zero_grad()
        loss_of(net, part).backward()
        alone.append([p.grad.clone() for p in net.parameters()])
    net.zero_grad()
    for part in parts:
        loss_of(net, part).backward()
    for p, a, b in zip(net.parameters(), *alone, strict=True):
        assert relative(p.grad, a + b) < 1e-12


@every_reading
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_those_of_the_plain_pass(reading, reentrant):
    x, ends = (normal(9, 4) * 2).requires_grad_(), []
    for run in (lambda net: net(x), lambda net: checkpoint(net, x, use_reentrant=reentrant)):
        net = mlp(4, 6, 5, 3)
        whitener = whiten(net, PRONGPlus(reading=reading), X)
        whitener.attach(SGD(net.parameters(), lr=0.0))
        if reentrant:
            net(x.detach())  # its passes can't be told from others: no new diagonal in them
        run(net).square().sum().backward()
        ends.append([p.grad for p in net.parameters()] + [net[0].P])
    assert all(relative(*pair) < 1e-12 for pair in zip(*ends, strict=True))
    assert relative(net[0].P, mlp_P()) > (0.1 if reading == "diagonal" else -1)


def mlp_P() -> Tensor:
    net = mlp(4, 6, 5, 3)
    whiten(net, PRONGPlus(), X)
    return net[0].P


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(4, 4).double(), nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.inner(x).tanh() * 5))


def test_a_layer_used_twice_takes_its_first_input():
    net, x = Twice(), normal(30, 4) * 3
    expected = output(net, x)
    opt = SGD(net.parameters(), lr=0.0)
    whiten(net, PRONGPlus(eps=0.0), normal(50, 4)).attach(opt)
    f = net(x)
    assert relative(f, expected) < 1e-10
    spread = white(net.inner, x).var(-2, correction=0)
    assert torch.allclose(spread, torch.ones_like(spread))
    f.square().sum().backward()  # both uses have the same constants


def test_in_evaluation_and_without_gradients_nothing_changes():
    net = mlp(4, 6, 3)
    follow(net, X)
    state = copy.deepcopy(net.state_dict())
    net.eval()(normal(9, 4))
    output(net.train(), normal(9, 4))
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())


def test_before_constants_are_fitted_and_without_an_optimizer_nothing_follows():
    net = mlp(4, 6, 3)
    opt = follow(net, None, samples=50)
    train(net, opt, 3)
    assert torch.equal(net[0].P, eye(4))
    alone = mlp(4, 6, 3)
    whiten(alone, PRONGPlus(), X)
    P = alone[0].P.clone()
    alone(normal(9, 4))
    assert torch.equal(alone[0].P, P)
    train(net, opt, 5, first=3)
    assert net[0].due
    P = net[0].P.clone()
    net(normal(9, 4))
    assert relative(net[0].P, P) > 0.01


def test_parameters_that_torch_func_puts_in_place_are_left_alone():
    net = mlp(4, 6, 3)
    follow(net, X)
    zeros = {name: torch.ones_like(p) for name, p in net.named_parameters()}
    P = net[0].P.clone()
    torch.func.functional_call(net, zeros, (normal(9, 4),))
    assert torch.equal(net[0].P, P)
    assert all(torch.equal(x, torch.ones_like(x)) for x in zeros.values())


def test_refits_start_anew_and_output_gradients_can_be_whitened_too():
    net = mlp(4, 6, 3)
    opt = follow(net, X, gradients=True, every=3)
    before = output(net, X)
    for k in range(7):
        opt.zero_grad()
        net(normal(20, 4, seed=k)).square().sum().backward()
        opt.step()
        assert relative(output(net, X), before) < 1e-10
    assert not torch.equal(net[0].Q, eye(6))


# batch normalization -----------------------------------------------------------------------------


def by_hand(net: nn.Sequential, x: Tensor) -> Tensor:
    """``BN(V P (x - c))`` written out, for Linear layers."""
    for m in net:
        if isinstance(m, Normalized):
            z = (x - m.c) @ m.P.mT @ m.weight.mT
            z = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
            x = z * m.gamma + m.bias
        elif isinstance(m, Whitened):
            x = (x - m.c) @ m.P.mT @ m.weight.mT + m.bias
        else:
            x = m(x)
    return x


@pytest.mark.parametrize("rows", [3, 50])
def test_outputs_are_normalized_and_gradients_pass_through_the_statistics(rows):
    net = mlp(4, 6, 5, 3)
    whiten(net, PRONGPlus(reading="batchnorm"), X)
    assert [type(m) for m in net[::2]] == [Normalized, Normalized, Whitened]
    batch, grads = normal(rows, 4) * 2 + 1, []
    for run in (net, lambda x: by_hand(net, x)):
        net.zero_grad()
        f = run(batch)
        f.square().sum().backward()
        grads.append([f.detach()] + [p.grad.clone() for p in net.parameters()])
    assert all(relative(*pair) < 1e-10 for pair in zip(*grads, strict=True))
    assert net[0].gamma.grad.norm() > 0


@every_conv
def test_convolutions_are_normalized_by_channel(kind):
    make, shape = CONVS[kind]
    conv, x = make().double(), normal(6, *shape) + 2
    bias = conv.bias is not None
    net = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2).double())
    before = output(net, x)
    whiten(net, PRONGPlus(reading="batchnorm"), x)
    assert isinstance(net[0], Normalized) == bias
    assert relative(output(net, x), before) < 1e-10  # the data as one batch
    assert relative(output(net.eval(), x), before) < 1e-10
    alone = output(net[0], x[0])  # without a batch dimension
    assert relative(alone, output(net[0], x)[0]) < 1e-10
    if not bias:
        return
    opt = SGD(net.parameters(), lr=1e-2)
    for k in range(4):
        net.train()(normal(6, *shape, seed=k)).square().sum().backward()
        opt.step()
    z = F.batch_norm(
        net[0].view.compute(x, *net[0].linear()), None, None, net[0].gamma, net[0].bias, True
    )
    assert relative(output(net[0], x), z) < 1e-10
    expected = output(net.eval(), x)
    fold(net)
    assert net[0] is conv
    assert relative(output(net, x), expected) < 1e-10
    assert set(net.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_gamma_and_shift_begin_with_the_statistics_of_the_data():
    net, plain = mlp(4, 6, 3), mlp(4, 6, 3)
    whiten(net, PRONGPlus(reading="batchnorm"), [X[:50], X[50:]])
    z = plain[0](X).detach()
    assert torch.allclose(net[0].gamma, (z.var(0, correction=0) + 1e-5).sqrt(), rtol=1e-10)
    assert torch.allclose(net[0].bias, z.mean(0), rtol=1e-10)
    assert torch.allclose(net[0].running_var, z.var(0, correction=0), rtol=1e-10)


def test_without_data_they_begin_with_the_first_batch():
    net, plain = mlp(4, 6, 3), mlp(4, 6, 3)
    whiten(net, PRONGPlus(reading="batchnorm"))
    batch, other = normal(20, 4) + 3, normal(20, 4, seed=1)
    assert relative(output(net, other), output(plain, other)) < 1e-10  # in no training pass yet
    assert relative(net(batch), output(plain, batch)) < 1e-10
    assert relative(net(other), output(plain, other)) > 0.1  # normalized from now on
    assert bool(net[0].started)


def test_without_data_training_goes_on_through_the_first_refit():
    net = mlp(4, 6, 3)
    whitener = whiten(net, PRONGPlus(reading="batchnorm", every=4, samples=16))
    opt = attached(whitener, SGD(net.parameters(), lr=1e-2, momentum=0.9))
    train(net, opt, 1)
    before = [output(m, X) for m in (net, net.eval())], net.train()
    whitener.refit(X)
    assert not torch.equal(net[0].P, eye(4))
    after = [output(m, X) for m in (net, net.eval())]
    assert all(relative(*pair) < 1e-10 for pair in zip(after, before[0], strict=True))


def test_a_refit_keeps_the_function_in_both_modes_and_the_velocity():
    net = mlp(4, 6, 5, 3)
    whitener = whiten(net, PRONGPlus(reading="batchnorm", every=1000), X)
    opt = attached(whitener, SGD(net.parameters(), lr=1e-2, momentum=0.9))
    train(net, opt, 5)
    layer = net[0]

    def facts() -> list[Tensor]:
        velocity = opt.state[layer.weight]["momentum_buffer"] @ layer.P
        shift = opt.state[layer.bias]["momentum_buffer"]
        found = [output(net.train(), X), output(net.eval(), X), velocity, shift, layer.bias]
        return [x.detach().clone() for x in [*found, layer.gamma]]

    before, P = facts(), layer.P.clone()
    whitener.refit(normal(60, 4, seed=3) * 2 - 1)
    assert relative(layer.P, P) > 0.1
    assert all(relative(*pair) < 1e-9 for pair in zip(facts(), before, strict=True))


def test_folding_keeps_evaluation_and_carries_momentum():
    net = mlp(4, 6, 3)
    opt = SGD(net.parameters(), lr=1e-2, momentum=0.9)
    whitener = whiten(net, PRONGPlus(reading="batchnorm", every=4), X)
    opt = attached(whitener, SGD(net.parameters(), lr=1e-2, momentum=0.9))
    train(net, opt, 6)
    expected, layer = output(net.eval(), X), net[0]
    scale = (layer.gamma / (layer.running_var + 1e-5).sqrt()).detach()
    velocity = scale[:, None] * (opt.state[layer.weight]["momentum_buffer"] @ layer.P)
    fold(net)
    assert relative(output(net, X), expected) < 1e-12
    assert relative(opt.state[net[0].weight]["momentum_buffer"], velocity) < 1e-12
    train(net, opt, 3, first=6)


def test_the_running_statistics_are_those_of_torch():
    net, bn = mlp(4, 6, 3), nn.BatchNorm1d(6).double()
    whiten(net, PRONGPlus(reading="batchnorm"), X)
    with torch.no_grad():
        bn.running_mean.copy_(net[0].running_mean)
        bn.running_var.copy_(net[0].running_var)
    batch = normal(9, 4)
    net(batch)
    bn(net[0].view.compute(batch, *net[0].linear()))
    assert relative(net[0].running_mean, bn.running_mean) < 1e-12
    assert relative(net[0].running_var, bn.running_var) < 1e-12
    state = copy.deepcopy(net.state_dict())
    output(net, batch)  # no training pass: by the batch, but nothing is remembered
    checkpoint(net, batch, use_reentrant=False).sum()
    count = net[0].running_var.clone()
    assert not torch.equal(state["0.running_var"], count)
    assert relative(output(net, batch), by_hand(net, batch)) < 1e-10


def test_the_layers_that_are_outputs_can_be_named():
    heads = PRONGPlus(reading="batchnorm", outputs=("0", "4"))
    net = mlp(4, 6, 5, 3)
    whiten(net, heads, X)
    assert [type(m) for m in net[::2]] == [Whitened, Normalized, Whitened]
    with pytest.raises(ValueError, match="outputs names head, but the whitened layers are 0, 2"):
        whiten(mlp(4, 5, 3), PRONGPlus(reading="batchnorm", outputs=("head",)))


def test_an_optimizer_without_gamma_is_refused():
    net = mlp(4, 6, 3)
    opt = SGD(net.parameters(), lr=0.1)
    whitener = whiten(net, PRONGPlus(reading="batchnorm"), X)
    with pytest.raises(ValueError, match=r"SGD does not hold 0\.gamma.*optimizer after whiten"):
        whitener.attach(opt)
    whitener.attach(SGD(net.parameters(), lr=0.1))


def test_canonical_decay_is_on_what_evaluation_multiplies_by():
    net = mlp(4, 6, 3)
    whitener = whiten(net, PRONGPlus(reading="batchnorm", every=1000), X)
    opt = SGD(net.parameters(), lr=1.0)
    whitener.attach(opt, canonical_decay=0.3)
    V = net[0].weight.detach().clone().requires_grad_()
    scale = net[0].gamma.detach() / (net[0].running_var + 1e-5).sqrt()
    (0.15 * (scale[:, None] * (V @ net[0].P)).square().sum()).backward()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    assert relative(net[0].weight.detach() - V.detach(), -V.grad) < 1e-10


# both --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reading": "bn"}, "reading must be 'diagonal' or 'batchnorm', got 'bn'"),
        ({"eps": -1.0}, "eps must be >= 0"),
        ({"reading": "batchnorm", "gradients": True}, 'goes with reading="diagonal" only'),
        ({"outputs": ("0",)}, 'outputs= goes with reading="batchnorm" only'),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PRONGPlus(**kwargs)


@every_reading
@every_basis
def test_a_convolutional_network_keeps_its_function_and_trains(reading, basis):
    net, x = convnet(), normal(40, 4, 5, 5) + 1
    before = output(net, x)
    whitener = whiten(net, PRONGPlus(every=3, eps=1e-2, reading=reading, basis=basis), x)
    assert relative(output(net, x), before) < 1e-10
    opt = attached(whitener, SGD(net.parameters(), lr=1e-2, momentum=0.9))
    losses = []
    for _ in range(20):
        opt.zero_grad()
        loss = loss_of(net, x)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert min(losses) < 0.7 * losses[0]
    expected = output(net.eval(), x)
    assert relative(output(fold(net), x), expected) < 1e-10


DEGENERATE = {
    "constant": torch.ones(20, 4, dtype=torch.float64),
    "zero": torch.zeros(20, 4, dtype=torch.float64),
    "one example": normal(1, 4),
    "two examples": normal(2, 4),
    "a dead feature": normal(20, 4) * torch.tensor([1.0, 0, 1, 1], dtype=torch.float64),
    "tiny": normal(20, 4) * 1e-9,
    "huge": normal(20, 4) * 1e9,
}


@every_reading
@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("eps", [0.0, 1e-3])
@pytest.mark.parametrize("bias", [True, False])
def test_degenerate_batches_leave_everything_finite(reading, kind, eps, bias):
    if reading == "batchnorm" and eps == 0:
        pytest.skip("BN has an eps of its own")
    net, x = mlp(4, 5, 3, activation=nn.ReLU, bias=bias), DEGENERATE[kind]
    with torch.no_grad():
        net[0].weight[0] = 0  # a unit that is dead or constant
        if bias:
            net[0].bias[0] = -1
    whitener = whiten(net, PRONGPlus(every=2, eps=1e-3, reading=reading), X)
    for layer in whitener.layers.values():
        layer.eps = eps
    opt = attached(whitener, SGD(net.parameters(), lr=1e-30, momentum=0.9))
    before = output(net.eval(), X)
    for _ in range(2):
        net.train().zero_grad()
        net(x).sum().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        if reading == "diagonal":
            assert relative(output(net, X), before) < 1e-6
    opt.step()
    assert all(x.isfinite().all() for x in net.state_dict().values())


@pytest.mark.parametrize("bias", [True, False])
def test_a_single_row_has_no_variance_but_a_second_moment(bias):
    net = mlp(4, 5, 3, bias=bias)
    follow(net, X)
    P = net[0].P.clone()
    net(X[:1])
    assert torch.equal(net[0].P, P) == bias


@pytest.mark.parametrize("bias", [True, False])
def test_batches_that_are_not_finite_leave_the_diagonal(bias):
    net = mlp(4, 5, 3, bias=bias)
    follow(net, X)
    state = copy.deepcopy(net.state_dict())
    net(X.where(X < 3, torch.inf))
    net[0].due = True
    net(X.where(X < 3, torch.nan))
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())


@every_reading
@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("steps", [2, 5])
def test_a_resumed_run_goes_on_bit_by_bit(reading, data, steps):
    def fresh():
        net = mlp(4, 6, 5, 3)
        rule = PRONGPlus(every=3, samples=16, reading=reading)
        whitener = whiten(net, rule, X if data else None)
        opt = SGD(net.parameters(), lr=1e-2, momentum=0.9)
        whitener.attach(opt)
        return net, opt, whitener

    whole, opt, whitener = fresh()
    train(whole, opt, steps)
    file = io.BytesIO()
    torch.save([x.state_dict() for x in (whole, opt, whitener)], file)
    train(whole, opt, 6, first=steps)
    resumed, opt, whitener = fresh()
    train(resumed, opt, 1, first=50)
    file.seek(0)
    for part, state in zip(
        (resumed, opt, whitener), torch.load(file, weights_only=True), strict=True
    ):
        part.load_state_dict(state)
    train(resumed, opt, 6, first=steps)
    found = resumed.state_dict()
    assert all(torch.equal(x, found[name]) for name, x in whole.state_dict().items())


def test_a_model_that_was_loaded_is_normalized_from_the_start():
    net, other = mlp(4, 6, 3), mlp(4, 6, 3, seed=1)
    whiten(net, PRONGPlus(reading="batchnorm"), X)
    whiten(other, PRONGPlus(reading="batchnorm"))
    other.load_state_dict(net.state_dict())
    batch = normal(9, 4)
    assert torch.equal(other(batch), net(batch))


@every_reading
def test_a_copy_is_whole_and_on_its_own(reading):
    net = mlp(4, 6, 3)
    whitener = whiten(net, PRONGPlus(reading=reading), X)
    whitener.attach(SGD(net.parameters(), lr=0.1))
    other = copy.deepcopy(net)
    before = copy.deepcopy(net.state_dict())
    P = other[0].P.clone()
    f = other(normal(9, 4))
    assert torch.equal(other[0].P, P)  # a copy follows no batch
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert relative(net(normal(9, 4)), f) < 1e-10
    expected = output(other.eval(), X)
    assert relative(output(fold(other), X), expected) < 1e-10


@every_reading
def test_training_under_bfloat16_autocast_follows_full_precision(reading):
    ends = []
    for enabled in (True, False):
        net = mlp(4, 8, 3).float()
        rule = PRONGPlus(every=3, eps=1e-1, reading=reading)
        whitener = whiten(net, rule, X.float())
        opt = attached(whitener, SGD(net.parameters(), lr=1e-2))
        for k in range(6):
            opt.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                loss = loss_of(net, normal(32, 4, seed=k).float())
            loss.backward()
            opt.step()
        ends.append(torch.cat([x.flatten() for m in (net[0], net[2]) for x in dense(m)]))
        assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert 0 < relative(*ends) < 0.05


@every_reading
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(reading, dtype):
    net = mlp(4, 8, 3).to(dtype)
    whitener = whiten(net, PRONGPlus(every=2, reading=reading), X.to(dtype))
    opt = attached(whitener, SGD(net.parameters(), lr=1e-3))
    for k in range(4):
        opt.zero_grad()
        loss_of(net, normal(16, 4, seed=k).to(dtype)).backward()
        opt.step()
    assert all(x.isfinite().all() for x in net.state_dict().values())


@every_reading
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_network_is_the_same(reading):
    ends = []
    for compiled in (True, False):
        net = mlp(4, 5, 3)
        whitener = whiten(net, PRONGPlus(every=2, reading=reading), X)
        opt = attached(whitener, SGD(net.parameters(), lr=1e-2, momentum=0.9))
        called = torch.compile(net, backend="eager") if compiled else net
        for k in range(4):
            opt.zero_grad()
            loss_of(called, normal(8, 4, seed=k)).backward()
            opt.step()
        ends.append(output(net.eval(), X))
    assert relative(*ends) < 1e-10
    torch._dynamo.reset()


def test_sequences_are_normalized_over_all_positions():
    net, x = mlp(4, 6, 3), normal(5, 7, 4)
    whiten(net, PRONGPlus(reading="batchnorm"), x)
    assert relative(net(x), by_hand(net, x.reshape(-1, 4)).reshape(5, 7, 3)) < 1e-10
