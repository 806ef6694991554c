"""ComfyUI in this process, the pack in ComfyUI, and small random models instead of trained ones.

Random weights test more than trained ones here: no branch of the network is near zero, so nothing that is left out or
counted twice goes unseen.
"""

import asyncio
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest

PACK = Path(__file__).parents[3]
COMFYUI = Path(os.environ["COMFYUI_PATH"])

sys.path.insert(0, str(COMFYUI))
from comfy.cli_args import args  # noqa: E402

args.cpu = True
import comfy.ldm.modules.attention as host_attention  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
import utils.extra_config  # noqa: E402, F401  # before nodes, as in main.py: nodes puts another `utils` in the way

import nodes  # noqa: E402

torch.set_num_threads(1)  # tiny models only lose time to more

OWN_MODULES_BEFORE = {name for name in ("cv2", "segment_anything") if name in sys.modules}


@dataclass(frozen=True)
class Pack:
    """The loaded pack: its nodes by name, and its modules as the host has them."""

    loaded: bool
    imported: set[str]

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{PACK}.{name}".replace(".py", ""))

    def node(self, name: str) -> type:
        return nodes.NODE_CLASS_MAPPINGS[f"FollowClick_{name}"]

    def run(self, name: str, /, **inputs: object) -> tuple:
        return self.node(name).EXECUTE_NORMALIZED(**inputs).result

    def regions(self, demo, mask, prompt="run", magnitude=6.0, **more) -> tuple:
        inputs = {"mask": mask, "clip": demo.clip, "motion_prompt": prompt, "motion_magnitude": magnitude}
        return self.run("MotionRegion", **inputs, **more)[0]

    def first_frame(self, demo, picture, regions, length=4, **other) -> tuple:
        inputs = {
            "positive": self.text(demo, "run"),
            "negative": self.text(demo, ""),
            "vae": demo.vae,
            "image": picture,
            "regions": regions,
            "motion_model": demo.motion_model,
            "length": length,
        }
        return self.run("FirstFrame", **inputs | other)

    def text(self, demo, prompt: str) -> list:
        return nodes.CLIPTextEncode().encode(demo.clip, prompt)[0]

    def sample(self, model, positive, negative, latent, steps=2, cfg=5.0, seed=0) -> torch.Tensor:
        """What KSampler gives."""
        result = nodes.KSampler().sample(model, seed, steps, cfg, "euler", "simple", positive, negative, latent)
        return result[0]["samples"]

    def sample_graph(self, graph: "Graph", **other) -> torch.Tensor:
        return self.sample(
            other.pop("model", graph.model),
            other.pop("positive", graph.positive),
            other.pop("negative", graph.negative),
            other.pop("latent", graph.latent),
            **other,
        )


@pytest.fixture(scope="session")
def pack() -> Pack:
    loaded = asyncio.run(nodes.load_custom_node(str(PACK)))
    return Pack(loaded, {name for name in ("cv2", "segment_anything") if name in sys.modules} - OWN_MODULES_BEFORE)


@pytest.fixture(scope="session")
def weights(pack, tmp_path_factory) -> Path:
    """A folder with random weights of the nano preset, used wherever the pack's own are loaded."""
    folder = tmp_path_factory.mktemp("weights")
    write_random_weights(pack, folder)
    pack.module("followclick_core.models.bundle").WEIGHTS_DIR = folder
    return folder


def write_random_weights(pack: Pack, folder: Path) -> None:
    module = lambda name: pack.module(f"followclick_core.{name}")  # noqa: E731
    preset, notes = module("presets").get_preset("nano"), {"preset": "nano"}
    torch.manual_seed(0)
    module("models.unet").save_unet(
        folder / "unet.safetensors", randomised(module("models.unet").UNet(preset.unet)), notes
    )
    motion = randomised(module("models.motion_model").MotionModel(preset.motion))
    module("models.motion_model").save_motion_model(folder / "motion.safetensors", motion, notes)
    autoencoder = randomised(module("models.autoencoder").Autoencoder())
    module("models.autoencoder").save_autoencoder(folder / "autoencoder.safetensors", autoencoder, notes)
    text = module("models.text_encoder")
    known = text.tokenize(["run", "jump", "spin left"]).unique()
    text.save_text_encoder(folder / "text_encoder.safetensors", randomised(text.TextEncoder(preset.text)), known, notes)
    small_sam = module("segment.small_sam")
    params = small_sam.SmallSamParams(image_size=128, embed_dim=64, mlp_dim=64)
    small_sam.save_small_sam(folder / "segmenter.safetensors", small_sam.build_small_sam(params), params)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5 / parameter[0].numel() ** 0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="session")
def checkpoint_files() -> ModuleType:
    """The module tests/checkpoint_files.py: motion model files of every family."""
    spec = importlib.util.spec_from_file_location("checkpoint_files", Path(__file__).parents[2] / "checkpoint_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes run in it."""
    with torch.inference_mode():
        yield


@dataclass(frozen=True)
class Demo:
    model: object
    clip: object
    vae: object
    motion_model: object
    segmenter: object


@pytest.fixture(scope="session")
def demo(pack, weights) -> Demo:
    with torch.inference_mode():
        return Demo(*pack.run("LoadDemoModel"))


@pytest.fixture(scope="session")
def picture() -> torch.Tensor:
    """An IMAGE of one picture, 96 x 128."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 12, 16, generator=generator)
    return torch.nn.functional.interpolate(coarse, (96, 128), mode="bicubic").clamp(0, 1).movedim(1, -1)


@pytest.fixture(scope="session")
def square() -> torch.Tensor:
    """A MASK for `picture`: a square left of the middle."""
    mask = torch.zeros(1, 96, 128)
    mask[:, 30:70, 20:60] = 1
    return mask


@dataclass(frozen=True)
class Graph:
    """What a graph has at the sampler's inputs."""

    model: object
    positive: list
    negative: list
    latent: dict


@pytest.fixture(scope="session")
def graph(pack, demo, picture, square) -> Graph:
    """The graph of click_to_animate up to the sampler, with a drawn mask."""
    with torch.inference_mode():
        positive, negative, latent = pack.first_frame(demo, picture, pack.regions(demo, square))
        model = pack.run("ApplyMotionModel", model=demo.model, motion_model=demo.motion_model)[0]
    return Graph(model, positive, negative, latent)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The host's folders inside a folder that has more in it."""
    for name in ("input", "output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


@dataclass(frozen=True)
class Small:
    """The host's MODEL, and the core's UNet of the same weights."""

    model: object
    unet: torch.nn.Module


@pytest.fixture(scope="module")
def small(pack, demo):
    core, schedules = pack.module("followclick_core.models.unet"), pack.module("followclick_core.diffusion.schedule")
    width = demo.clip.encode_from_tokens(demo.clip.tokenize("")).shape[-1]
    torch.manual_seed(0)
    with torch.inference_mode(False):
        unet = core.UNet(core.UNetParams(model_channels=32, context_dim=width))
        for parameter in unet.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    own = schedules.ScheduleParams(beta_schedule="linear", zero_terminal_snr=False, prediction_type="epsilon")
    model = pack.module("nodes.host_models").host_model(unet.params, own, unet.state_dict(), "small")
    return Small(model, unet.eval())


@pytest.fixture(scope="module")
def files(pack, small, checkpoint_files, tmp_path_factory):
    """A file of each family in the host's folder for AnimateDiff's models, and a motion LoRA in that for LoRAs."""
    folder = tmp_path_factory.mktemp("models")
    for name in checkpoint_files.FAMILIES:
        checkpoint_files.write_motion_file(folder / f"{name}.safetensors", name, text=small.unet.params.context_dim)
    torch.save(checkpoint_files.lora_tensors("animatediff_v2"), folder / "pan.ckpt")
    motion_model = pack.module("followclick_core.models.motion_model")
    params = motion_model.MotionParams(model_channels=32, context_dim=small.unet.params.context_dim)
    for name, gated in (("followclick", False), ("followclick_gated", True)):
        torch.manual_seed(0)
        with torch.inference_mode(False):
            own = randomised(motion_model.MotionModel(replace(params, still_gate=gated)))
        motion_model.save_motion_model(folder / f"{name}.safetensors", own)
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("animatediff_models", "animatediff_motion_lora"):
            paths, extensions = folder_paths.folder_names_and_paths[kind]
            patch.setitem(folder_paths.folder_names_and_paths, kind, ([*paths, str(folder)], extensions))
        yield folder


@pytest.fixture
def load(pack, files):
    return lambda name: pack.run("LoadMotionModel", name=f"{name}.safetensors")[0]


@pytest.fixture
def animate(pack, demo, small, picture, square):
    """First Frame and Apply Motion Model for a motion model: MODEL, conditionings, LATENT."""

    def run(motion, magnitude=6.0, length=3, model=None, text="a ball", **other):
        regions = other.pop("regions", None) or pack.regions(demo, square, magnitude=magnitude)
        motion = replace(motion, trained_size=128)  # half a thousand pixels would take long here
        graph = pack.first_frame(
            demo,
            picture,
            regions,
            length,
            motion_model=motion,
            **{"positive": pack.text(demo, text), "negative": pack.text(demo, "blurred")} | other,
        )
        return pack.run("ApplyMotionModel", model=model or small.model, motion_model=motion)[0], *graph

    return run


@pytest.fixture
def gpu_attention(monkeypatch):
    """The attention that the host takes on a GPU; on a CPU it asks the system for free memory at every call."""
    monkeypatch.setattr(host_attention, "optimized_attention", host_attention.attention_pytorch)
