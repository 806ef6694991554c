"""ComfyUI in this process: a Stable Diffusion 1.5 MODEL with random weights, packs, their nodes, and files to load."""

import asyncio
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

PACK = Path(__file__).parents[2]
WIDTH = 320  # channels of SD1.5's first level
TEXT, TOKENS = 768, 77
ANIMATEDIFF, FOLLOWCLICK = "mm_sd_v15_v2.safetensors", "followclick_sd15.safetensors"
MEMORY = ("normal", "lowvram", "novram")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def unet_config(width: int) -> dict[str, Any]:
    """SD1.5's, at another width if it is to be small."""
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": width,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "num_heads": 8,
        "context_dim": TEXT,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_spatial_transformer": True,
        "legacy": False,
        "use_temporal_attention": False,
    }


@dataclass(frozen=True)
class Clip:
    """A MODEL that samples clips.

    Args:
        conditioning: The host's CONDITIONING for a clip's size and number of frames; both halves of guidance get it.
    """

    model: Any
    conditioning: Callable[[int, int], list]


class Host:
    """ComfyUI with this pack loaded.

    Args:
        comfyui: Its folder.
        folder: For the motion model files, about 2 GB at full width.
        device: "cpu" or "cuda".
        width: Channels of the UNet's first level, a multiple of 32; 320 is SD1.5's.
        memory: One of MEMORY: how the host keeps weights, as its options of these names have it.
        gpu_gib: So much of the GPU's memory exists for this process, as on a smaller GPU; None: all of it.
    """

    def __init__(
        self,
        comfyui: Path,
        folder: Path,
        device: str,
        dtype: torch.dtype,
        width: int = WIDTH,
        memory: str = "normal",
        gpu_gib: float | None = None,
    ):
        if gpu_gib is not None:
            _limit_memory(round(gpu_gib * 2**30))
        sys.argv = sys.argv[:1]  # ComfyUI reads it
        sys.path.insert(0, str(comfyui))
        from comfy.cli_args import args

        args.cpu = device == "cpu"
        args.lowvram, args.novram = memory == "lowvram", memory == "novram"
        # Motion models take the type that the host would choose for a UNet: let it choose this one.
        args.fp32_unet, args.fp16_unet, args.bf16_unet = (dtype == each for each in DTYPES.values())
        import folder_paths
        import utils.extra_config  # noqa: F401  # before nodes, which puts another `utils` in the way
        from comfy.model_management import get_torch_device

        import nodes

        self.device, self.dtype, self.width = get_torch_device(), dtype, width
        self._nodes, self._folder = nodes, folder
        torch.manual_seed(0)
        folder_paths.add_model_folder_path("animatediff_models", str(folder))
        self._text = torch.randn(1, TOKENS, TEXT)
        self.plain = self._sd15()
        self.load_pack(PACK)
        self._write_animatediff()

    def load_pack(self, folder: Path) -> None:
        """Load a pack as the host does at its start.

        Raises:
            RuntimeError: it did not load; the host has said why.
        """
        if not asyncio.run(self._nodes.load_custom_node(str(folder))):
            raise RuntimeError(f"ComfyUI could not load the pack in {folder}; its message is above.")

    def node(self, name: str, /, **inputs: object) -> tuple:
        """What a node returns, of the older kind (an object whose class names its function) or of the newer one.

        Args:
            inputs: Of nodes of the newer kind, those that are left out are as the node has them at first.
        """
        kind = self._nodes.NODE_CLASS_MAPPINGS.get(name)
        if kind is None:
            raise ValueError(f"No pack that is loaded has a node {name!r}; name its id.")
        if hasattr(kind, "EXECUTE_NORMALIZED"):
            defaults = {each.id: each.default for each in kind.define_schema().inputs if hasattr(each, "default")}
            given = {name: value for name, value in defaults.items() if value is not None} | inputs
            return kind.EXECUTE_NORMALIZED(**given).result
        function: Callable[..., tuple] = getattr(kind(), kind.FUNCTION)
        return function(**inputs)

    def core(self, module: str) -> ModuleType:
        """A module of the pack, under the name by which the host has loaded it."""
        return importlib.import_module(f"{PACK}.{module}")

    def text_only(self, _size: int, _frames: int) -> list:
        """A text of SD1.5's shape, and nothing about motion."""
        return [[self._text, {}]]

    def text_and_motion(self, size: int, frames: int) -> list:
        """With what this pack's own motion model reads: motion text, magnitude and first frame."""
        with_motion = self.core("nodes.host_motion").with_motion
        first_frame = torch.randn(frames, 5, size // 8, size // 8)
        return with_motion([[self._text, {}]], self._text.flip(1), [6.0], first_frame)

    def animatediff(self) -> Clip:
        """AnimateDiff v2 in this pack."""
        return Clip(self._with_motion(ANIMATEDIFF), self.text_only)

    def followclick(self) -> Clip:
        """This pack's own motion model, with motion-augmented attention, first frame and magnitude."""
        return Clip(self._with_motion(FOLLOWCLICK), self.text_and_motion)

    def sample(self, clip: Clip, noise: Tensor, steps: int, cfg: float, note: Callable[[], None]) -> Tensor:
        """Sample by Euler's method; `note` is called once in every step."""
        import comfy.sample

        conditioning = clip.conditioning(8 * noise.shape[-1], len(noise))
        with torch.inference_mode():
            return comfy.sample.sample(
                clip.model,
                noise,
                steps,
                cfg,
                "euler",
                "normal",
                conditioning,
                conditioning,
                torch.zeros_like(noise),
                callback=lambda *_: note(),
                disable_pbar=True,
                seed=0,
            )

    def vae(self) -> Any:
        """SD1.5's autoencoder as a VAE of the host."""
        import comfy.ldm.models.autoencoder
        import comfy.sd

        with self.device:
            model = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=dict(VAE), embed_dim=4)
        _randomise(model)
        return comfy.sd.VAE(sd=model.state_dict())

    def unload(self) -> None:
        """Take every model of the host's off the device."""
        import comfy.model_management

        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()

    def _sd15(self) -> Any:
        import comfy.model_management
        import comfy.model_patcher
        import comfy.supported_models

        config = comfy.supported_models.SD15(unet_config(self.width))
        config.set_inference_dtype(self.dtype, None)
        # On the device at once: a billion random numbers take long on a CPU.
        model = config.get_model({}, "", device=self.device)
        _randomise(model)
        offload = comfy.model_management.unet_offload_device()
        model = model.eval().to(offload)  # as the host has it before it first samples
        return comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), offload)

    def _write_animatediff(self) -> None:
        """A file with the names and shapes of AnimateDiff v2's, as every pack reads it."""
        family = self.core("followclick_core.families").get_family("animatediff_v2")
        model = self._random_motion(context_dim=None, family=family.name)
        frame_positions = self.core("followclick_core.models.motion_module").frame_positions
        tensors = {key: value.half().cpu() for key, value in model.state_dict().items()}
        for key in [key for key in tensors if key.endswith(".to_q.weight")]:
            positions = frame_positions(family.positions, len(tensors[key]), torch.device("cpu"), torch.float32)
            tensors[key.replace("to_q.weight", "pos_encoder.pe")] = positions[None].half()
        save_file(tensors, self._folder / ANIMATEDIFF)

    def _with_motion(self, name: str) -> Any:
        path = self._folder / name
        if not path.exists():
            self.core("followclick_core.models.motion_model").save_motion_model(path, self._random_motion())
        motion = self.node("FollowClick_LoadMotionModel", name=name)[0]
        return self.node("FollowClick_ApplyMotionModel", model=self.plain, motion_model=motion)[0]

    def _random_motion(self, **params: object) -> Any:
        motion_model = self.core("followclick_core.models.motion_model")
        with self.device:
            model = motion_model.MotionModel(motion_model.MotionParams(model_channels=self.width, **params))
        _randomise(model)  # zeros multiply faster
        return model


def _limit_memory(size: int) -> None:
    """Let the process have and see `size` bytes of the GPU alone."""
    ask = torch.cuda.mem_get_info
    torch.cuda.set_per_process_memory_fraction(size / ask()[1])

    def mem_get_info(device: object = None) -> tuple[int, int]:
        return max(0, min(ask(device)[0], size - torch.cuda.memory_reserved(device))), size  # type: ignore[arg-type]

    torch.cuda.mem_get_info = mem_get_info


def _randomise(model: torch.nn.Module) -> None:
    """The host leaves parameters as they lie in memory."""
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5 / max(1, parameter[0].numel()) ** 0.5)
