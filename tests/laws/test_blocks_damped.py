"""C14 to C17: how TKFAC and the eigenvalue-corrected and exact blocks are damped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from natgrad.blocks import EKFAC, KFAC, TEKFAC, TKFAC, Diagonal, Exact
from natgrad.sample import Sample
from tests import oracle
from tests.measured import block, damped_solve, layers, partial_traces
from tests.networks import normal, relative

every_kind = pytest.mark.parametrize("kind", oracle.KINDS)
every_seed = pytest.mark.parametrize("seed", range(4))
vectors_and_positions = pytest.mark.parametrize(
    "shape", [(9, 3), (6, 2, 3)], ids=["rows", "shared"]
)


@every_kind
@every_seed
@pytest.mark.parametrize("damping", [1e-2, 1.0])
def test_C14_tkfac_damps_its_normalised_factors_by_the_damping_over_delta(kind, seed, damping):
    for sample, F in layers(kind, seed):
        made = block(TKFAC, sample, damping)
        (P, S), delta = partial_traces(F, *made.shape), F.trace()
        M = normal(*made.shape, seed=seed)
        root = (damping / delta).sqrt()
        Phi, Psi = (X / delta + root * torch.eye(len(X), dtype=X.dtype) for X in (P, S))
        expected = torch.linalg.solve(Psi, torch.linalg.solve(Phi, M.mT).mT) / delta
        assert relative(made.solve(M), expected) < 1e-11


@every_kind
@every_seed
@vectors_and_positions
@pytest.mark.parametrize("of", [EKFAC, TEKFAC, Exact, Diagonal])
@pytest.mark.parametrize("damping", [1e-2, 1.0])
def test_C15_the_solution_is_that_of_the_damped_matrix_itself(kind, seed, shape, of, damping):
    for sample, _ in layers(kind, seed, shape):
        made = block(of, sample, damping)
        M = normal(*made.shape, seed=seed)
        assert relative(made.solve(M), damped_solve(made.dense(), M, damping)) < 1e-10


class TraceOverDim:
    """(3.5): ``max(trace, nu) / dim``."""

    def __init__(self, nu: float) -> None:
        self.nu = nu

    def ridge(self, trace: Tensor, dim: int) -> Tensor:
        return trace.clamp_min(self.nu) / dim


@every_seed
@pytest.mark.parametrize("of", [EKFAC, TEKFAC, Exact, Diagonal, KFAC, TKFAC])
def test_C16_damping_by_the_trace_makes_steps_homogeneous_of_degree_minus_one(seed, of):
    for sample, _ in layers("categorical", seed):
        M, scaled = normal(sample.g.shape[-1], sample.a.shape[-1]), Sample(sample.a, 5 * sample.g)
        one, other = (block(of, s, TraceOverDim(0.0)) for s in (sample, scaled))
        assert relative(other.solve(5 * M), one.solve(M) / 5) < 1e-12
        floor = TraceOverDim(100 * float(block(of, sample).trace()))
        one, other = (block(of, s, floor) for s in (sample, scaled))
        assert relative(other.solve(5 * M), one.solve(M) / 5) > 0.1


@every_kind
@every_seed
@pytest.mark.parametrize("of", [EKFAC, TEKFAC, TKFAC, Exact])
def test_C17_damping_by_the_trace_adds_the_mean_eigenvalue_of_the_exact_block(kind, seed, of):
    for sample, F in layers(kind, seed):
        made = block(of, sample, TraceOverDim(0.0))
        M = normal(*made.shape, seed=seed)
        mean = torch.linalg.eigvalsh(F).mean()
        assert relative(made.solve(M), damped_solve(made.dense(), M, mean)) < 1e-11
