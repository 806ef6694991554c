"""`train --data`: the paper's two stages on shards, from a base model and motion weights to files that load again."""

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint import CheckpointError
from ..data.shards import shards_digest
from ..files import atomic_path, sha256_of, write_json
from ..models.animatediff import load_motion_start
from ..models.autoencoder import save_autoencoder
from ..models.bundle import weights_path
from ..models.lora import merge_lora, save_motion_lora, save_unet_lora
from ..models.motion_model import MotionModel, save_motion_model
from ..models.sd_autoencoder import (
    AnyAutoencoder,
    SDAutoencoder,
    load_any_autoencoder,
    load_sd_autoencoder,
    save_sd_autoencoder,
)
from ..models.text_encoder import (
    VOCABULARY,
    TextEncoder,
    known_tokens,
    load_sd_text_encoder,
    load_text_encoder,
    save_text_encoder,
)
from ..models.unet import UNet, load_unet, save_unet
from ..presets import Preset, get_preset
from .clip_data import ClipData, SampleMaker
from .clip_model import ClipModel
from .clip_params import TEXTS, ClipTrainParams
from .clip_stage import ClipStage
from .clip_watch import Watcher
from .engine import AccelerateStep, leave_ranks, make_accelerator
from .loop import Limits, run_stage
from .run_dir import RunDir
from .trainable import check_set, choose_trainable

if TYPE_CHECKING:
    from accelerate import Accelerator

SHIPPED = "demo"  # --base for the shipped model


@dataclass(frozen=True)
class Start:
    """Files that training begins with.

    Args:
        base: sd15: a Stable Diffusion 1.5 checkpoint. Else a run's `weights` folder, or "demo" for the shipped model;
            None begins with nothing but the shipped autoencoder.
        motion: A motion model of this pack or AnimateDiff's modules; None: the base folder's, or new ones.
    """

    base: str | None = None
    motion: str | None = None


@dataclass
class Parts:
    """The models of one run, in float32 on the CPU."""

    unet: UNet
    motion: MotionModel
    text: TextEncoder
    seen: torch.Tensor
    autoencoder: AnyAutoencoder


def train_on_shards(
    preset_name: str,
    data: str | Path,
    run_dir: str | Path,
    stages: Sequence[ClipTrainParams],
    start: Start,
    max_seconds: float = math.inf,
    device: str | None = None,
    workers: int = 4,
) -> bool:
    """Train the stages one after the other; the same command continues where the last one stopped.

    Args:
        data: What build-dataset filled.
        stages: In order; each begins with what the one before it made.
        max_seconds: Stop all of it after this long.

    Returns:
        Whether all stages are finished. `run_dir/weights` then holds a whole model, and motion.safetensors is what the
        node Load Motion Model takes.
    """
    preset, run = get_preset(preset_name), RunDir(run_dir)
    deadline = time.monotonic() + max_seconds
    done = True
    for params in stages:
        check_set(params.trainable)
        check_start(preset, start, params)
        accelerator = make_accelerator(params.precision, device)
        params.accumulation(accelerator.num_processes)
        begin = continued(run, params, start, accelerator)
        contents = {"start": start_digests(begin), "data": shards_digest(data)}
        check_same_run(run, preset, params, contents)
        torch.manual_seed(params.seed)
        parts = load_parts(preset, begin, params)
        clips = ClipData(data, params, workers, run.stage(params.text) / "passed_over.jsonl")
        if accelerator.is_main_process:
            about = {"start": asdict(begin), "data": str(data), "contents": contents}
            save_config(run, preset, params, {**about, "processes": accelerator.num_processes}, clips)
            write_parts(parts, params, run, preset, begin)
        model = ClipModel(parts.unet, parts.motion, parts.text, parts.seen)
        choose_trainable(model, params.trainable, params.lora_rank)
        autoencoder = parts.autoencoder.requires_grad_(False).to(accelerator.device)
        maker = SampleMaker(autoencoder, params, accelerator.device)
        maker.check_latents(clips.load(clips.trained.start))
        engine = AccelerateStep(model, params, accelerator)
        stage = ClipStage(model, clips, maker, params, accelerator.process_index, accelerator.num_processes)
        watch = Watcher(stage, engine, maker, autoencoder, run)
        limits = Limits(max(0.0, deadline - time.monotonic()))
        done = run_stage(stage, params.loop, run, accelerator.device, limits, engine, watch)
        # What a finished stage made is written already, and the next one's weights have taken its place.
        if watch.steps or not _is_followed(run, params):
            finish(engine, model, params, run, preset)
        accelerator.wait_for_everyone()
        if not done:
            break
    leave_ranks()
    return done


def check_start(preset: Preset, start: Start, params: ClipTrainParams) -> None:
    """ValueError if these files cannot be what training begins with."""
    if start.base is not None and start.base != SHIPPED and not Path(start.base).exists():
        raise FileNotFoundError(f"There is no {start.base}; name a checkpoint or a run's weights folder by --base.")
    if preset.name == "sd15" and start.base in (None, SHIPPED):
        raise ValueError("sd15 is trained on top of Stable Diffusion 1.5; name its checkpoint by --base.")
    if start.base is None and params.trainable != "scratch":
        raise ValueError(
            f"The set {params.trainable} is trained on top of a model; name one by --base (a run's weights folder, or "
            f"{SHIPPED}), or train the set scratch."
        )


def start_digests(start: Start) -> dict[str, str]:
    """SHA-256 of the files that training begins with, wherever they lie."""
    files: dict[str, Path] = {}
    if start.base is not None and Path(start.base).is_file():
        files["base"] = Path(start.base)
    elif start.base is not None:
        folder = None if start.base == SHIPPED else start.base
        files = {part: weights_path(part, folder) for part in ("unet", "text_encoder", "autoencoder", "motion")}
    if start.motion is not None:
        files["motion"] = Path(start.motion)
    # Of a missing one, what reads it will tell.
    return {part: sha256_of(path) for part, path in files.items() if path.is_file()}


def check_same_run(run: RunDir, preset: Preset, params: ClipTrainParams, contents: dict[str, Any]) -> None:
    """ValueError if the folder's stage was begun with other settings, files or clips: it would not be the same
    training."""
    path = run.stage(params.text) / "config.json"
    if not (run.stage(params.text) / "checkpoint.pt").is_file() or not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps({"preset": preset.name, **asdict(params)}))
    # How far and how it is watched may change; what is learned, and from what, may not.
    free = {"steps", "log_every", "checkpoint_every", "checkpoint_seconds", "validation_every", "validation_steps"}
    changed = [key for key in now if key not in free and key != "loop" and before.get(key) != now[key]]
    changed += [key for key in now["loop"] if key not in free and before["loop"].get(key) != now["loop"][key]]
    begun = before.get("contents", contents)
    for key, what in (("start", "--base or --motion has other contents"), ("data", "--data holds other clips")):
        if begun[key] != contents[key]:
            raise ValueError(
                f"{run.path} was begun with something else: {what}; give the same, or another --run folder."
            )
    if changed:
        was = {**before, **before["loop"]}
        listed = ", ".join(f"{key}={was.get(key)}" for key in changed)
        raise ValueError(f"{run.path} was begun with {listed}; give the same settings, or another --run folder.")


def continued(run: RunDir, params: ClipTrainParams, start: Start, accelerator: "Accelerator") -> Start:
    """What a stage begins with: what the one before it made in the same run, or the files that were named.

    What was made is kept, by links to the same files: this stage writes its own weights in their place, and must begin
    with the same ones again when it resumes.
    """
    kept = run.stage(params.text) / "start"
    made = (run.path / TEXTS[0] / "config.json").is_file() and (run.weights / "motion.safetensors").is_file()
    if params.text == TEXTS[0] or not (made or kept.is_dir()):
        return start
    if accelerator.is_main_process and not kept.is_dir():
        with atomic_path(kept) as temporary:
            temporary.mkdir()
            for path in run.weights.glob("*.safetensors"):
                _link(path, temporary / path.name)
    accelerator.wait_for_everyone()
    return Start(str(kept))


def _is_followed(run: RunDir, params: ClipTrainParams) -> bool:
    """Whether a later stage has begun with what this one made."""
    return any((run.path / text / "start").is_dir() for text in TEXTS[TEXTS.index(params.text) + 1 :])


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    # Some file systems know no links.
    except OSError:
        shutil.copyfile(path, to)


def load_parts(preset: Preset, start: Start, params: ClipTrainParams) -> Parts:
    """UNet, motion model, text encoder and autoencoder that training begins with."""
    new = replace(preset.motion, layout=params.layout, schedule=params.schedule, trained_frames=params.num_frames)
    motion = start.motion
    if start.base is None:
        unet, text = UNet(preset.unet), TextEncoder(preset.text)
        seen, autoencoder = torch.zeros(VOCABULARY, dtype=torch.bool), load_any_autoencoder(weights_path("autoencoder"))
    elif Path(start.base).is_file():
        unet, text = load_unet(start.base), load_sd_text_encoder(start.base)
        seen, autoencoder = torch.ones(VOCABULARY, dtype=torch.bool), load_sd_autoencoder(start.base)
    else:
        folder = None if start.base == SHIPPED else start.base
        unet, text = load_unet(weights_path("unet", folder)), load_text_encoder(weights_path("text_encoder", folder))
        seen = torch.zeros(VOCABULARY, dtype=torch.bool)
        seen[known_tokens(weights_path("text_encoder", folder))] = True
        autoencoder = load_any_autoencoder(weights_path("autoencoder", folder))
        motion = motion or str(weights_path("motion", folder))
    if (unet.params, text.params) != (preset.unet, preset.text):
        raise CheckpointError(f"{start.base} is not of the preset {preset.name}; choose the preset it was trained as.")
    model = load_motion_start(motion, new) if motion else MotionModel(new)
    # A file of this pack says how it was trained. Training it on otherwise is allowed, and is then what it says.
    kept = {name: getattr(model.params, name) for name in ("mid_block", "context_dim", "still_gate")}
    if model.params != replace(new, **kept, **_conditions_of(model)):
        raise CheckpointError(f"{motion} is not for the UNet of the preset {preset.name}; choose the right preset.")
    model.params = replace(new, **kept)
    return Parts(unet, model, text, seen, autoencoder)


def _conditions_of(model: MotionModel) -> dict[str, Any]:
    """What of a motion model's numbers is about its training, not its weights."""
    return {name: getattr(model.params, name) for name in ("layout", "schedule", "trained_frames")}


def save_config(run: RunDir, preset: Preset, params: ClipTrainParams, about: dict[str, Any], clips: ClipData) -> None:
    """Args: about: what else the run began with, and on."""
    config: dict[str, Any] = {
        "preset": preset.name,
        **asdict(params),
        **about,
        "clips": len(clips),
        "clips_held_out": len(clips.held_out),
        "model": asdict(preset),
        "torch": torch.__version__,
    }
    write_json(run.stage(params.text) / "config.json", config)


def write_parts(parts: Parts, params: ClipTrainParams, run: RunDir, preset: Preset, start: Start) -> None:
    """The parts around the motion model, where the folder does not have them yet, so that it is a whole model.

    They are written from what was read, not from what a GPU has rounded.
    """
    weights, notes = run.weights, _notes(preset, params)
    if not (weights / "unet.safetensors").is_file():
        save_unet(weights / "unet.safetensors", parts.unet, notes)
    if not (weights / "text_encoder.safetensors").is_file():
        save_text_encoder(weights / "text_encoder.safetensors", parts.text, parts.seen.nonzero()[:, 0], notes)
    if not (weights / "autoencoder.safetensors").is_file():
        if isinstance(parts.autoencoder, SDAutoencoder):
            save_sd_autoencoder(weights / "autoencoder.safetensors", parts.autoencoder, notes)
        else:
            save_autoencoder(weights / "autoencoder.safetensors", parts.autoencoder, notes)
    if not (weights / "segmenter.safetensors").is_file():
        own = Path(start.base or "") / "segmenter.safetensors"
        with atomic_path(weights / "segmenter.safetensors") as temporary:
            shutil.copyfile(own if own.is_file() else weights_path("segmenter"), temporary)


@torch.no_grad()
def finish(engine: AccelerateStep, model: ClipModel, params: ClipTrainParams, run: RunDir, preset: Preset) -> None:
    """Write what was trained, LoRAs also by themselves."""
    gather(model)
    if not engine.is_main:
        return
    weights, notes = run.weights, _notes(preset, params)
    if params.trainable == "motion-lora":
        save_motion_lora(weights / "motion_lora.safetensors", model.motion, notes)
    if params.trainable == "spatial-lora":
        save_unet_lora(weights / "spatial_lora.safetensors", model.unet, notes)
    merge_lora(model)
    save_motion_model(weights / "motion.safetensors", model.motion, notes)
    if params.trainable in ("all", "scratch", "spatial-lora"):
        save_unet(weights / "unet.safetensors", model.unet, notes)
    if params.trainable == "scratch":
        save_text_encoder(weights / "text_encoder.safetensors", model.text, model.seen.nonzero()[:, 0], notes)


def _notes(preset: Preset, params: ClipTrainParams) -> dict[str, str]:
    return {
        "preset": preset.name,
        "made_by": "python -m followclick_core train",
        "trained": params.trainable,
        "trained_on": params.text,
    }


def gather(model: ClipModel) -> None:
    """Under FSDP, make every weight whole again; all processes take part."""
    from torch.distributed.tensor import DTensor

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                module._parameters[name] = torch.nn.Parameter(parameter.full_tensor(), parameter.requires_grad)
