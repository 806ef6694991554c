"""docs/DATASET.md says what the program does: commands parse, defaults are the defaults, lists are whole."""

import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from followclick_core.cli.parser import build_parser
from followclick_core.dataset import filters
from followclick_core.dataset.params import Thresholds
from followclick_core.flow.motion_mask import RULES

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "DATASET.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m followclick_core (build-dataset .*)$", TEXT.replace("\\\n", ""), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_its_commands_are_commands(command):
    arguments = build_parser().parse_args(shlex.split(command))
    assert arguments.out == "shards/" or arguments.address


def test_there_are_commands_and_python_that_compiles():
    assert len(COMMANDS) >= 4
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        names = {node.module for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)}
        assert names == {"followclick_core.data.shards"}


def test_its_thresholds_are_the_defaults():
    for field in fields(Thresholds):
        flag = f"`--{field.name.replace('_', '-')}` {field.default:g}"
        assert flag in TEXT, flag


def test_it_names_every_reason_and_every_rule():
    assert all(f"`{rule}`" in TEXT for rule in RULES)
    table = TEXT.replace("too little, too much motion", "too little motion, too much motion")
    assert all(reason in table for reason in filters.REASONS)


def test_the_command_s_defaults_are_the_parameters():
    from followclick_core.cli.build_dataset import _params
    from followclick_core.dataset.params import BuildParams, RunParams

    arguments = build_parser().parse_args(["build-dataset", "videos", "--out", "out"])
    assert _params(arguments) == BuildParams(run=RunParams(gpus_per_worker=1.0))
