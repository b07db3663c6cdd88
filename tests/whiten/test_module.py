"""A whitened layer by itself: constants, precision, devices, copies."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from natgrad.whiten import PRONG, Constants, Whitened, fold, whiten
from tests.whiten.nets import convnet, dense, eye, mlp, normal, output, relative

X = normal(30, 4, 5, 5) + 1


def whitened(dtype: torch.dtype = torch.float64, **kwargs) -> nn.Sequential:
    net = convnet().to(dtype)
    whiten(net, PRONG(eps=1e-3, **kwargs), X.to(dtype))
    return net


@pytest.mark.parametrize("basis", ["pca", "zca", "cholesky", "diagonal"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_the_function_stays_through_whitening_refits_and_folding(basis, dtype, tolerance):
    net, x = convnet().to(dtype), X.to(dtype)
    before = output(net, x)
    whitener = whiten(net, PRONG(eps=1e-3, basis=basis), x)
    assert relative(output(net, x), before) < tolerance
    whitener.refit(2 * x + 1)
    assert relative(output(net, x), before) < tolerance
    assert relative(output(fold(net), x), before) < tolerance


def test_parameters_are_trained_and_constants_are_not():
    net = whitened(gradients=True)
    assert [name for name, _ in net.named_parameters()] == [
        "0.weight", "0.bias", "2.weight", "5.weight", "5.bias", "7.weight", "7.bias",
    ]  # fmt: skip
    output = net(X)
    output.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert {name for name, _ in net.named_buffers()} == {
        "0.P", "0.c", "0.Q", "2.P", "2.Q", "5.P", "5.c", "5.Q", "7.P", "7.c", "7.Q",
    }  # fmt: skip


def test_gradients_reach_the_input_through_the_constants():
    net, plain = mlp(4, 5, 3), mlp(4, 5, 3)
    x = normal(20, 4)
    whiten(net, PRONG(), x)
    grads = []
    for model in (net, plain):
        h = x.clone().requires_grad_()
        model(h).square().sum().backward()
        grads.append(h.grad)
    assert relative(*grads) < 1e-12


def test_constants_that_do_not_fit_or_are_not_finite_are_refused():
    layer = whitened()[5]
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"5: P must have shape \(27, 27\), got \(3, 3\)"):
        layer.refit(Constants(eye(3), layer.c))
    with pytest.raises(ValueError, match=r"5: c must have shape \(27,\), got None"):
        layer.refit(Constants(layer.P))
    with pytest.raises(ValueError, match="5: Q must have shape None"):
        layer.refit(Constants(layer.P, layer.c, eye(6)))
    with pytest.raises(ValueError, match="5: constants or parameters are not finite"):
        layer.refit(Constants(layer.P * torch.nan, layer.c))
    assert all(torch.equal(x, before[key]) for key, x in layer.state_dict().items())


def test_constants_of_ones_own_need_no_inverse():
    layer = whitened()[5]
    old, P = dense(layer), normal(27, 27) + 6 * eye(27)
    layer.refit(Constants(P, normal(27)))
    assert torch.equal(layer.P, P)
    assert all(relative(*pair) < 1e-10 for pair in zip(dense(layer), old, strict=True))


def test_a_graph_from_before_a_refit_can_not_be_gone_through_backwards():
    net = whitened()
    loss = net(X).sum()
    net[5].refit(net[5].identity())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_the_layer_knows_can_be_read():
    net = whitened()
    assert (net[5].in_features, net[0].kernel_size, net[2].bias) == (27, (3, 3), None)
    with pytest.raises(AttributeError, match="nonsense"):
        net[5].nonsense  # noqa: B018
    assert repr(net[0]) == "Whitened(Conv2d, 2 -> 3, groups=2, centred=True)"
    assert repr(net[2]) == "Whitened(Conv2d, 6 -> 3, centred=False)"


def test_hooks_of_the_layer_run_while_it_is_whitened_and_after():
    net, seen = mlp(4, 5, 3), []
    net[0].register_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
    whiten(net, PRONG(), normal(20, 4))
    handle = net[0].register_forward_hook(lambda m, args, out: seen.append("later"))
    seen.clear()
    net(normal(2, 4))
    fold(net)(normal(2, 4))
    assert seen == ["Whitened", "later", "Linear", "later"]
    handle.remove()
    net(normal(2, 4))
    assert seen[4:] == ["Linear"]


# copies ------------------------------------------------------------------------------------------


def test_a_state_dict_holds_the_plain_keys_and_comes_back():
    net, other = whitened(), convnet(seed=1)
    plain = convnet().state_dict().keys()
    assert plain < net.state_dict().keys()
    whiten(other, PRONG())
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(output(other, X), output(net, X))


def test_a_copy_is_whole_and_on_its_own():
    net = whitened()
    whitener = whiten(mlp(4, 3), PRONG(), None)
    other = copy.deepcopy(net)
    assert torch.equal(output(other, X), output(net, X))
    before = output(net, X)
    with torch.no_grad():
        other[5].weight.zero_()
    fold(other)
    assert isinstance(other[5], nn.Linear)
    assert torch.equal(output(net, X), before)
    assert isinstance(net[5], Whitened)
    assert whitener.layers["0"].followers == []


def test_a_copy_is_not_listened_to():
    net = mlp(4, 5, 3)
    whitener = whiten(net, PRONG(every=5))
    whitener.attach(torch.optim.SGD(net.parameters(), lr=0.1))
    assert net[0].heard is not None
    other = copy.deepcopy(net)
    assert other[0].heard is None
    assert other[0].followers == []


def test_a_whole_model_is_saved_and_loaded():
    net, file = whitened(), io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert torch.equal(output(torch.load(file, weights_only=False), X), output(net, X))


# precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_moves_to_another_precision_and_folds_there(dtype):
    net = whitened()
    before, x = output(net, X), X.to(dtype)
    net.to(dtype)
    assert {x.dtype for x in net.state_dict().values()} == {dtype}
    tolerance = 20 * torch.finfo(dtype).eps
    assert relative(output(net, x).double(), before) < tolerance
    assert relative(output(fold(net), x).double(), before) < tolerance


def test_parameters_stay_the_same_objects_when_moved():
    net = whitened()
    parameters = list(net.parameters())
    net.float().double()
    fold(net)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))


def test_a_half_precision_model_is_whitened_by_statistics_in_double():
    net = mlp(4, 5, 3).bfloat16()
    x = (normal(200, 4) + 5).bfloat16()
    whiten(net, PRONG(), x)
    assert net[0].P.dtype == torch.bfloat16
    expected = torch.cov(x.double().mT, correction=0) + 1e-3 * eye(4)
    assert relative(net[0].P.double().mT @ net[0].P.double(), torch.linalg.inv(expected)) < 0.02


def test_under_autocast_the_weights_are_worked_out_in_full():
    net, x = whitened(torch.float32), X.float()
    seen = []
    net[5].view.compute = lambda h, w, b, run=net[5].view.compute: seen.append(w) or run(h, w, b)
    exact = output(net, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = output(net, x)
    plain, whole = seen
    assert torch.equal(plain, whole)
    assert whole.dtype == torch.float32
    assert found.dtype == torch.bfloat16
    assert relative(found.float(), exact) < 0.05


def test_on_the_meta_device_shapes_come_out():
    net = mlp(4, 5, 3)
    whiten(net, PRONG())
    assert net.to("meta")(torch.zeros(7, 4, device="meta", dtype=torch.float64)).shape == (7, 3)
