"""What motion costs on Stable Diffusion 1.5: the time of a sampling step with a motion model over one without.

    python benchmarks/motion_cost.py --comfyui ~/ComfyUI --peer ~/ComfyUI-peers/ComfyUI-AnimateDiff-Evolved

All variants sample the same UNet in one ComfyUI process and take turns in every round, so what else the machine does
meets them alike; the ratios are of medians. Weights are random with SD1.5's shapes, as speed does not depend on them.

    plain        every frame a picture of its own, no motion model
    animatediff  an AnimateDiff v2 file, sampled by this pack
    followclick  this pack's own motion model: motion-augmented attention, first frame and magnitude on top
    peer         the same AnimateDiff v2 file, sampled by AnimateDiff Evolved (left out without --peer)
"""

import argparse
import asyncio
import importlib
import importlib.util
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

PACK = Path(__file__).parents[1]
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
}
ANIMATEDIFF, FOLLOWCLICK = "mm_sd_v15_v2.safetensors", "followclick_sd15.safetensors"


def main() -> None:
    arguments = _arguments()
    sys.argv = [sys.argv[0]]  # ComfyUI reads it
    sys.path.insert(0, str(arguments.comfyui))
    host = _Host(arguments)
    with tempfile.TemporaryDirectory() as folder:
        variants = host.variants(Path(folder))
        print(f"{arguments.frames} frames of {arguments.size} px, {host.where()}", flush=True)
        report(host.measure(variants), host.peaks)


class _Host:
    """ComfyUI in this process with the packs in it."""

    def __init__(self, arguments: argparse.Namespace):
        from comfy.cli_args import args

        args.cpu = arguments.device == "cpu"
        import folder_paths
        import torch
        import utils.extra_config  # noqa: F401  # before nodes, which puts another `utils` in the way

        import nodes

        self.arguments, self.torch, self.nodes, self.folder_paths = arguments, torch, nodes, folder_paths
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[arguments.dtype]
        self.peaks: dict[str, float] = {}

    def where(self) -> str:
        torch = self.torch
        name = (
            torch.cuda.get_device_name() if self.arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} cores"
        )
        return f"{name}, {self.arguments.dtype}, PyTorch {torch.__version__}"

    def variants(self, folder: Path) -> dict[str, tuple]:
        """Name -> (MODEL, conditioning)."""
        self.folder_paths.add_model_folder_path("animatediff_models", str(folder))
        _load(PACK / "tests" / "checkpoint_files.py").write_motion_file(
            folder / ANIMATEDIFF, "animatediff_v2", width=320, dtype=self.torch.float16
        )
        plain, text = self._sd15(), [[self.torch.randn(1, 77, 768), {}]]
        asyncio.run(self.nodes.load_custom_node(str(PACK)))
        core = f"{PACK}.followclick_core.models.motion_model"
        motion_model = importlib.import_module(core)
        motion_model.save_motion_model(folder / FOLLOWCLICK, motion_model.MotionModel(motion_model.MotionParams()))
        variants = {
            "plain": (plain, text),
            "animatediff": (self._ours(plain, ANIMATEDIFF), text),
            "followclick": (self._ours(plain, FOLLOWCLICK), self._conditioned(text)),
        }
        if self.arguments.peer:
            asyncio.run(self.nodes.load_custom_node(str(self.arguments.peer)))
            variants["peer"] = (self._peers(plain), text)
        return variants

    def measure(self, variants: dict[str, tuple]) -> dict[str, list[float]]:
        """Seconds of each step of each variant, in turns; the first step of a sampling is not counted."""
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for index in range(self.arguments.rounds + 1):
            for name, (model, conditioning) in variants.items():
                if self.arguments.device == "cuda":
                    self.torch.cuda.reset_peak_memory_stats()
                taken = self._steps(model, conditioning)
                if self.arguments.device == "cuda":
                    self.peaks[name] = self.torch.cuda.max_memory_allocated() / 2**30
                if index:  # the first round warms up
                    seconds[name] += taken
        return seconds

    def _steps(self, model: object, conditioning: list) -> list[float]:
        import comfy.sample

        times: list[float] = []

        def note(*_: object) -> None:
            if self.arguments.device == "cuda":
                self.torch.cuda.synchronize()
            times.append(time.perf_counter())

        side, steps = self.arguments.size // 8, self.arguments.steps
        latent = self.torch.zeros(self.arguments.frames, 4, side, side)
        noise = self.torch.randn(latent.shape, generator=self.torch.Generator().manual_seed(0))
        scale = self.arguments.cfg
        with self.torch.inference_mode():
            comfy.sample.sample(
                model, noise, steps, scale, "euler", "normal", conditioning, conditioning, latent, callback=note, seed=0
            )
        return [after - before for before, after in itertools.pairwise(times)]

    def _sd15(self) -> object:
        import comfy.model_management
        import comfy.model_patcher
        import comfy.supported_models

        config = comfy.supported_models.SD15(dict(UNET))
        config.set_inference_dtype(self.dtype, None)
        device = comfy.model_management.get_torch_device()
        model = config.get_model({}, "", device=self.torch.device("cpu"))
        self.torch.manual_seed(0)
        for parameter in model.parameters():  # the host leaves them as they lie in memory
            self.torch.nn.init.normal_(parameter, std=0.5 / max(1, parameter[0].numel()) ** 0.5)
        return comfy.model_patcher.ModelPatcher(model, device, comfy.model_management.unet_offload_device())

    def _ours(self, model: object, name: str) -> object:
        motion = self._run("FollowClick_LoadMotionModel", name=name)[0]
        return self._run("FollowClick_ApplyMotionModel", model=model, motion_model=motion)[0]

    def _conditioned(self, text: list) -> list:
        with_motion = importlib.import_module(f"{PACK}.nodes.host_motion").with_motion
        side = self.arguments.size // 8
        first_frame = self.torch.randn(self.arguments.frames, 5, side, side)
        return with_motion(text, self.torch.randn(1, 77, 768), [6.0], first_frame)

    def _peers(self, model: object) -> object:
        mapped = self.nodes.NODE_CLASS_MAPPINGS
        loaded = _call(mapped["ADE_LoadAnimateDiffModel"], model_name=ANIMATEDIFF)[0]
        applied = _call(mapped["ADE_ApplyAnimateDiffModelSimple"], motion_model=loaded)[0]
        return _call(mapped["ADE_UseEvolvedSampling"], model=model, beta_schedule="autoselect", m_models=applied)[0]

    def _run(self, node: str, **inputs: object) -> tuple:
        return self.nodes.NODE_CLASS_MAPPINGS[node].EXECUTE_NORMALIZED(**inputs).result


def report(seconds: dict[str, list[float]], peaks: dict[str, float]) -> None:
    """One line for each variant: median and fastest step, and the ratios to plain of both."""
    plain = seconds["plain"]
    for name, times in seconds.items():
        median, fastest = statistics.median(times), min(times)
        memory = f"   peak {peaks[name]:.2f} GiB" if name in peaks else ""
        print(
            f"{name:<12}{1000 * median:9.0f} ms   {median / statistics.median(plain):5.2f} x plain"
            f"   (fastest {1000 * fastest:.0f} ms, {fastest / min(plain):.2f} x){memory}"
        )
    print(json.dumps({name: [round(value, 4) for value in times] for name, times in seconds.items()}))


def _call(node: type, **inputs: object) -> tuple:
    """A node of the older kind: an object whose class names its function."""
    function: Callable[..., tuple] = getattr(node(), node.FUNCTION)  # type: ignore[attr-defined]
    return function(**inputs)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=Path.home() / "ComfyUI", help="its folder")
    parser.add_argument("--peer", type=Path, help="AnimateDiff Evolved's folder (1.5.6 for ComfyUI 0.3.64)")
    parser.add_argument("--size", type=int, default=128, help="side of the clip in pixels")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each sampling; the first one is not counted")
    parser.add_argument("--cfg", type=float, default=1.0, help="above 1 the host samples two clips at once")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
