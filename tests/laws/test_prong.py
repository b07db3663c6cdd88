"""D1 to D15: what whitened coordinates are, and what plain descent in them is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad.whiten import PRONG, Constants, Whitened, fold, whiten
from natgrad.whiten.bases import whitening
from tests.whiten.nets import CONVS, convnet, dense, mlp, normal, output, relative

every_seed = pytest.mark.parametrize("seed", range(4))
every_basis = pytest.mark.parametrize("basis", ["pca", "zca", "cholesky"])
every_conv = pytest.mark.parametrize("kind", CONVS)
FULL = ("pca", "zca", "cholesky")


def rows(n: int, k: int, seed: int) -> Tensor:
    """Correlated rows far from zero."""
    return normal(n, k, seed=seed) @ normal(k, k, seed=seed + 50) + 3 * normal(k, seed=seed + 60)


def covariance(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x.mT @ x / len(x)


def inputs_of(net: nn.Sequential, x: Tensor) -> dict[Whitened, Tensor]:
    """What each whitened layer sees, as rows."""
    seen = {}
    for module in net:
        if isinstance(module, Whitened):
            seen[module] = module.view.features(x)
        x = output(module, x)
    return seen


# the bases ---------------------------------------------------------------------------------------


@every_seed
@every_basis
def test_D1_without_eps_the_rows_come_out_white(seed, basis):
    x = rows(40, 5, seed)
    Sigma = covariance(x)
    P, P_inv = whitening(Sigma, 0.0, basis)
    white = (x - x.mean(0)) @ P.mT
    tolerance = max(1e-11, 50 * 2.2e-16 * float(torch.linalg.cond(Sigma)))
    assert white.mean(0).abs().max() < tolerance
    assert (covariance(white) - torch.eye(5, dtype=x.dtype)).abs().max() < tolerance
    assert (P @ P_inv - torch.eye(5, dtype=x.dtype)).abs().max() < tolerance


@every_seed
def test_D2_with_eps_the_covariance_is_diagonal_in_the_pca_frame(seed):
    x = rows(40, 5, seed)
    l = torch.linalg.eigvalsh(covariance(x))
    P, _ = whitening(covariance(x), 0.3, "pca")
    assert (covariance(x @ P.mT) - (l / (l + 0.3)).diag()).abs().max() < 1e-11


@every_seed
def test_D3_the_uncentred_second_moment_does_not_whiten(seed):
    x = rows(40, 5, seed)
    P, _ = whitening(x.mT @ x / len(x), 0.0, "pca")
    off = covariance((x - x.mean(0)) @ P.mT) - torch.eye(5, dtype=x.dtype)
    assert off.abs().max() > 0.1


# reparametrization -------------------------------------------------------------------------------


@every_seed
def test_D4_the_function_stays_through_refits_in_mixed_bases(seed):
    net, x = mlp(4, 6, 5, 3, seed=seed), rows(30, 4, seed)
    before = output(net, x)
    whitener = whiten(net, PRONG(eps=1e-4), x)
    assert relative(output(net, x), before) < 1e-10
    for k, basis in enumerate(FULL):
        whitener.rule = PRONG(eps=1e-4, basis=basis)
        whitener.refit(rows(30, 4, seed + k + 1))
        assert relative(output(net, x), before) < 1e-10
    fold(net)
    assert relative(output(net, x), before) < 1e-10


@every_conv
@pytest.mark.parametrize("gradients", [False, True])
def test_D4_the_function_stays_for_every_convolution(kind, gradients):
    make, shape = CONVS[kind]
    conv = make().double()
    net, x = nn.Sequential(conv), normal(6, *shape) + 2
    before = output(net, x)
    whitener = whiten(net, PRONG(eps=1e-4, gradients=gradients), x)
    if gradients:
        _whiten_gradients(whitener, net, x)
        assert not torch.equal(net[0].Q, net[0].identity().Q)
    assert relative(output(net, x), before) < 1e-10
    assert relative(output(net, x[0]), before[0]) < 1e-10  # without a batch
    fold(net)
    assert net[0] is conv
    assert relative(output(net, x), before) < 1e-10


def _whiten_gradients(whitener, net, x) -> None:
    """One refit whose window has seen a backward pass."""
    whitener.attach(torch.optim.SGD(net.parameters(), lr=0.0))
    f = net(x)
    (f * normal(*f.shape, seed=3)).sum().backward()
    whitener.refit()
    whitener.detach()


@every_seed
@every_basis
def test_D5_all_layers_see_white_inputs(seed, basis):
    net, x = mlp(4, 6, 5, 3, seed=seed), rows(200, 4, seed)
    whiten(net, PRONG(eps=0.0, basis=basis), x)
    for layer, h in inputs_of(net, x).items():
        white = (h - layer.c) @ layer.P.mT
        size, cond = layer.P.shape[0], float(torch.linalg.cond(covariance(h)))
        tolerance = max(1e-10, 50 * 2.2e-16 * cond)
        assert white.mean(0).abs().max() < tolerance
        assert (covariance(white) - torch.eye(size, dtype=x.dtype)).abs().max() < tolerance


def test_D5_the_diagonal_basis_scales_each_feature_alone():
    net, x = mlp(4, 6, 3), rows(200, 4, 0)
    whiten(net, PRONG(eps=0.1, basis="diagonal"), x)
    for layer, h in inputs_of(net, x).items():
        assert layer.P.shape == (1, h.shape[1])
        expected = 1 / (h.var(0, correction=0) + 0.1).sqrt()
        assert torch.allclose(layer.P[0], expected, rtol=1e-12)
        assert torch.allclose(layer.c, h.mean(0), rtol=1e-12)


# what a step is ----------------------------------------------------------------------------------


def augmented(layer: Whitened, h: Tensor, eps: float, basis: str = "pca") -> Tensor:
    """``Abar = [[Sigma + eps I + c c^T, c], [c^T, 1]]``; without a bias ``E[h h^T] + eps I``."""
    Sigma = covariance(h) if layer.centred else h.mT @ h / len(h)
    Sigma = Sigma.diagonal().diag() if basis == "diagonal" else Sigma
    A = Sigma + eps * torch.eye(h.shape[1], dtype=h.dtype)
    if not layer.centred:
        return A
    c = h.mean(0)
    top = torch.cat([A + torch.outer(c, c), c[:, None]], 1)
    return torch.cat([top, torch.cat([c, c.new_ones(1)])[None]], 0)


def gradients_of(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net.zero_grad()
    (0.5 * (net(x) - y) ** 2).sum(-1).mean().backward()


def layer_state(m: nn.Linear) -> tuple[Tensor, Tensor | None, Tensor]:
    """Weight, bias, and the gradient as one matrix."""
    if m.bias is None:
        return m.weight.detach().clone(), None, m.weight.grad.clone()
    M = torch.cat([m.weight.grad, m.bias.grad[:, None]], 1)
    return m.weight.detach().clone(), m.bias.detach().clone(), M


@every_seed
@pytest.mark.parametrize("basis", [*FULL, "diagonal"])
@pytest.mark.parametrize("eps", [0.0, 0.05])
@pytest.mark.parametrize("bias", [True, False])
def test_D6_a_step_is_preconditioned_by_the_augmented_covariance(seed, basis, eps, bias):
    net, x, y = mlp(4, 5, 3, seed=seed, bias=bias), rows(60, 4, seed) / 3, normal(60, 3, seed=seed)
    gradients_of(net, x, y)
    expected = [layer_state(m) for m in net if isinstance(m, nn.Linear)]
    whiten(net, PRONG(eps=eps, basis=basis), x)
    seen = inputs_of(net, x)
    gradients_of(net, x, y)
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    for (layer, h), (W, b, M) in zip(seen.items(), expected, strict=True):
        Abar = augmented(layer, h, eps, basis)
        U = torch.linalg.solve(Abar, M.mT).mT
        tolerance = max(1e-10, 50 * 2.2e-16 * float(torch.linalg.cond(Abar)))
        found_W, found_b = dense(layer)
        assert relative(found_W - W, -0.1 * U[:, : W.shape[1]]) < tolerance
        if bias:
            assert relative(found_b - b, -0.1 * U[:, -1]) < tolerance


@every_seed
@pytest.mark.parametrize("kind", ["1d", "2d zeros", "2d groups", "2d no bias"])
def test_D6_a_step_of_a_convolution_is_preconditioned_by_the_covariance_of_its_pixels(seed, kind):
    make, shape = CONVS[kind]
    torch.manual_seed(seed)
    conv, x, lr, eps = make().double(), normal(6, *shape, seed=seed) + 1, 0.1, 0.05
    net, q, bias = nn.Sequential(conv), conv.groups, conv.bias is not None
    f = net(x)
    (f**2).sum().backward()
    W, gW = conv.weight.detach().clone(), conv.weight.grad.clone()
    gb = conv.bias.grad.clone() if bias else f.new_zeros(f.shape[1])
    b = conv.bias.detach().clone() if bias else None
    whiten(net, PRONG(eps=eps), x)
    net.zero_grad()
    (net(x) ** 2).sum().backward()
    torch.optim.SGD(net.parameters(), lr=lr).step()
    found_W, found_b = dense(net[0])
    for group in range(q):
        k, o = W.shape[1], W.shape[0] // q
        mine = slice(group * o, (group + 1) * o)
        h = x[:, group * k : (group + 1) * k].flatten(2).transpose(1, 2).reshape(-1, k)
        c = h.mean(0) if bias else torch.zeros(k, dtype=h.dtype)
        A = (h - c).mT @ (h - c) / len(h) + eps * torch.eye(k, dtype=h.dtype)
        centred = gW[mine].flatten(2) - gb[mine, None, None] * c[:, None]
        dW = -lr * torch.einsum("okp,kl->olp", centred, torch.linalg.inv(A))
        assert relative((found_W - W)[mine].flatten(2), dW) < 1e-10
        if bias:
            db = -lr * gb[mine] - torch.einsum("okp,k->o", dW, c)
            assert relative((found_b - b)[mine], db) < 1e-10


def output_gradients(net: nn.Sequential, x: Tensor, y: Tensor) -> list[Tensor]:
    """Gradients of each example's loss with respect to the outputs of the layers."""
    outputs, h = [], x
    for module in net:
        h = module(h)
        if isinstance(module, nn.Linear):
            outputs.append(h)
    return list(torch.autograd.grad((0.5 * (h - y) ** 2).sum(), outputs))


@every_seed
def test_D6_with_gradients_a_step_is_one_of_kfac(seed):
    net, x, y, eps = mlp(4, 5, 3, seed=seed), rows(60, 4, seed) / 3, normal(60, 3, seed=seed), 1e-2
    gradients_of(net, x, y)
    plain = [layer_state(m) for m in net if isinstance(m, nn.Linear)]
    factors = [g.mT @ g / len(g) for g in output_gradients(net, x, y)]
    whitener = whiten(net, PRONG(eps=eps, gradients=True), x)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    whitener.attach(opt)
    gradients_of(net, x, y)
    whitener.refit()
    seen = inputs_of(net, x)
    gradients_of(net, x, y)
    opt.step()
    for (layer, h), (W, b, M), G in zip(seen.items(), plain, factors, strict=True):
        size = G.trace() / len(G)
        damped = G + eps * size * torch.eye(len(G), dtype=G.dtype)
        Abar = augmented(layer, h, eps)
        U = size * torch.linalg.solve(damped, torch.linalg.solve(Abar, M.mT).mT)
        assert relative(dense(layer)[0] - W, -0.1 * U[:, :-1]) < 1e-9
        assert relative(dense(layer)[1] - b, -0.1 * U[:, -1]) < 1e-9


# momentum ----------------------------------------------------------------------------------------


def velocity(layer: Whitened, opt: torch.optim.SGD) -> Tensor:
    """The canonical velocity ``[dW db]`` that momentum stands for."""
    mV = opt.state[layer.weight]["momentum_buffer"]
    md = opt.state[layer.bias]["momentum_buffer"]
    mW = mV @ layer.P
    return torch.cat([mW, (md - mW @ layer.c)[:, None]], 1)


def moved(seed: int, state: str) -> list[tuple[Tensor, Tensor]]:
    """Canonical velocities before and after a refit."""
    net, x = mlp(4, 6, 3, seed=seed), rows(40, 4, seed)
    whitener = whiten(net, PRONG(eps=1e-3), x)
    opt = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    whitener.attach(opt, state=state)
    for k in range(3):
        gradients_of(net, rows(10, 4, seed + k), normal(10, 3, seed=seed + k))
        opt.step()
    before = [velocity(layer, opt) for layer in whitener.layers.values()]
    whitener.refit(rows(40, 4, seed + 9))
    after = [velocity(layer, opt) for layer in whitener.layers.values()]
    return list(zip(before, after, strict=True))


@every_seed
def test_D7_transported_momentum_keeps_the_canonical_velocity(seed):
    for before, after in moved(seed, "transport"):
        assert relative(after, before) < 1e-10


@every_seed
def test_D8_momentum_left_untouched_changes_it(seed):
    assert max(relative(after, before) for before, after in moved(seed, "keep")) > 0.1


# convolutions ------------------------------------------------------------------------------------


def by_hand(layer: Whitened, x: Tensor, pad_first: bool) -> Tensor:
    """1x1 whitening, then the convolution with ``V``."""
    pad = (1, 1, 1, 1)
    h = F.pad(x, pad) if pad_first else x
    h = F.conv2d(h - layer.c[:, None, None], layer.P[:, :, None, None])
    return F.conv2d(h if pad_first else F.pad(h, pad), layer.weight, layer.bias)


@every_seed
def test_D9_padding_first_and_D10_whitening_first(seed):
    torch.manual_seed(seed)
    conv, x = nn.Conv2d(3, 4, 3, padding=1).double(), normal(5, 3, 6, 6, seed=seed) + 1
    net = nn.Sequential(conv)
    before = output(net, x)
    whiten(net, PRONG(eps=1e-3), x)
    right = by_hand(net[0], x, pad_first=True)
    wrong = by_hand(net[0], x, pad_first=False)
    assert relative(right, before) < 1e-11
    assert relative(output(net, x), before) < 1e-11
    assert relative(wrong, before) > 0.05
    assert relative(wrong[..., 1:-1, 1:-1], before[..., 1:-1, 1:-1]) < 1e-11


# more --------------------------------------------------------------------------------------------


@every_seed
def test_D11_a_diagonal_can_be_absorbed(seed):
    net, x = mlp(4, 6, 3, seed=seed), rows(40, 4, seed)
    whiten(net, PRONG(eps=1e-3), x)
    layer, old = net[0], dense(net[0])
    V, D = layer.weight.detach().clone(), normal(4, seed=seed).abs() + 0.5
    layer.refit(Constants(D[:, None] * layer.P, layer.c))
    assert relative(layer.weight, V / D) < 1e-13
    assert all(relative(*pair) < 1e-13 for pair in zip(dense(layer), old, strict=True))


@every_seed
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_D12_25_steps_are_25_preconditioned_steps(seed, momentum):
    net, x, eps = mlp(4, 5, 3, seed=seed), rows(60, 4, seed) / 3, 1e-2
    twin = mlp(4, 5, 3, seed=seed)
    whiten(net, PRONG(eps=eps), x)
    Abars = [augmented(layer, h, eps) for layer, h in inputs_of(net, x).items()]
    ours = torch.optim.SGD(net.parameters(), lr=0.005, momentum=momentum)
    theirs = torch.optim.SGD(twin.parameters(), lr=0.005, momentum=momentum)
    for k in range(25):
        batch, y = rows(20, 4, seed + k) / 3, normal(20, 3, seed=k)
        for model, opt in ((net, ours), (twin, theirs)):
            gradients_of(model, batch, y)
            if model is twin:
                for m, Abar in zip((twin[0], twin[2]), Abars, strict=True):
                    M = torch.cat([m.weight.grad, m.bias.grad[:, None]], 1)
                    U = torch.linalg.solve(Abar, M.mT).mT
                    m.weight.grad, m.bias.grad = U[:, :-1], U[:, -1].clone()
            opt.step()
    for layer, m in ((net[0], twin[0]), (net[2], twin[2])):
        assert relative(dense(layer)[0], m.weight) < 1e-9
        assert relative(dense(layer)[1], m.bias) < 1e-9
    assert relative(output(twin, x), output(mlp(4, 5, 3, seed=seed), x)) > 0.01  # they did move


def fisher_block(layer: Whitened | nn.Linear, net: nn.Sequential, x: Tensor) -> Tensor:
    """The exact Fisher block of one layer for ``1/2 |f - y|^2``: ``mean_n J_n^T J_n``."""
    total = 0
    parameters = [layer.weight, layer.bias]
    for example in x:
        f = net(example[None])[0]
        for k in range(len(f)):
            grads = torch.autograd.grad(f[k], parameters, retain_graph=True)
            J = torch.cat([grads[0], grads[1][:, None]], 1).flatten()
            total = total + torch.outer(J, J)
    return total / len(x)


@every_seed
def test_D14_the_last_layers_block_is_the_identity_and_D13_conditions_are_measured(seed):
    net, x = mlp(4, 5, 3, seed=seed), rows(80, 4, seed) / 3
    plain = [torch.linalg.cond(fisher_block(net[k], net, x)) for k in (0, 2)]
    whiten(net, PRONG(eps=0.0), x)
    last = fisher_block(net[2], net, x)
    tolerance = max(1e-10, 50 * 2.2e-16 * float(plain[1]))
    assert (last - torch.eye(len(last), dtype=last.dtype)).abs().max() < tolerance
    first = torch.linalg.cond(fisher_block(net[0], net, x))
    assert torch.isfinite(first)  # information: smaller as a rule, but no law says so (D13)


@every_seed
def test_D15_algorithm_1_read_as_one_loop_changes_the_function(seed):
    net, x, other = mlp(4, 6, 5, 3, seed=seed), rows(40, 4, seed), rows(40, 4, seed + 7) * 2
    whitener = whiten(net, PRONG(eps=1e-3), x)
    before = output(net, x)
    layers = list(whitener.layers.values())
    V = [layer.weight.detach().clone() for layer in layers]
    d = [layer.bias.detach().clone() for layer in layers]
    U, c = [layer.P.clone() for layer in layers], [layer.c.clone() for layer in layers]
    seen = inputs_of(net, other).values()
    new = [(whitening(covariance(h), 1e-3, "pca")[0], h.mean(0)) for h in seen]
    for i in range(3):  # iteration i overwrites the constants that iteration i + 1 reads
        W = V[i] @ U[i]
        b = d[i] - W @ c[i]
        U[i], c[i] = new[i]
        if i < 2:
            U[i + 1], c[i + 1] = new[i + 1]
        V[i] = W @ torch.linalg.inv(U[i])
        d[i] = b + W @ c[i]
    h = x
    for i in range(3):
        h = (h - c[i]) @ (V[i] @ U[i]).mT + d[i]
        h = h.tanh() if i < 2 else h
    assert relative(h, before) > 0.01
    whitener.refit(other)
    assert relative(output(net, x), before) < 1e-10
    for layer, (P, mean) in zip(layers, new, strict=True):
        assert relative(layer.P.mT @ layer.P, P.mT @ P) < 1e-8
        assert relative(layer.c, mean) < 1e-10


@every_seed
def test_a_convolutional_network_keeps_its_function(seed):
    net, x = convnet(seed), normal(20, 4, 5, 5, seed=seed) + 1
    before = output(net, x)
    whitener = whiten(net, PRONG(eps=1e-4), x)
    whitener.refit(normal(20, 4, 5, 5, seed=seed + 1) * 2)
    assert relative(output(net, x), before) < 1e-10
    assert relative(output(fold(net), x), before) < 1e-10
