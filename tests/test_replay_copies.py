"""What is remembered of calls in copies, compiled and wrapped models, and other orders of calls."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import natgrad
from natgrad import Categorical
from tests.networks import mlp, normal
from tests.test_replay import BATCH, X


def stepped(call: Any, opt: torch.optim.Optimizer, steps: int = 2) -> Tensor:
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    for k in range(steps):
        opt.zero_grad()
        F.cross_entropy(call(normal(BATCH, 4, seed=k)), y).backward()
        opt.step(targets=y)
    parameters = (p for group in opt.param_groups for p in group["params"])
    return torch.cat([p.detach().flatten() for p in parameters])


def tuned(net: nn.Module, method=natgrad.KFAC) -> torch.optim.Optimizer:
    damping = natgrad.damping.LevenbergMarquardt(0.1, every=1, reject_every=1)
    return method(net, lr="auto", momentum="auto", damping=damping, likelihood=Categorical())


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda both: pickle.loads(pickle.dumps(both))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("method", [natgrad.KFAC, natgrad.TEKFAC, natgrad.ExactNGD])
def test_a_copy_of_model_and_optimizer_goes_on_by_itself(copied, method):
    net = mlp(4, 5, 3)
    opt = tuned(net, method)
    stepped(net, opt)
    net(X).sum().backward()
    twin, other = copied((net, opt))
    assert other.tuner.replay.calls == []
    assert other.tuner.adapted is other.preconditioner.damping
    assert other.tuner.adapted is not opt.tuner.adapted
    assert torch.equal(stepped(twin, other), stepped(net, opt))
    assert opt.stats() == pytest.approx(other.stats(), nan_ok=True)


@pytest.fixture
def _afresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_afresh")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own
@pytest.mark.parametrize("of_compiled", [False, True])
def test_compiled(of_compiled):
    net, twin = mlp(4, 5, 3), mlp(4, 5, 3)
    opt = None if of_compiled else tuned(net)
    call = torch.compile(net, backend="eager")
    opt = opt or tuned(call)
    assert torch.allclose(stepped(call, opt), stepped(twin, tuned(twin)), rtol=1e-10)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not built in")
@pytest.mark.parametrize("of", ["the model", "the wrapper"])
def test_wrapped_for_several_processes(tmp_path: Path, of):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        net, twin = mlp(4, 5, 3), mlp(4, 5, 3)
        wrapped = DistributedDataParallel(net)
        found = stepped(wrapped, tuned(net if of == "the model" else wrapped))
        assert torch.equal(found, stepped(twin, tuned(twin)))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("method", [natgrad.KFAC, natgrad.ExactNGD])
def test_gradients_may_be_dropped_between_forward_and_backward(method):
    ends = []
    for between in (False, True):
        net, y = mlp(4, 5, 3), torch.tensor([0, 1, 2, 0, 1, 2])
        opt = tuned(net, method)
        for k in range(3):
            if not between:
                opt.zero_grad()
            loss = F.cross_entropy(net(normal(BATCH, 4, seed=k)), y)
            if between:
                opt.zero_grad()
            loss.backward()
            opt.step(targets=y)
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*ends)
