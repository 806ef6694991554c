"""docs/TRAINING.md says what the program does; its first commands are run, from real clips to an animated click."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from followclick_core.cli.parser import build_parser
from followclick_core.cli.train import FIELDS, chosen_stages
from followclick_core.clip import load_frames
from followclick_core.models.motion_model import load_motion_model
from followclick_core.presets import get_preset
from followclick_core.training.clip_params import ClipTrainParams, clip_training
from followclick_core.training.run import STAGES, Options, check_options
from followclick_core.training.run_dir import RunDir
from followclick_core.training.trainable import SETS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "TRAINING.md").read_text(encoding="utf-8")
BLOCKS = [block.replace("\\\n", "").strip().splitlines() for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)]
COMMANDS = [line for block in BLOCKS for line in block if "followclick_core" in line]
RANKS = ("--num_processes", "--nproc_per_node")
LAUNCHERS = {"accelerate launch": "accelerate.commands.launch", "torchrun": "torch.distributed.run"}
CAPTIONS = {
    "bigbuckbunny": "A giant rabbit yawns and stretches on a meadow",
    "bikes": "People ride bikes down a street",
    "carphone_pristine": "A man talks in a moving car",
}


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_its_commands_are_commands(command):
    words = shlex.split(command)
    arguments = build_parser().parse_args(words[words.index("followclick_core") + 1 :])
    if words[words.index("followclick_core") + 1] != "train":
        return
    if arguments.art:
        stages = set(arguments.stage or ["all"])
        assert stages <= {"all", *STAGES}
        options = Options(arguments.batch, arguments.learning_rate, arguments.crop)
        check_options(options, list(STAGES) if "all" in stages else list(stages), get_preset(arguments.preset))
        assert arguments.start_from is None or (ROOT / arguments.start_from / "unet.safetensors").is_file()
    else:
        counts = [int(words[words.index(name) + 1]) for name in RANKS if name in words]
        ranks = counts[0] if counts else 1
        assert all(stage.accumulation(ranks) >= 1 for stage in chosen_stages(arguments))


def test_it_tells_of_every_option_and_every_set_of_weights():
    learned = {"train", "mask_ratio", "layout", "prediction", "text_dropout", "condition_dropout", "still_share"}
    learned |= {"noise_offset", "condition_noise", "region_weight", "stored_latents", "precision"}
    assert learned <= FIELDS.keys() and set(FIELDS.values()) <= {field.name for field in fields(ClipTrainParams)}
    assert all(f"`--{name.replace('_', '-')}" in TEXT for name in learned)
    assert set(re.findall(r"^\| `([a-z][a-z-]*)` \| [^0-9]", TEXT, re.MULTILINE)) == set(SETS)


def test_its_defaults_are_the_defaults():
    stage = clip_training("sd15", "captions")
    for text in (
        "`--mask-ratio` | 0.7",
        "`--layout` | `repeat`",
        "`--prediction` | `v_prediction`",
        "`--train` | `paper`",
    ):
        assert text in TEXT
    assert f"`--checkpoint-every` {stage.loop.checkpoint_every}" in TEXT.replace("\n", " ")
    assert f"`--text-dropout`, `--condition-dropout` | {stage.text_dropout:g}, {stage.condition_dropout:g}" in TEXT


def test_what_is_computed_is_said_to_be():
    rows = re.findall(r"^\| `[a-z-]+` \| \d+ \| (?:on|off) \| [\d.]+ GiB \| [\d.]+ \|$", TEXT, re.MULTILINE)
    assert len(rows) >= 8 and "the numbers below are **computed**" in TEXT


def test_from_raw_videos_to_an_animated_click_in_under_five_minutes(real_clips, tmp_path):
    (tmp_path / "videos").mkdir()
    for name, caption in CAPTIONS.items():
        shutil.copy(real_clips / f"{name}.mp4", tmp_path / "videos")
        (tmp_path / "videos" / f"{name}.txt").write_text(caption)
    Image.fromarray(load_frames(str(tmp_path / "videos" / "bikes.mp4"))[0]).save(tmp_path / "photo.png")
    started = time.monotonic()
    build, train, animate = next(block for block in BLOCKS if len(block) == 3)
    for command in (build, train, animate):
        run(command, tmp_path)
    seconds = time.monotonic() - started
    losses = [
        record["loss"] for record in RunDir(tmp_path / "runs" / "first").read_log("motion-captions") if "loss" in record
    ]
    state = json.loads((tmp_path / "runs" / "first" / "motion-captions" / "config.json").read_text())
    assert state["loop"]["steps"] == 20 and state["preset"] == "nano" and state["processes"] == 2
    assert losses and max(losses) < 3
    assert load_motion_model(tmp_path / "runs" / "first" / "weights" / "motion.safetensors").params.trained_frames == 8
    clip = load_frames(str(tmp_path / "click.webp"))
    assert len(clip) == 8 and (clip[0] != clip[-1]).any()
    assert seconds < 300


def run(command: str, folder: Path) -> None:
    launcher = next((name for name in LAUNCHERS if command.startswith(name)), None)
    module = ["-m", LAUNCHERS[launcher]] if launcher else []
    words = shlex.split(command.removeprefix(launcher or "python"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *module, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=300)[0]
    except BaseException:
        end(process)
        raise
    assert process.returncode == 0, f"{command}\n{output}"


def end(process: subprocess.Popen) -> None:
    """End a launcher and what it has started; torchrun puts its ranks into groups of their own, and ends them itself
    when it is asked to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=40)
            return
