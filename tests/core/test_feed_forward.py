"""Feed-forwards in pieces: equal to whole ones, and nothing large on the way."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from followclick_core.acceleration.feed_forward import (
    computes_plainly,
    gated_feed_forward,
    gated_feed_forwards,
    layers_in_pieces,
)
from followclick_core.models.blocks import FeedForward, SpatialTransformer

C = 24
ROW = 8 * C * 4  # bytes of what the first layer makes of one row


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return FeedForward(C).eval()


def in_pieces(layer, x, max_bytes):
    wide, last = layer.net[0].proj, layer.net[2]
    return gated_feed_forward(x, wide.weight, wide.bias, last.weight, last.bias, max_bytes)


WAYS = pytest.mark.parametrize("way", [in_pieces, layers_in_pieces])


class Buffers(TorchDispatchMode):
    """Bytes of each tensor that operators give out, but for views."""

    def __enter__(self):
        self.sizes = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        given = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        made = [each for each in tree_leaves(result) if torch.is_tensor(each)]
        self.sizes += [each.nbytes for each in made if each.untyped_storage().data_ptr() not in given]
        return result


@WAYS
@pytest.mark.parametrize("shape", [(2, 37, C), (1, 1, C), (50, C), (2, 3, 7, C), (2, 0, C)])
@pytest.mark.parametrize("rows", [1, 7, 16, 1000])
def test_pieces_of_any_number_of_rows_give_the_whole(layer, way, shape, rows):
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(way(layer, x, rows * ROW), layer(x), rtol=1e-5, atol=1e-6)
        strided = torch.randn(*shape[:-1], 2 * C)[..., ::2]
        torch.testing.assert_close(way(layer, strided, rows * ROW), layer(strided), rtol=1e-5, atol=1e-6)


@WAYS
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_nothing_but_the_result_is_larger_than_a_piece(layer, way, rows):
    x = torch.randn(2, 300, C)
    with torch.no_grad(), Buffers() as whole:
        layer(x)
    assert max(whole.sizes) == 600 * ROW
    with torch.no_grad(), Buffers() as found:
        way(layer, x, rows * ROW)
    result = x.nbytes
    assert found.sizes.count(result) == 1 and max(size for size in found.sizes if size != result) <= rows * ROW


def test_a_limit_below_one_row_still_computes_rows_one_by_one(layer):
    x = torch.randn(5, C)
    with torch.no_grad():
        torch.testing.assert_close(in_pieces(layer, x, 1), layer(x), rtol=1e-5, atol=1e-6)


def test_half_precision_is_rounded_as_the_layers_round(layer):
    layer, x = layer.bfloat16(), torch.randn(2, 40, C).bfloat16()
    with torch.no_grad():
        found = in_pieces(layer, x, 16 * ROW)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, layer(x), rtol=2e-2, atol=1e-2)


def test_only_gated_feed_forwards_that_nobody_watches_or_exchanges_are_taken():
    unet = nn.ModuleList(SpatialTransformer(32, 8, 2, depth=2) for _ in range(3))
    layers = [block.ff for transformer in unet for block in transformer.transformer_blocks]
    assert gated_feed_forwards(unet) == layers
    layers[0].net[2].register_forward_hook(lambda _layer, _inputs, output: 2 * output)
    layers[1].net[0].forward = lambda x: x
    layers[2].forward = lambda x: x
    layers[3].register_forward_hook(lambda _layer, _inputs, output: 2 * output)  # runs around it as ever
    layers[4].net[0] = nn.Sequential(nn.Linear(32, 128), nn.GELU())
    assert gated_feed_forwards(unet) == [layers[3], layers[5]]
    alone = FeedForward(32)  # such as a motion module's, which has pieces of its own
    assert gated_feed_forwards(nn.Sequential(alone)) == []


def test_gradients_and_autocast_need_the_layers_themselves(monkeypatch):
    assert not computes_plainly()
    with torch.no_grad():
        assert computes_plainly()
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: True)
        assert not computes_plainly()


@pytest.fixture(scope="module")
def interpreted():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not made for this platform")
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    program = str(Path(__file__).with_name("interpreted_feed_forward.py"))
    done = subprocess.run(
        [sys.executable, program], env={**environment, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_kernels_compute_what_the_layers_do(interpreted):
    errors = interpreted["errors"]
    assert len(errors) == 8 and max(errors.values()) < 1e-5, errors


def test_the_kernel_writes_no_product(interpreted):
    assert interpreted["largest"]["product and gate"] == 8 * 48 * 4 * 10
    assert interpreted["largest"]["one kernel"] == 4 * 48 * 4 * 10


def test_compiled_code_is_one_operator_whatever_the_number_of_pieces(interpreted):
    assert interpreted["compiled"]["error"] < 1e-5
    assert interpreted["compiled"]["graphs"] == 1 and interpreted["compiled"]["breaks"] == 0
