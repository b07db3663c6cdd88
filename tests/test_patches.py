"""Sums over the patches of images, against the patches written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from natgrad import blocks, shifts
from natgrad.decompose import decompose
from natgrad.layers.conv import ConvView
from natgrad.patches import Patches, Window
from natgrad.sample import Sample
from natgrad.shifts import shifted_moment
from tests.networks import normal


def close(found: Tensor, expected: Tensor, bound: float = 1e-12) -> bool:
    return bool((found - expected).norm() <= bound * expected.norm())


def unfolded_moment(x: Tensor, kernel: tuple[int, int], padding: shifts.Padding) -> Tensor:
    """The same from torch's own unfolding, one group at a time."""
    sides = [side for pair in reversed(padding) for side in pair]
    rows = [F.unfold(F.pad(group, sides), kernel).mT.flatten(0, 1) for group in x]
    return torch.stack([each.mT @ each for each in rows])


@st.composite
def images(draw) -> tuple[Tensor, tuple[int, int], shifts.Padding]:
    """Images ``[q, n, C, H, W]`` of one to seven pixels a side, a kernel, and its padding."""
    size, kernel = (tuple(draw(st.integers(1, top)) for _ in range(2)) for top in (7, 5))
    sides = [tuple(draw(st.integers(0, k)) for _ in range(2)) for k in kernel]
    padding = tuple(sides)
    assume(all(x + sum(p) >= k for x, p, k in zip(size, padding, kernel, strict=True)))
    leading = (draw(st.integers(1, top)) for top in (3, 3, 4))
    return normal(*leading, *size, seed=draw(st.integers(0, 99))), kernel, padding


@settings(max_examples=150, deadline=None)
@given(images())
def test_shifts_give_the_moment_of_the_patches(drawn):
    assert close(shifted_moment(*drawn), unfolded_moment(*drawn))


def test_the_border_matters(monkeypatch):
    """Negative control: every offset seeing every pixel is right for whole differences only."""
    x, padding = normal(1, 2, 3, 6, 6), ((1, 1), (1, 1))
    whole = [shifts.Span(0, 6, (0, 1, 2))]
    expected = unfolded_moment(x, (3, 3), padding)
    monkeypatch.setattr(shifts, "_spans", lambda *_: whole)
    shifts._rows.cache_clear()
    wrong = shifted_moment(x, (3, 3), padding)
    shifts._rows.cache_clear()
    assert not close(wrong, expected, 1e-2)


@pytest.mark.parametrize("bound", [1, 2**22])
def test_images_are_taken_in_parts(monkeypatch, bound):
    monkeypatch.setattr(shifts, "NEIGHBOURHOODS", bound)
    x, padding = normal(2, 90, 2, 5, 4), ((1, 1), (0, 1))
    assert close(shifted_moment(x, (3, 2), padding), unfolded_moment(x, (3, 2), padding))


CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw) -> tuple[nn.Module, Tensor]:
    """A convolution, mostly of stride and dilation 1, and an input."""
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))
    top = 5 if dims < 3 else 2

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, q = each(1, top), draw(st.sampled_from([1, 1, 2]))
    plain = draw(st.sampled_from([True, True, False]))
    stride, dilation = ((1,) * dims,) * 2 if plain else (each(1, 2), each(1, 2))
    padding = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    mode = draw(st.sampled_from(["zeros", "zeros", "circular"]))
    size = each(1 if mode == "zeros" else 5, 7 if dims < 3 else 5)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    assume(all(x + 2 * p >= r for x, p, r in zip(size, padding, reach, strict=True)))
    conv = CONVS[dims](
        q * draw(st.integers(1, 2)), q, kernel, stride=stride, padding=padding,
        dilation=dilation, groups=q, bias=draw(st.booleans()), padding_mode=mode,
    )  # fmt: skip
    n = draw(st.integers(1, 3))
    return conv.double(), normal(n, conv.in_channels, *size, seed=draw(st.integers(0, 99)))


@pytest.fixture(params=["free", "dear"])
def calls(request, monkeypatch):
    """Shifts wherever they can be had, or nowhere."""
    worth = 0.0 if request.param == "free" else 1e30
    monkeypatch.setattr(shifts, "PRODUCT", worth)
    monkeypatch.setattr(shifts, "ADDITION", worth)
    return request.param


def test_sums_are_those_of_the_rows(calls):
    @settings(max_examples=80, deadline=None)
    @given(convolutions())
    def run(drawn):
        conv, h = drawn
        patches = ConvView("conv", conv).inputs(h)
        rows = patches.rows
        assert patches.shape == rows.shape
        flat = rows.flatten(-3, -2)
        assert close(patches.second_moment(), flat.mT @ flat)
        assert torch.allclose(patches.mean(), rows.mean(-2, keepdim=True), rtol=1e-12, atol=1e-13)
        assert torch.allclose(patches.norms(), rows.square().sum(-1), rtol=1e-12, atol=1e-12)

    run()


@pytest.mark.parametrize("bound", [1, 2**22])
def test_weighted_sums_are_those_of_the_rows(monkeypatch, bound):
    monkeypatch.setattr("natgrad.patches.ROWS_BYTES", bound)

    @settings(max_examples=80, deadline=None)
    @given(convolutions())
    def run(drawn):
        conv, h = drawn
        patches = ConvView("conv", conv).inputs(h)
        rows = patches.rows.clone()
        weights = normal(*rows.shape[:-1], seed=1).square()
        weights[..., :1, :] = 0
        expected = (rows * weights.unsqueeze(-1)).flatten(-3, -2).mT @ rows.flatten(-3, -2)
        assert torch.allclose(patches.weighted_moment(weights), expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(patches.rows, rows)  # they are weighted in memory of their own

    run()


def test_weighted_sums_need_no_rows_of_the_whole_batch():
    sample = Sample(patches_of(normal(3, 2, 9, 8)), normal(1, 3, 72, 5))
    sample.input_moment(sample.output_norms())
    sample.input_norms()
    assert "rows" not in vars(sample.inputs)


@settings(max_examples=80, deadline=None)
@given(convolutions(), st.integers(1, 3))
def test_gradients_of_examples_are_a_convolution_in_groups(drawn, columns):
    conv, h = drawn
    view = ConvView("conv", conv)
    patches, z = view.inputs(h), conv(h).detach()
    g = torch.stack([view.output_rows(normal(*z.shape, seed=seed)) for seed in range(columns)], -4)
    expected = g.mT @ patches.rows.unsqueeze(-4)
    assert torch.allclose(patches.gradients(g), expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_had_without_rows_where_these_are_many(monkeypatch):
    sample = Sample(patches_of(normal(3, 2, 9, 8)), normal(2, 3, 72, 5))
    monkeypatch.setattr("natgrad.sample.CHUNK_BYTES", 2 * 5 * 19 * 8 * 2)  # two examples
    J = torch.cat(list(sample.gradients()), -3)
    assert "rows" not in vars(sample.inputs)
    assert torch.allclose(J, sample.g.mT @ sample.a, rtol=1e-12, atol=1e-12)


def patches_of(h: Tensor) -> Patches:
    return Patches(h, Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), ones=True))


@pytest.mark.parametrize("memory", ["channels last", "strided"])
def test_the_memory_of_the_image_does_not_matter(calls, memory):
    h = normal(2, 4, 5, 5)
    other = h.to(memory_format=torch.channels_last)
    if memory == "strided":
        other = torch.stack([h, h], -1)[..., 1]
    assert torch.equal(patches_of(other).second_moment(), patches_of(h).second_moment())


def test_the_cheaper_way_is_taken_by_count():
    small, large = patches_of(torch.zeros(2, 3, 4, 4)), patches_of(torch.zeros(128, 16, 32, 32))
    assert small.moment_products() is None  # of rows
    assert large.moment_products() == 128 * 16**2 * 32 * (3 * 32 + 5 * 31 + 5 * 30)


def test_the_moment_of_weight_one_is_the_moment(calls):
    sample = Sample(patches_of(normal(2, 3, 4, 4)), normal(1, 2, 16, 5))
    moment, _ = sample.input_moment(), sample.reduced()
    assert calls == "dear" or "rows" not in vars(sample.inputs)
    assert close(moment, sample.input_moment(torch.ones(2, 16).double()))


def test_what_is_kept_is_the_image():
    h = normal(2, 3, 4, 4)
    sample = Sample(patches_of(h), normal(1, 2, 16, 5))
    expected = sample.a.clone()
    kept = sample.kept()
    assert kept.nbytes == h.nbytes + sample.g.nbytes
    h.zero_()
    assert torch.equal(Sample.from_state(kept.state()).a, expected)
    assert torch.equal(kept.a, expected)
    assert kept.to(torch.float32).a.dtype == torch.float32


@pytest.mark.parametrize("block", ["KFAC", "EKFAC", "TKFAC", "TEKFAC"])
@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_no_block_makes_the_rows_of_a_whole_batch(monkeypatch, block, shared):
    monkeypatch.setattr(shifts, "PRODUCT", 0.0)
    monkeypatch.setattr(shifts, "ADDITION", 0.0)
    sample = Sample(patches_of(normal(40, 3, 8, 8)), normal(1, 40, 64, 4))  # no null space
    made = block_of(getattr(blocks, block), sample, shared)
    assert "rows" not in vars(sample.inputs)
    written = block_of(getattr(blocks, block), Sample(sample.a, sample.g), shared)
    assert close(made.dense(), written.dense(), 1e-9)


def block_of(Block: type[blocks.Block], sample: Sample, shared: str) -> blocks.Block:
    """A block that has seen the sample, in its own eigenbasis."""
    block = Block((4, 28), damping=1e-2, dtype=torch.float64, shared=shared)
    block.observe(sample)
    for moment in block.moments():
        moment.commit()
    wanted = block.factors()
    block.load(dict(zip(wanted, decompose(list(wanted.values())), strict=True)))
    block.rescale(sample)
    for moment in block.moments():
        moment.commit()
    return block


@pytest.mark.parametrize("widest", [None, 32])
@pytest.mark.parametrize("conv", [{}, {"stride": 2}, {"bias": False}, {"groups": 2}])
def test_images_much_smaller_than_the_moment_wait_in_its_place(conv, widest, monkeypatch):
    layer = nn.Conv2d(8, 4, 3, padding=1, **conv).double()
    view, x = ConvView("", layer), normal(2, 8, 4, 4)
    g = normal(*((2,) if "groups" in conv else ()), 1, 2, 4 if "stride" in conv else 16,
               2 if "groups" in conv else 4)  # fmt: skip
    moments = []
    for smaller in (1, 10**9):
        monkeypatch.setattr("natgrad.blocks.kfac.SMALLER", smaller)
        image = x.clone()
        block = blocks.KFAC(
            view.shape, groups=view.groups, damping=0.1, dtype=torch.float64, widest=widest
        )
        block.observe(Sample(view.inputs(image), g))
        image.zero_()  # nobody else's business any more
        assert (block.A.pending is None) == (smaller == 1)
        moments.append(block.A)
    bound = moments[0].witness()
    for moment in moments:
        moment.commit()
    assert torch.equal(moments[0].mean(), moments[1].mean())
    assert moments[0].value.abs().amax() <= bound


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_bound_on_what_is_not_finite_is_not_either(bad):
    image = normal(2, 3, 4, 4)
    image[1, 2, 3, 3] = bad
    window = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    assert not torch.isfinite(Patches(image, window).bound())
