"""The command train: on generated scenes (--art) or on shards (--data). Nothing heavy is imported with it."""

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands import chosen_device

if TYPE_CHECKING:
    from ..training.clip_params import ClipTrainParams

PROGRAM = "python -m followclick_core"

HELP = f"""\
Train a model, on generated scenes or on the shards that build-dataset writes. The same command goes on where an
interrupted one stopped.

  {PROGRAM} train --preset nano --art build/art.zip --run runs/nano
  {PROGRAM} train --preset nano --data shards/ --base runs/nano/weights --run runs/own
  {PROGRAM} train --preset sd15 --base v1-5-pruned.safetensors --motion mm_sd_v15_v2.ckpt --data shards/ --run runs/sd15
  {PROGRAM} train --preset sd15 --dry-run

On scenes the stages are autoencoder, segmenter, spatial, motion and decoder; on shards captions, then motion-captions,
as in the paper. Several GPUs train together by `torchrun --nproc-per-node N -m followclick_core train …`, on shards
several machines too, by `accelerate launch -m followclick_core train …`; what shards train with needs the packages of
the extra `train`. RUN/weights then holds a whole model for `animate --model`; its motion.safetensors
is what the node Load Motion Model takes. docs/TRAINING.md says more.
"""

# Options of training on shards that replace a field of ClipTrainParams, and of its LoopParams.
FIELDS = {
    "train": "trainable",
    "lora_rank": "lora_rank",
    "batch": "batch_size",
    "micro_batch": "micro_batch",
    "size": "size",
    "frames": "num_frames",
    "layout": "layout",
    "prediction": "prediction",
    "mask_ratio": "mask_ratio",
    "text_dropout": "text_dropout",
    "condition_dropout": "condition_dropout",
    "still_share": "still_share",
    "noise_offset": "noise_offset",
    "condition_noise": "condition_noise",
    "region_weight": "region_weight",
    "stored_latents": "stored_latents",
    "precision": "precision",
    "gradient_checkpointing": "gradient_checkpointing",
    "training_seed": "seed",
    "validation_clips": "validation_clips",
    "validation_every": "validation_every",
    "validation_steps": "validation_steps",
}
LOOP_FIELDS = {"steps": "steps", "learning_rate": "learning_rate", "checkpoint_every": "checkpoint_every"}
# Of these also known on scenes; --learning-rate is too.
FOR_BOTH = ("batch",)
FOR_SCENES = {"crop": "--crop", "start_from": "--start-from", "compile": "--compile", "time_budget": "--time-budget"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        required=True,
        metavar="NAME",
        help="sd15: 512 px, on shards; demo: 256 px, for a GPU; small: the same at 128 px; nano: 128 px, for a CPU",
    )
    # Two names, for torchrun takes --run for an option of its own.
    parser.add_argument(
        "--run", "--run-dir", metavar="FOLDER", dest="run_dir", help="weights, logs and checkpoints go here"
    )
    parser.add_argument(
        "--stage",
        action="append",
        metavar="NAME",
        help="all (default), or some of the stages; may be given several times",
    )
    parser.add_argument("--max-seconds", type=float, metavar="S", help="stop in good order after this long")
    parser.add_argument("--steps", type=_count, metavar="N", help="steps of each stage, instead of the preset's")
    of_scenes = "the stages motion and segmenter"
    parser.add_argument("--learning-rate", type=float, metavar="X", help=f"of AdamW (on scenes: in {of_scenes})")
    parser.add_argument(
        "--batch",
        type=_count,
        metavar="N",
        help=f"clips per step, over all processes (on scenes: of each process, in {of_scenes})",
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, mps")
    scenes = parser.add_argument_group("on generated scenes")
    scenes.add_argument("--art", metavar="ZIP", help="what build-art wrote")
    scenes.add_argument(
        "--time-budget", type=float, metavar="S", help="seconds for each stage, over all commands that go on with it"
    )
    scenes.add_argument(
        "--start-from", metavar="FOLDER", help="weights of the same architecture with which the motion stage begins"
    )
    scenes.add_argument(
        "--crop",
        type=_count,
        metavar="PX",
        help="train the stage motion on a part of this side around the object, not on whole clips",
    )
    scenes.add_argument("--compile", action="store_true", help="compile the models: a slow start, then faster on a GPU")
    shards = parser.add_argument_group("on shards")
    shards.add_argument("--data", metavar="FOLDER", help="what build-dataset wrote")
    shards.add_argument(
        "--base", metavar="FILE", help="a Stable Diffusion 1.5 checkpoint, a run's weights folder, or demo"
    )
    shards.add_argument("--motion", metavar="FILE", help="AnimateDiff's motion modules, or a motion model of this pack")
    shards.add_argument(
        "--dry-run", action="store_true", help="say what a step trains, holds in memory and takes, on random weights"
    )
    _what_is_learned(shards)
    _how_it_runs(shards)


def _what_is_learned(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--train", metavar="SET", help="which weights: paper, all, scratch, spatial-lora, ma or motion-lora"
    )
    group.add_argument("--lora-rank", type=_count, metavar="N", help="of the sets with a LoRA (default 16)")
    group.add_argument("--micro-batch", type=_count, metavar="N", help="clips in memory at once in a process")
    group.add_argument("--size", type=_count, metavar="PX", help="side of the clips, instead of the preset's")
    group.add_argument("--frames", type=_count, metavar="N", help="length of the clips (default 16)")
    group.add_argument("--layout", metavar="NAME", help="of the first frame over time: paper, release or repeat")
    group.add_argument(
        "--prediction", metavar="TYPE", help="v_prediction (with zero terminal SNR) or epsilon (without)"
    )
    group.add_argument(
        "--mask-ratio", metavar="R", help="of the first frame: a share, a list (0,0.3,0.5,0.7), or uniform:0,0.9"
    )
    group.add_argument("--text-dropout", type=float, metavar="P", help="share of samples without a text")
    group.add_argument("--condition-dropout", type=float, metavar="P", help="share of samples without a first frame")
    group.add_argument("--still-share", type=float, metavar="P", help="share of samples that are an image as a video")
    group.add_argument("--noise-offset", type=float, metavar="X", help="of the noise, against a leaking condition")
    group.add_argument(
        "--condition-noise", type=float, metavar="X", help="on the first frame, growing with the timestep"
    )
    group.add_argument("--region-weight", type=float, metavar="X", help="of the loss where something moves, above 1")


def _how_it_runs(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--stored-latents", action="store_true", default=None, help="take latents from the shards")
    group.add_argument("--precision", metavar="no|bf16", help="of activations")
    group.add_argument(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        help="store few activations and compute them twice",
    )
    group.add_argument("--training-seed", type=int, metavar="N", help="another one, other noise and order (default 0)")
    group.add_argument("--workers", type=int, default=4, metavar="N", help="threads that read ahead (default 4)")
    group.add_argument("--checkpoint-every", type=_count, metavar="N", help="steps between resumable states")
    group.add_argument("--validation-clips", type=int, metavar="N", help="clips held out and animated (default 4)")
    group.add_argument("--validation-every", type=_count, metavar="N", help="steps from one validation to the next")
    group.add_argument(
        "--validation-steps", type=_count, metavar="N", help="sampling steps of a validation (default 25)"
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.dry_run:
        _dry_run(arguments)
        return
    if (arguments.art is None) == (arguments.data is None):
        raise ValueError("Give --art to train on generated scenes or --data to train on shards, one of the two.")
    if arguments.run_dir is None:
        raise ValueError("Where weights, logs and checkpoints are to go is missing; name a folder by --run.")
    finished = _on_scenes(arguments) if arguments.art else _on_shards(arguments)
    if not arguments.quiet and _is_first():
        state = "is finished" if finished else "is not finished; the same command goes on with it"
        print(f"The training in {arguments.run_dir} {state}. Its weights are in {Path(arguments.run_dir) / 'weights'}.")


def _on_scenes(arguments: argparse.Namespace) -> bool:
    from ..training.run import STAGES, train

    for name in (*FIELDS, "base", "motion", "checkpoint_every"):
        if name not in FOR_BOTH and getattr(arguments, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for training on shards; leave it out, or give --data.")
    stages = arguments.stage or ["all"]
    return train(
        arguments.preset,
        Path(arguments.art),
        Path(arguments.run_dir),
        STAGES if "all" in stages else stages,
        steps=arguments.steps,
        max_seconds=arguments.max_seconds,
        time_budget=arguments.time_budget,
        device=chosen_device(arguments.device),
        compile_blocks=arguments.compile,
        start_from=arguments.start_from,
        batch_size=arguments.batch,
        learning_rate=arguments.learning_rate,
        crop=arguments.crop,
    )


def _on_shards(arguments: argparse.Namespace) -> bool:
    from ..training.clip_run import Start, train_on_shards

    for name, option in FOR_SCENES.items():
        if getattr(arguments, name):
            raise ValueError(f"{option} is for training on generated scenes; leave it out, or give --art.")
    return train_on_shards(
        arguments.preset,
        Path(arguments.data),
        Path(arguments.run_dir),
        chosen_stages(arguments),
        Start(arguments.base, arguments.motion),
        math.inf if arguments.max_seconds is None else arguments.max_seconds,
        device=chosen_device(arguments.device),
        workers=arguments.workers,
    )


def _dry_run(arguments: argparse.Namespace) -> None:
    from ..training.dry_run import dry_run

    report = dry_run(arguments.preset, chosen_stages(arguments)[0], chosen_device(arguments.device))
    print(report.to_text())


def chosen_stages(arguments: argparse.Namespace) -> "list[ClipTrainParams]":
    """The preset's stages, with what the command line says otherwise."""
    from ..presets import get_preset
    from ..training.clip_params import TEXTS, MaskRatio, clip_training

    get_preset(arguments.preset)
    asked = arguments.stage or ["all"]
    stages = [clip_training(arguments.preset, text) for text in (TEXTS if "all" in asked else asked)]
    changes = _given(arguments, FIELDS)
    if "mask_ratio" in changes:
        changes["mask_ratio"] = MaskRatio.parse(changes["mask_ratio"])
    if arguments.preset != "sd15" and arguments.base is None and "trainable" not in changes:
        changes["trainable"] = "scratch"
    loop = _given(arguments, LOOP_FIELDS)
    return [replace(stage, **changes, loop=replace(stage.loop, **loop)) for stage in stages]


def _given(arguments: argparse.Namespace, fields: dict[str, str]) -> dict[str, Any]:
    values = {field: getattr(arguments, option) for option, field in fields.items()}
    return {field: value for field, value in values.items() if value is not None}


def _is_first() -> bool:
    """Whether this process is the one of several that speaks."""
    return os.environ.get("RANK", "0") == "0"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give a whole number from 1")
    return int(text)
