"""`python -m followclick_core train`: the stages in order, into one run folder, resumable at any moment."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError
from ..data.art import ArtPack
from ..data.scenes import SceneGenerator, SceneParams
from ..data.scenes_ahead import ScenesAhead
from ..files import write_json
from ..generate import LATENT_SCALE
from ..models.autoencoder import Autoencoder, Block, load_autoencoder, save_autoencoder
from ..models.blocks import ResBlock, SpatialTransformer
from ..models.bundle import FILES
from ..models.motion_model import MotionModel, load_motion_model, save_motion_model
from ..models.motion_module import TemporalTransformer
from ..models.text_encoder import known_tokens, load_text_encoder, save_text_encoder
from ..models.unet import load_unet, save_unet
from ..presets import Preset, get_preset
from .loop import Limits, LoopParams, Stage, run_stage
from .params import TRAINING, MotionTrainParams
from .ranks import Ranks, join_ranks
from .run_dir import RunDir
from .stages import AutoencoderStage, Generative, MotionStage, SpatialStage

STAGES = ("autoencoder", "segmenter", "spatial", "motion", "decoder")


def train(
    preset_name: str,
    art: str | Path,
    run_dir: str | Path,
    stages: Sequence[str] = STAGES,
    steps: int | None = None,
    max_seconds: float | None = None,
    time_budget: float | None = None,
    device: str | None = None,
    compile_blocks: bool = False,
    start_from: str | Path | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    crop: int | None = None,
) -> bool:
    """Train a preset's models on generated clips; the same command continues where the last one stopped.

    Started by torchrun, the processes train one model together, each with a preset's batch of its own.

    Args:
        art: The art pack that `build-art` made.
        stages: Which of STAGES to run, in their order; each needs the results of those before it.
        steps: Steps of each stage, instead of the preset's.
        max_seconds: Stop all training after this long; checkpoints allow to go on.
        time_budget: Seconds for each stage, over all commands that continue it; ends a stage before its last step.
        start_from: A `weights` folder for the stages to begin with: trained at any size, and with every part that this
            preset has or fewer; what is new begins at zero. The segmenter's file may be missing.
        batch_size, learning_rate: Of the motion and the segmenter stage, instead of the preset's.
        crop: Of the motion stage; see MotionTrainParams.
        compile_blocks: torch.compile the blocks: a minute of warm-up, then about half as fast again on a GPU.

    Returns:
        Whether everything asked for is finished. Either way `run_dir/weights` holds the newest averaged weights.
    """
    preset = get_preset(preset_name)
    if preset_name not in TRAINING:
        raise ValueError(f"Preset {preset_name} cannot be trained from nothing; choose one of {', '.join(TRAINING)}.")
    unknown = set(stages) - set(STAGES)
    if unknown:
        raise ValueError(f"There is no training stage {', '.join(sorted(unknown))}; choose from {', '.join(STAGES)}.")
    options = Options(batch_size, learning_rate, crop)
    check_options(options, stages, preset)
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    # Of narrow heads and a thousand pixels its gradient was no numbers on an H100 (PyTorch 2.11, bfloat16).
    torch.backends.cuda.enable_cudnn_sdp(False)
    ranks, its_device = join_ranks(_device(device))
    trainer = Trainer(preset, options, Path(art), RunDir(run_dir), its_device, compile_blocks, ranks)
    if start_from is not None:
        trainer.begin_with(Path(start_from))
    finished = trainer.run_all([name for name in STAGES if name in stages], steps, max_seconds, time_budget)
    ranks.leave()
    return finished


@dataclass(frozen=True)
class Options:
    """What the command says otherwise than the preset of the stages motion and, but for the crop, segmenter."""

    batch_size: int | None = None
    learning_rate: float | None = None
    crop: int | None = None

    def motion(self, params: MotionTrainParams) -> MotionTrainParams:
        if self.batch_size is not None:
            params = params.with_batch(self.batch_size)
        if self.learning_rate is not None:
            params = replace(params, loop=replace(params.loop, learning_rate=self.learning_rate))
        return params if self.crop is None else replace(params, crop=self.crop)


def check_options(options: Options, stages: Sequence[str], preset: Preset) -> None:
    """ValueError for options that none of the stages has, and for a part of a clip that the UNet cannot take."""
    if options != Options() and not {"motion", "segmenter"} & set(stages):
        raise ValueError(
            "Batch and learning rate are the stages motion's and segmenter's, which are not to run; leave --batch and "
            "--learning-rate out, or name one of the two by --stage."
        )
    multiple, crop = LATENT_SCALE * preset.unet.size_multiple, options.crop
    if crop is not None and "motion" not in stages:
        raise ValueError("A part of the clips is the stage motion's, which is not to run; leave --crop out.")
    if crop is not None and (crop % multiple or not 0 < crop <= preset.size):
        raise ValueError(
            f"A part of {crop} px cannot be trained on; give --crop a multiple of {multiple} up to {preset.size}."
        )


class Trainer:
    """One run: its data, its device, and a method per stage."""

    def __init__(
        self,
        preset: Preset,
        options: Options,
        art: Path,
        run: RunDir,
        device: torch.device,
        compile_blocks: bool,
        ranks: Ranks = Ranks(),  # noqa: B008  # frozen
    ):
        params = TRAINING[preset.name]
        params = replace(params, motion=options.motion(params.motion))
        self.preset, self.options, self.params, self.run_dir, self.device = preset, options, params, run, device
        self.compile_blocks, self.ranks = compile_blocks, ranks
        self.art = ArtPack.load(art)
        self.scenes = training_scenes(self.art, SceneParams(size=preset.size), device, ranks)
        if ranks.is_main:
            run.save_config({"preset": asdict(preset), "training": asdict(params), "torch": torch.__version__})

    def begin_with(self, folder: Path) -> None:
        """Take over what weights another run has, where this run has made none of its own yet.

        Raises:
            FileNotFoundError: Others than the segmenter's, which no other stage needs, are missing.
        """
        files = {part: folder / f"{part}.safetensors" for part in FILES}
        missing = [part for part, path in files.items() if part != "segmenter" and not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"There are no weights of {', '.join(missing)} in {folder} to start from; name a run's weights folder."
            )
        for path in filter(Path.is_file, files.values()):
            if self.ranks.is_main and not (own := self.run_dir.weights / path.name).is_file():
                shutil.copyfile(path, own)
        self.ranks.wait()

    def run_all(
        self, stages: Sequence[str], steps: int | None, max_seconds: float | None, time_budget: float | None
    ) -> bool:
        """Train stage after stage for as long as there is time."""
        deadline = time.monotonic() + (math.inf if max_seconds is None else max_seconds)
        for stage in stages:
            remaining = self.ranks.agree(deadline - time.monotonic())
            limits = Limits(remaining, math.inf if time_budget is None else time_budget)
            if remaining < 5 or not self.run(stage, steps, limits):
                return False
        return True

    def run(self, stage: str, steps: int | None, limits: Limits) -> bool:
        """Train one stage and write its weights."""
        methods: dict[str, Callable[[int | None, Limits], bool]] = {
            "autoencoder": self._autoencoder,
            "segmenter": self._segmenter,
            "spatial": self._spatial,
            "motion": self._motion,
            "decoder": self._decoder,
        }
        done = methods[stage](steps, limits)
        self.ranks.wait()  # for the files that the next stage reads
        return done

    def _autoencoder(self, steps: int | None, limits: Limits) -> bool:
        torch.manual_seed(0)
        made = self.run_dir.weights / "autoencoder.safetensors"
        model = load_autoencoder(made) if made.is_file() else Autoencoder()
        model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compile(model, Block)
        stage = AutoencoderStage(model, self.params.autoencoder, self.scenes)
        done = self._loop(stage, self.params.autoencoder.loop, steps, limits)
        self._save_autoencoder(model)
        return done

    def _decoder(self, steps: int | None, limits: Limits) -> bool:
        """Train the decoder on alone: the latents stay those that the UNet knows."""
        made = self.run_dir.weights / "autoencoder.safetensors"
        model = load_autoencoder(made).train()
        model.taesd_encoder.requires_grad_(False)
        model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compile(model, Block)
        stage = AutoencoderStage(model, self.params.decoder, self.scenes, name="decoder")
        done = self._loop(stage, self.params.decoder.loop, steps, limits)
        self._save_autoencoder(model)
        return done

    def _segmenter(self, steps: int | None, limits: Limits) -> bool:
        from .segmenter import SEGMENTER_TRAINING, train_segmenter

        params = SEGMENTER_TRAINING[self.preset.name]
        if self.options.batch_size is not None:
            params = params.with_batch(self.options.batch_size)
        rate = self.options.learning_rate or params.learning_rate
        params = replace(params, steps=steps or params.steps, learning_rate=rate)
        self._check_same_recipe("segmenter", {"batch": params.batch_size, "learning-rate": rate})
        scene_params = SceneParams(size=self.preset.size, scales=params.scales)
        scenes = training_scenes(self.art, scene_params, self.device, self.ranks)
        out = self.run_dir.weights / "segmenter.safetensors"
        return train_segmenter(scenes, out, params, self.device, self.run_dir, limits, self.ranks)

    def _spatial(self, steps: int | None, limits: Limits) -> bool:
        model = self._generative()
        stage = SpatialStage(model, self._frozen_autoencoder(), self.params.spatial, self.preset, self.scenes)
        done = self._loop(stage, self.params.spatial.loop, steps, limits)
        self._save_generative(model)
        return done

    def _motion(self, steps: int | None, limits: Limits) -> bool:
        params = self.params.motion
        told = {"batch": params.batch_size, "learning-rate": params.loop.learning_rate, "crop": params.crop}
        self._check_same_recipe("motion", told)
        model = self._generative()
        stage = MotionStage(model, self._frozen_autoencoder(), self.params.motion, self.preset, self.scenes)
        done = self._loop(stage, self.params.motion.loop, steps, limits)
        self._save_generative(model)
        return done

    def _check_same_recipe(self, stage: str, told: dict[str, float | None]) -> None:
        """ValueError if the stage was begun with other options: it would be half of each, and say neither."""
        folder = self.run_dir.stage(stage)
        path = folder / "options.json"
        if path.is_file() and (folder / "checkpoint.pt").is_file():
            begun = json.loads(path.read_text(encoding="utf-8"))
            if changed := [f"--{name} {begun[name]}" for name in told if begun[name] != told[name]]:
                raise ValueError(
                    f"The stage {stage} of {self.run_dir.path} was begun with {', '.join(changed)}; give the same, or "
                    "another --run folder."
                )
        self.ranks.wait()  # until all have read it
        if self.ranks.is_main:
            write_json(path, told)

    def _loop(self, stage: Stage, params: LoopParams, steps: int | None, limits: Limits) -> bool:
        params = replace(params, steps=steps or params.steps)
        return run_stage(stage, params, self.run_dir, self.device, limits, ranks=self.ranks)

    def _generative(self) -> Generative:
        """UNet, motion model and text encoder as the stage before left them, or new ones."""
        torch.manual_seed(0)
        model = Generative(self.preset)
        files = {part: self.run_dir.weights / f"{part}.safetensors" for part in ("unet", "motion", "text_encoder")}
        if all(path.is_file() for path in files.values()):
            grow_into(model.unet, load_unet(files["unet"]).state_dict())
            load_older(model.motion, load_motion_model(files["motion"]))
            model.text.load_state_dict(load_text_encoder(files["text_encoder"]).state_dict())
            model.mark_seen(known_tokens(files["text_encoder"]))
        model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compile(model, ResBlock, SpatialTransformer, TemporalTransformer)
        return model

    def _frozen_autoencoder(self) -> Autoencoder:
        model = load_autoencoder(self.run_dir.weights / "autoencoder.safetensors").requires_grad_(False)
        model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compile(model, Block)
        return model

    def _compile(self, model: nn.Module, *kinds: type[nn.Module]) -> None:
        if not self.compile_blocks:
            return
        torch._dynamo.config.cache_size_limit = 64
        for module in model.modules():
            if isinstance(module, kinds):
                module.forward = torch.compile(module.forward, dynamic=False)  # type: ignore[method-assign]

    def _save_autoencoder(self, model: Autoencoder) -> None:
        if self.ranks.is_main:
            save_autoencoder(self.run_dir.weights / "autoencoder.safetensors", model, self._notes())

    def _save_generative(self, model: Generative) -> None:
        if not self.ranks.is_main:
            return
        weights, notes = self.run_dir.weights, self._notes()
        save_unet(weights / "unet.safetensors", model.unet, notes)
        save_motion_model(weights / "motion.safetensors", model.motion, notes)
        save_text_encoder(weights / "text_encoder.safetensors", model.text, model.seen.nonzero()[:, 0], notes)

    def _notes(self) -> dict[str, str]:
        return {"preset": self.preset.name, "made_by": "python -m followclick_core train"}


def grow_into(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the weights of a model that lacks some residual branches of this one.

    The new branches must end in zeros, as all of this package's do when they are made: it then computes the same.

    Raises:
        CheckpointError: `state` has entries that `model` lacks, or of other shapes.
    """
    own = model.state_dict()
    foreign = [key for key, value in state.items() if key not in own or own[key].shape != value.shape]
    if foreign:
        raise CheckpointError(
            f"These weights are of another architecture than the preset's: {', '.join(sorted(foreign)[:3])} does not "
            "fit; start from weights of the same preset."
        )
    model.load_state_dict({**own, **state})


def load_older(model: MotionModel, other: MotionModel) -> None:
    """Load a motion model's weights, also from before there were still gates; a new gate is all but shut."""
    state = other.state_dict()
    if other.still_gate is None:
        state |= {key: value for key, value in model.state_dict().items() if key.startswith("still_gate.")}
    model.load_state_dict(state)


def training_scenes(
    art: ArtPack,
    params: SceneParams,
    device: torch.device,
    ranks: Ranks = Ranks(),  # noqa: B008  # frozen
) -> SceneGenerator | ScenesAhead:
    """Scenes of the training split; with cores to spare beside a GPU, made ahead by processes of their own."""
    workers = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 2
    if ranks.count == 1 and (device.type == "cpu" or workers < 1):
        return SceneGenerator(art, params, device, split="train")
    scenes = SceneGenerator(art, params, "cpu", split="train")
    return ScenesAhead(scenes, device, max(1, workers), ranks.rank, ranks.count)


def _device(name: str | None) -> torch.device:
    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
