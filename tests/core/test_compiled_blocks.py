"""Training compiles its blocks: that changes neither loss nor gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("compiled_stage.py")


@pytest.fixture(scope="module")
def compared():
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_blocks_of_all_three_kinds_are_compiled_whole(compared):
    assert compared["kinds"] == ["ResBlock", "SpatialTransformer", "TemporalTransformer"]
    assert compared["graphs"] >= len(compared["kinds"])
    assert compared["breaks"] == 0


def test_compiled_blocks_give_the_loss_and_gradients_of_eager_ones(compared):
    for each in compared["passes"]:
        assert each["compiled"] == pytest.approx(each["eager"], rel=1e-4)
        # Sums in another order are rounded otherwise, but no parameter's gradient is off by more than bfloat16 costs.
        assert each["apart"][0] < 3, each["apart"]
    first, second = compared["passes"]
    assert abs(first["eager"] - second["eager"]) > 1e-2  # so weights kept from the first pass would show in the second
