"""Whitened networks among the rest of torch: precision, processes, compilers."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from natgrad.whiten import PRONG, fold, whiten
from tests.whiten.nets import attached, convnet, dense, loss_of, mlp, normal, output, relative

X = normal(40, 4) + 1
SGD = torch.optim.SGD


def test_training_under_bfloat16_autocast_follows_full_precision():
    ends = []
    for enabled in (True, False):
        net = mlp(4, 8, 3).float()
        opt = attached(whiten(net, PRONG(every=3, eps=1e-1)), SGD(net.parameters(), lr=1e-2))
        for k in range(6):
            opt.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                loss = loss_of(net, normal(16, 4, seed=k).float())
            loss.backward()
            opt.step()
        ends.append(torch.cat([x.flatten() for m in (net[0], net[2]) for x in dense(m)]))
        assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert 0 < relative(*ends) < 0.05


@pytest.mark.parametrize(("gradients", "overflow"), [(True, None), (False, 3)])
def test_a_grad_scaler_changes_nothing_but_the_steps_it_skips(gradients, overflow):
    ends = []
    for scaled in (True, False):
        net = mlp(4, 5, 3).float()
        whitener = whiten(net, PRONG(every=2, gradients=gradients))
        opt = SGD(net.parameters(), lr=1e-3, momentum=0.9)
        whitener.attach(opt, canonical_decay=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
        for k in range(6):
            opt.zero_grad()
            loss = loss_of(net, normal(8, 4, seed=k).float())
            if k == overflow and not scaled:
                continue
            scaler.scale(loss * torch.inf if k == overflow else loss).backward()
            scaler.step(opt)
            scaler.update()
        assert whitener.steps == (6 if overflow is None else 5)
        ends.append(torch.cat([x.flatten() for m in (net[0], net[2]) for x in dense(m)]))
    assert relative(*ends) < 1e-5


def test_canonical_decay_knows_the_scale_that_a_fused_optimizer_undoes():
    ends = []
    for scaled in (True, False):
        net = mlp(4, 5, 3).float()
        opt = SGD(net.parameters(), lr=1e-2, fused=True)
        whiten(net, PRONG(), X.float()).attach(opt, canonical_decay=0.5)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
        scaler.scale(loss_of(net, X.float())).backward()
        scaler.step(opt)
        ends.append(dense(net[0])[0])
    assert relative(*ends) < 1e-5


def test_half_precision_training_stays_finite():
    net = mlp(4, 8, 3).bfloat16()
    opt = attached(whiten(net, PRONG(every=2)), SGD(net.parameters(), lr=1e-3, momentum=0.9))
    for k in range(5):
        opt.zero_grad()
        loss_of(net, normal(16, 4, seed=k).bfloat16()).backward()
        opt.step()
    assert all(x.isfinite().all() for x in net.state_dict().values())
    assert not torch.equal(net[0].P, net[0].identity().P)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_those_of_the_plain_pass(reentrant):
    net = convnet()
    x = normal(6, 4, 5, 5).requires_grad_()
    whiten(net, PRONG(), x.detach())
    grads = []
    for run in (lambda: net(x), lambda: checkpoint(net, x, use_reentrant=reentrant)):
        net.zero_grad()
        run().square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    # a reentrant forward runs without gradients, and may choose rows where the other does not
    close = partial(torch.allclose, rtol=1e-10, atol=1e-12) if reentrant else torch.equal
    assert all(close(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_network_is_the_same():
    net, twin = mlp(4, 5, 3), mlp(4, 5, 3)
    compiled = torch.compile(net, backend="eager")
    ends = []
    for model, called in ((net, compiled), (twin, twin)):
        opt = attached(whiten(model, PRONG(every=2)), SGD(model.parameters(), lr=1e-2))
        for k in range(4):
            opt.zero_grad()
            loss_of(called, normal(8, 4, seed=k)).backward()
            opt.step()
        ends.append(output(model, X))
    assert relative(*ends) < 1e-12
    torch._dynamo.reset()


def test_a_folded_network_is_exported():
    net, x = convnet(), normal(3, 4, 5, 5)
    whiten(net, PRONG(), x)
    before = output(net, x)
    fold(net)
    program = torch.export.export(net.eval(), (x,))
    assert relative(program.module()(x), before) < 1e-10
    plain = torch.export.export(convnet().eval(), (x,))
    assert [n.target for n in program.graph.nodes] == [n.target for n in plain.graph.nodes]


@pytest.mark.skipif(not importlib.util.find_spec("onnx"), reason="onnx is not installed")
def test_a_folded_network_is_exported_to_onnx(tmp_path: Path):
    net, x = convnet().float(), normal(3, 4, 5, 5).float()
    whiten(net, PRONG(), x)
    torch.onnx.export(fold(net).eval(), (x,), tmp_path / "net.onnx", dynamo=False)
    reference = importlib.import_module("onnx.reference")
    evaluator = reference.ReferenceEvaluator(str(tmp_path / "net.onnx"))
    (found,) = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    assert relative(torch.from_numpy(found), output(net, x)) < 1e-5


def test_a_whitened_network_is_exported_as_it_is():
    net, x = convnet(), normal(3, 4, 5, 5)
    whiten(net, PRONG(), x)
    program = torch.export.export(net.eval(), (x,))
    assert relative(program.module()(x), output(net, x)) < 1e-12


def test_functional_calls_take_other_parameters():
    net = mlp(4, 5, 3)
    whiten(net, PRONG(), X)
    zeros = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    assert torch.equal(torch.func.functional_call(net, zeros, (X,)), torch.zeros(40, 3).double())


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.body, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x, x))


def test_a_transformer_keeps_its_function_in_both_modes():
    net, x = Transformer().double(), normal(5, 7, 8)
    before = output(net, x)
    whitener = whiten(net, PRONG(), x)
    assert len(whitener.layers) == 5
    for mode in (True, False):
        assert relative(output(net.train(mode), x), before) < 1e-10
    assert relative(output(fold(net), x), before) < 1e-10


# processes ---------------------------------------------------------------------------------------


def train_on_a_part(rank: int, world: int, data: bool) -> dict[str, torch.Tensor]:
    """Six steps and their refits on this process's part of the batches."""
    net = mlp(4, 5, 3)
    part = [X[:24][rank::world], X[24:][rank::world]]
    whitener = whiten(net, PRONG(every=3, samples=24), part if data else None)
    wrapped = DistributedDataParallel(net) if dist.is_initialized() else net
    opt = attached(whitener, SGD(net.parameters(), lr=1e-2, momentum=0.9))
    for k in range(6):
        opt.zero_grad()
        loss_of(wrapped, normal(8, 4, seed=k)[rank::world]).backward()
        opt.step()
    return net.state_dict()


def process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    try:
        found = [train_on_a_part(rank, world, data) for data in (False, True)]
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="gloo is not built in"
)


@needs_gloo
def test_distributed_data_parallel_in_one_process(tmp_path: Path):
    process(0, 1, str(tmp_path))
    for data, found in enumerate(torch.load(tmp_path / "0.pt", weights_only=True)):
        expected = train_on_a_part(0, 1, bool(data))
        assert all(torch.equal(x, found[name]) for name, x in expected.items())


@needs_gloo
def test_two_processes_have_the_constants_of_one(tmp_path: Path):
    mp.spawn(process, args=(2, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for data in (False, True):
        one = train_on_a_part(0, 1, data)
        for name, x in one.items():
            assert torch.equal(parts[0][data][name], parts[1][data][name])
            if not name.endswith(("P", "weight")):  # a basis is told up to signs of its rows
                assert relative(parts[0][data][name], x) < 1e-9
        for k in ("0", "2"):
            P, expected = parts[0][data][f"{k}.P"], one[f"{k}.P"]
            assert relative(P.mT @ P, expected.mT @ expected) < 1e-8
