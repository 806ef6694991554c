"""Attentions that let go of what they have read: the same result, with less in memory when it is made."""

import weakref

import pytest
import torch
from torch import nn

from followclick_core.acceleration.early_release import early_release
from followclick_core.acceleration.forwards import exchanged_forwards


class CrossAttention(nn.Module):
    """Holds what it has made until it returns, as the host's does, and notes what is still there for its last layer."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(8, 8) for _ in range(4))
        self.made, self.held = [], []
        for layer in (self.to_q, self.to_k, self.to_v):
            layer.register_forward_hook(lambda _layer, _inputs, output: self.made.append(weakref.ref(output)))

    def forward(self, x, context=None):
        q = self.to_q(x)
        k, v = self.to_k(x if context is None else context), self.to_v(x if context is None else context)
        return self.to_out(torch.softmax(q @ k.mT, dim=-1) @ v)


class BasicTransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(), CrossAttention()

    def forward(self, x, context):
        return x + self.attn2(x + self.attn1(x), context=context)


@pytest.fixture
def block():
    torch.manual_seed(0)
    return BasicTransformerBlock().eval()


@pytest.fixture
def run(block):
    x, context = torch.randn(2, 30, 8), torch.randn(2, 5, 8)

    def call():
        with torch.no_grad():
            return block(x, context)

    return call


def count_held(attention, monkeypatch):
    """How many of queries, keys and values are there when the last layer computes."""

    def forward(layer, x):
        if layer is attention.to_out:
            attention.held.append(sum(reference() is not None for reference in attention.made))
        return linear(layer, x)

    linear = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", forward)


def test_nothing_that_was_read_is_there_when_the_last_layer_computes(block, run, monkeypatch):
    expected = run()
    block.attn2.made.clear()
    count_held(block.attn2, monkeypatch)
    with early_release(nn.ModuleList([block])):
        assert torch.equal(run(), expected)
    assert len(block.attn2.made) == 3 and block.attn2.held == [0]
    assert torch.equal(run(), expected) and block.attn2.held == [0, 3]
    assert not any("forward" in vars(layer) for layer in block.modules())


def test_a_hook_on_the_last_layer_sees_one_call(block, run):
    """As those that blend regions, which are set during a sampling."""
    calls = []
    with early_release(nn.ModuleList([block])):
        plain = run()
        block.attn1.to_out.register_forward_pre_hook(lambda _layer, inputs: calls.append(1) or (2 * inputs[0],))
        hooked = run()
    assert calls == [1] and not torch.allclose(hooked, plain)
    assert torch.equal(run(), hooked)


def test_attentions_and_last_layers_that_another_pack_computes_are_left_to_it(block, run):
    linear, attention = nn.Linear.forward, CrossAttention.forward
    last, first = block.attn1.to_out, block.attn2
    others = [(last, lambda x: 2 * linear(last, x)), (first, lambda x, context: 3 * attention(first, x, context))]
    plain = run()
    with exchanged_forwards(others):
        expected = run()
        with early_release(nn.ModuleList([block])):
            assert torch.equal(run(), expected)
    assert not torch.allclose(expected, plain)


@pytest.mark.parametrize("twice", [False, True])
def test_an_attention_whose_last_layer_is_not_the_last_thing_it_does_is_computed_as_it_says(block, run, twice):
    """As one that adds what an image says, or projects in parts."""

    class Image(CrossAttention):
        def forward(self, x, context=None):
            if twice:
                return self.to_out(self.to_q(x)) + self.to_out(self.to_v(x))
            return super().forward(x, context) + self.to_q(x)

    Image.__name__ = "CrossAttention"
    block.attn2 = Image()
    expected = run()
    with early_release(nn.ModuleList([block])):
        assert torch.equal(run(), expected)


def test_a_failure_leaves_the_last_layer_as_it_was(block, run):
    plain = run()
    with early_release(nn.ModuleList([block])):
        handle = block.attn1.to_v.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(InterruptedError()))
        with pytest.raises(InterruptedError):
            run()
        handle.remove()
        assert torch.equal(run(), plain)
