"""Optimizers of other packages; a package that is missing skips its tests."""

import pytest
import torch
from torch import nn

from natgrad import Categorical
from natgrad.lab.errors import UsageError
from natgrad.lab.networks import mlp
from natgrad.lab.optimizers import Task, build, peers


def task() -> Task:
    torch.manual_seed(0)
    return Task(mlp((5, 8, 8, 3), nn.Tanh), Categorical())


def step(one: Task, optimizer: torch.optim.Optimizer, seed: int = 0) -> object:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 5, generator=random)
    y = torch.randint(0, 3, (16,), generator=random)

    def closure() -> float:
        optimizer.zero_grad()
        loss = one.likelihood.nll(one.model(x), y).mean()
        torch.autograd.backward(loss)
        return loss.item()

    return optimizer.step(closure)  # type: ignore[arg-type]


def parameters(one: Task) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in one.model.parameters()])


def test_nesterov_is_torchs() -> None:
    assert build("sgd_nesterov", task(), {}).param_groups[0]["nesterov"] is True


@pytest.mark.parametrize(("name", "module"), [("soap", "pytorch_optimizer"), ("kfac_pytorch", "x")])
def test_a_missing_package_is_named_with_its_remedy(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(peers.importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"is not installed: pip install"):
        build(name, task(), {})


def test_soap_reports_the_closures_loss_and_obeys_the_schedule() -> None:
    pytest.importorskip("pytorch_optimizer")
    one = task()
    optimizer = build("soap", one, {})
    assert isinstance(step(one, optimizer), float)
    before = parameters(one)
    step(one, optimizer)
    assert not torch.equal(parameters(one), before)
    before = parameters(one)
    optimizer.param_groups[0]["lr"] = 0.0
    step(one, optimizer)
    assert torch.equal(parameters(one), before)


def test_a_method_that_kfac_pytorch_lacks() -> None:
    with pytest.raises(UsageError, match='"inverse" or "eigen", got "qr"'):
        build("kfac_pytorch", task(), {"method": "qr"})


@pytest.mark.parametrize("method", ["inverse", "eigen"])
def test_kfac_pytorch_goes_on_bit_exactly_between_refreshes(method: str) -> None:
    pytest.importorskip("kfac")
    settings = {"method": method, "stats_every": 2, "refresh_every": 4}
    whole, broken, fresh = task(), task(), task()
    optimizer, before = (build("kfac_pytorch", t, settings) for t in (whole, broken))
    for k in range(12):
        step(whole, optimizer, k)
    for k in range(7):  # the factors have moved on since the decomposition
        step(broken, before, k)
    fresh.model.load_state_dict(broken.model.state_dict())
    after = build("kfac_pytorch", fresh, settings)
    after.load_state_dict(before.state_dict())
    for k in range(7, 12):
        step(fresh, after, k)
    assert torch.equal(parameters(whole), parameters(fresh))


def test_kfac_pytorch_clips_by_the_learning_rate_of_the_moment() -> None:
    pytest.importorskip("kfac")
    one = task()
    optimizer = build("kfac_pytorch", one, {"lr": 0.5})
    assert optimizer.preconditioner.lr == 0.5
    optimizer.param_groups[0]["lr"] = 0.25
    assert optimizer.preconditioner.lr == 0.25


def test_kfac_pytorch_preconditions_as_its_formula_says() -> None:
    pytest.importorskip("kfac")
    one = task()
    settings = {"lr": 1.0, "momentum": 0.0, "kl_clip": 0.0, "damping": 0.1}
    optimizer = build("kfac_pytorch", one, settings)
    layer = one.model[0]
    before = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().clone()
    step(one, optimizer)
    moved = before - torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    helper = next(h for name, h in optimizer.preconditioner._layers.values() if name == "0")
    A, G = helper.a_factor, helper.g_factor
    eye = torch.eye
    plain = task()
    step(plain, build("sgd_nesterov", plain, {}))
    first = plain.model[0]
    gradient = torch.cat([first.weight.grad, first.bias.grad[:, None]], 1)
    expected = torch.linalg.solve(G + 0.1 * eye(len(G)), gradient)
    expected = torch.linalg.solve(A + 0.1 * eye(len(A)), expected, left=False)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)
