"""Whitened linear layers on rows of activations: the same function, in fewer operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from natgrad.whiten import PRONG, triangle, whiten
from natgrad.whiten.bases import BASES, whitening
from natgrad.whiten.coordinates import Constants, canonical
from natgrad.whiten.rows import rows_are_cheaper, through_rows
from tests.networks import mlp, normal, relative


def constants(k: int, o: int, basis: str, centred: bool, gradients: str) -> Constants:
    x = normal(3 * k, k) @ normal(k, k, seed=1)
    P, _ = whitening(x.mT @ x / len(x), 0.1, basis)
    Q = {"none": None, "dense": normal(o, o, seed=2), "diagonal": normal(o, 1, seed=3)}[gradients]
    return Constants(P, normal(k, seed=4) if centred else None, Q, lower=basis == "cholesky")


@pytest.mark.parametrize("gradients", ["none", "dense", "diagonal"])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("k", [1, 3, 9])
def test_rows_and_weights_give_the_same_output_and_gradients(
    k, basis, centred, gradients, monkeypatch
):
    monkeypatch.setattr(triangle, "WIDTH", 2)
    o, at = 5, constants(k, 5, basis, centred, gradients)
    results = []
    for rows in (True, False):
        x = normal(2, 3, k, seed=5).requires_grad_()
        V, d = normal(o, k, seed=6).requires_grad_(), normal(o, seed=7).requires_grad_()
        if rows:
            z = through_rows(at, x, V, d)
        else:
            W, b = canonical(at, V.unsqueeze(-2), d)
            z = F.linear(x, W.squeeze(-2), b)
        found = torch.autograd.grad((z * normal(*z.shape, seed=8)).sum(), [x, V, d])
        results.append([z, *found])
    for one, other in zip(*results, strict=True):
        assert relative(one, other) < 1e-11


def test_without_a_bias_there_is_nothing_to_add():
    at = constants(4, 3, "pca", False, "none")
    x, V = normal(6, 4), normal(3, 4)
    assert relative(through_rows(at, x, V, None), x @ at.P.mT @ V.mT) < 1e-13


@pytest.mark.parametrize(
    ("rows", "grad", "cheaper"),
    [(3, True, True), (7, True, True), (9, True, False), (15, False, True), (17, False, False)],
)
def test_rows_are_taken_where_they_are_fewer_than_outputs(rows, grad, cheaper):
    at = constants(6, 8, "pca", True, "none")
    x = normal(rows, 6).requires_grad_(grad)
    assert rows_are_cheaper(at, 8, x) is cheaper


@pytest.mark.parametrize("gradients", ["none", "dense", "diagonal"])
@pytest.mark.parametrize("to_input", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_the_choice_is_the_form_with_fewer_operations(gradients, to_input, trained):
    """Counted by torch, all products of a layer included."""
    k, o = 6, 8
    at = constants(k, o, "pca", True, gradients)

    def flops(rows: int, by_rows: bool) -> int:
        x = normal(rows, k).requires_grad_(to_input)
        V = normal(o, 1, k, seed=1).requires_grad_(trained)
        d = normal(o, seed=2).requires_grad_()
        with FlopCounterMode(display=False) as count:
            if by_rows:
                z = through_rows(at, x, V.squeeze(1), d)
            else:
                W, b = canonical(at, V, d)
                z = F.linear(x, W.squeeze(1), b)
            z.sum().backward()
        return count.get_total_flops()

    for rows in (1, 3, 7, 9, 15, 40):
        x = normal(rows, k).requires_grad_(to_input)
        saved = flops(rows, False) - flops(rows, True)
        if abs(saved) > 4 * (o * o + o * k):  # products with vectors are not in the choice
            assert rows_are_cheaper(at, o, x, trained) is (saved > 0), rows


def test_without_gradients_there_is_one_product_of_each():
    at, x = constants(6, 8, "pca", True, "none"), normal(9, 6)
    with torch.no_grad():
        assert rows_are_cheaper(at, 10, x)
        assert not rows_are_cheaper(at, 8, x)
    assert rows_are_cheaper(at, 8, x)
    assert not rows_are_cheaper(at, 8, x, trained=False)


def test_under_autocast_weights_are_worked_out_in_full_precision():
    at = constants(6, 8, "pca", True, "none")
    with torch.autocast("cpu", torch.bfloat16):
        assert not rows_are_cheaper(at, 8, normal(2, 6))


@pytest.mark.parametrize("basis", BASES)
def test_a_network_computes_the_same_on_few_and_on_many_rows(basis):
    net, data = mlp(6, 9, 8, 3), normal(200, 6)
    plain = net(data)
    whiten(net, PRONG(every=5, eps=1e-3, basis=basis), data=data)
    assert relative(net(data), plain) < 1e-10
    few = torch.cat([net(data[k : k + 2]) for k in range(0, 200, 2)])
    assert relative(few, plain) < 1e-10


def test_constants_of_a_triangular_layer_must_be_triangles():
    net, data = mlp(6, 9, 3), normal(200, 6)
    whiten(net, PRONG(every=5, eps=1e-3, basis="cholesky"), data=data)
    full: Tensor = normal(6, 6, seed=9)
    with pytest.raises(ValueError, match="P must be lower triangular"):
        net[0].refit(Constants(full, net[0].c.clone()))
    net[0].refit(Constants(full.tril(), net[0].c.clone()))
