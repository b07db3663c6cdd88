"""Decompositions that fail: again in float64, the last good one, plain, and at last an error."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import natgrad
from natgrad import Categorical
from natgrad.damping import Constant
from tests.brute_force import METHODS, cnn
from tests.networks import mlp, normal, relative

BLOCKWISE = METHODS[:4]
DAMPINGS = {"number": 0.05, "eigenvalues": Constant(0.05)}
every_block = pytest.mark.parametrize("method", BLOCKWISE)
every_damping = pytest.mark.parametrize("damping", DAMPINGS)
DECOMPOSED = ("_inverse", "_vectors", "_values")


class Decompositions:
    """Breaks ``torch.linalg`` for matrices of the given dtypes and sizes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken: tuple[torch.dtype, ...] = ()
        self.sizes: tuple[int, ...] | None = None
        eigh, cholesky = torch.linalg.eigh, torch.linalg.cholesky_ex

        def breaking_eigh(M: Tensor):
            if self._breaks(M):
                raise torch.linalg.LinAlgError("broken for the test")
            return eigh(M)

        def breaking_cholesky(M: Tensor, **kwargs: Any):
            L, info = cholesky(M, **kwargs)
            return L, torch.ones_like(info) if self._breaks(M) else info

        monkeypatch.setattr(torch.linalg, "eigh", breaking_eigh)
        monkeypatch.setattr(torch.linalg, "cholesky_ex", breaking_cholesky)

    def _breaks(self, M: Tensor) -> bool:
        return M.dtype in self.broken and (self.sizes is None or M.shape[-1] in self.sizes)

    def fail(self, *dtypes: torch.dtype, sizes: tuple[int, ...] | None = None) -> None:
        self.broken, self.sizes = dtypes, sizes


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> Decompositions:
    return Decompositions(monkeypatch)


def make(method: str, damping: str, net: nn.Module | None = None, **kwargs):
    net = mlp(4, 6, 3) if net is None else net
    given = {"lr": 0.1, "momentum": 0.0, "likelihood": Categorical(), "fisher": "exact"}
    return net, getattr(natgrad, method)(net, damping=DAMPINGS[damping], **{**given, **kwargs})


def step(net: nn.Module, opt: torch.optim.Optimizer, k: int = 0) -> list[Tensor]:
    """The plain gradients before the step."""
    weight = next(net.parameters())
    x = normal(8, *((2, 5, 5) if weight.ndim == 4 else (4,)), seed=k).to(weight.dtype)
    opt.zero_grad()
    F.cross_entropy(net(x), x.flatten(1)[:, :3].argmax(1)).backward()
    plain = [p.grad.clone() for p in net.parameters()]
    opt.step()
    return plain


def natural(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("method", METHODS)
@every_damping
@pytest.mark.parametrize("make_net", [cnn, lambda: mlp(4, 6, 3)], ids=["cnn", "mlp"])
def test_what_fails_in_single_precision_is_done_in_double(
    method, damping, make_net, decompositions
):
    runs = []
    for broken in ((), (torch.float32,)):
        net, opt = make(method, damping, make_net().float())
        for k in range(2):
            decompositions.fail(*broken)
            step(net, opt, k)
        runs.append(natural(net))
        assert all(opt.stats()[name] == 0 for name in opt.stats() if name.endswith("failures"))
    assert relative(runs[1], runs[0]) < 1e-2


@pytest.mark.parametrize("n", [6, 60])
def test_the_exact_gradient_falls_back_on_singular_vectors(n, decompositions):
    runs = []
    for broken in ((), (torch.float64,)):
        decompositions.fail(*broken)
        net, opt = make("ExactNGD", "number", mlp(4, 3))
        x = normal(n, 4)
        F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
        opt.step()
        runs.append(natural(net))
    assert relative(runs[1], runs[0]) < 1e-9


@every_block
@every_damping
def test_the_first_failure_of_all_leaves_the_gradient_plain(method, damping, decompositions):
    net, opt = make(method, damping)
    decompositions.fail(torch.float64, sizes=(5,))
    with pytest.warns(RuntimeWarning, match=r"layer '0', factor A 5x5 .* its gradient stays plain"):
        plain = step(net, opt)
    same = [torch.equal(p.grad, g) for p, g in zip(net.parameters(), plain, strict=True)]
    assert same == [True, True, False, False]
    assert (opt.stats()["step"], opt.stats()["skipped"]) == (1, 0)
    decompositions.fail()
    plain = step(net, opt, 1)
    assert not torch.allclose(net[0].weight.grad, plain[0])
    assert opt.stats()["0/failures"] == 0


@every_block
@every_damping
def test_later_the_last_good_decomposition_stays(method, damping, decompositions):
    net, opt = make(method, damping)
    step(net, opt)
    block = opt.preconditioner.layers[0].block
    good = {k: v.clone() for k, v in block.state_dict().items() if k.endswith(DECOMPOSED)}
    statistics = copy.deepcopy(block.state_dict())
    decompositions.fail(torch.float64, sizes=(5, 6))
    with pytest.warns(RuntimeWarning, match=r"layer '0', factor .*\(1 in a row\); the last good"):
        plain = step(net, opt, 1)
    assert good
    assert all(torch.equal(block.state_dict()[k], v) for k, v in good.items())
    changed = [k for k in statistics if not torch.equal(block.state_dict()[k], statistics[k])]
    assert changed  # statistics go on
    assert not torch.allclose(net[0].weight.grad, plain[0])
    assert opt.stats()["0/failures"] == 1
    assert opt.stats()["2/failures"] == 0


@every_block
@every_damping
def test_three_failures_in_a_row_raise_with_layer_factor_eigenvalues_and_advice(
    method, damping, decompositions
):
    net, opt = make(method, damping)
    step(net, opt)
    decompositions.fail(torch.float64, sizes=(3,))
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="in a row"):
            step(net, opt, 1)
    message = (
        r"layer '2', factor G 3x3 \(eigenvalues -?[\d.e+-]+ to [\d.e+-]+\), in float64 too "
        r"\(3 in a row\).*Raise the damping, or look for huge or constant activations"
    )
    with pytest.raises(RuntimeError, match=message):
        step(net, opt, 2)
    decompositions.fail()
    step(net, opt, 3)
    assert opt.stats()["2/failures"] == 0
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


@every_block
def test_a_success_between_failures_forgives(method, decompositions):
    net, opt = make(method, "number")
    step(net, opt)
    for round_ in range(2):
        decompositions.fail(torch.float64, sizes=(3,))
        for _ in range(2):
            with pytest.warns(RuntimeWarning, match="in a row"):
                step(net, opt, round_)
        decompositions.fail()
        step(net, opt, round_)


@every_block
def test_the_block_of_a_norm_layer_is_named_too(method, decompositions):
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    net, opt = make(method, "number", net)
    decompositions.fail(torch.float64, sizes=(2,))
    with pytest.warns(RuntimeWarning, match=r"layer '1', factor F 4x2x2 .*gradient stays plain"):
        step(net, opt)
