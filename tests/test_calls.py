"""Listening to linear calls."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from natgrad.calls import listen, unlisten


def test_listeners_hear_every_call_until_they_stop():
    plain, heard = F.linear, {"one": [], "two": []}
    one, two = (lambda h, W, z, k=k: heard[k].append((h, W, z)) for k in heard)
    x, W, b = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
    listen(one)
    z = F.linear(x, W, bias=b)
    listen(two)
    F.linear(x, W)
    unlisten(one)  # not the last to come
    F.linear(input=x, weight=W)
    unlisten(two)
    assert F.linear is plain
    F.linear(x, W)
    assert [len(calls) for calls in heard.values()] == [2, 2]
    assert heard["one"][0] == (x, W, z)
    assert torch.equal(z, plain(x, W, b))


def test_another_patch_of_linear_stays_in_use(monkeypatch):
    plain = F.linear
    other = lambda *args, **kwargs: 2 * plain(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(F, "linear", other)
    heard = []
    listen(heard_one := lambda h, W, z: heard.append(z))
    z = F.linear(torch.ones(2, 3), torch.ones(4, 3))
    unlisten(heard_one)
    assert F.linear is other
    assert torch.equal(z, torch.full((2, 4), 6.0))
    assert heard == [z]
