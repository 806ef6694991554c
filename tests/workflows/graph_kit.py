"""Graphs in the API form, put together by code, and the files that they load. Loaded by path from conftest.py."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from PIL import Image

from followclick_core.models.bundle import weights_path

Link = list  # [node id, output number]
FRAMES, STEPS = 4, 2
TINY_CHANNELS = 64  # a fifth of Stable Diffusion 1.5's, of which ControlNet files can still be told


@dataclass
class Graph:
    """Nodes by id; the ids count up, so two graphs built alike are the same to the host's cache."""

    nodes: dict[str, dict] = field(default_factory=dict)

    def add(self, kind: str, **inputs: object) -> Link:
        """The node's first output."""
        self.nodes[str(len(self.nodes) + 1)] = {"class_type": kind, "inputs": inputs}
        return [str(len(self.nodes)), 0]

    def save(self, samples: Link) -> str:
        """Write latents with all their bits; the id by which the run names the file."""
        return self.add("SaveLatent", samples=samples, filename_prefix="latents")[0]


def of(link: Link, number: int) -> Link:
    """Another output of the same node."""
    return [link[0], number]


@dataclass
class Clip:
    """A graph up to its sampler: what a user has connected there."""

    graph: Graph
    model: Link
    plain_model: Link  # before Apply Motion Model
    clip: Link
    vae: Link
    motion_model: Link
    positive: Link
    negative: Link
    latent: Link

    def sample(self, **other: object) -> Link:
        """KSampler's latents."""
        inputs = {
            "model": self.model,
            "positive": self.positive,
            "negative": self.negative,
            "latent_image": self.latent,
            "seed": 1,
            "steps": STEPS,
            "cfg": 5.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        }
        return self.graph.add("KSampler", **inputs | other)

    def saved(self, **other: object) -> str:
        return self.graph.save(self.sample(**other))


def clip_on(
    graph: Graph, model: Link, clip: Link, vae: Link, motion_model: Link, length: int = FRAMES, **apply: object
) -> Clip:
    """A photo whose left half moves: a drawn mask, so that no segmenter is needed."""
    image = graph.add("LoadImage", image="meadow.png")
    mask = graph.add("LoadImageMask", image="half.png", channel="red")
    region = graph.add("FollowClick_MotionRegion", clip=clip, mask=mask, motion_prompt="jump", motion_magnitude=6.0)
    positive = graph.add("CLIPTextEncode", clip=clip, text="jump")
    negative = graph.add("CLIPTextEncode", clip=clip, text="")
    first = graph.add(
        "FollowClick_FirstFrame",
        positive=positive,
        negative=negative,
        vae=vae,
        image=image,
        regions=region,
        motion_model=motion_model,
        length=length,
    )
    patched = graph.add("FollowClick_ApplyMotionModel", model=model, motion_model=motion_model, **apply)
    return Clip(graph, patched, model, clip, vae, motion_model, first, of(first, 1), of(first, 2))


def demo_clip(graph: Graph | None = None, length: int = FRAMES) -> Clip:
    """The pack's demo model, 4 frames at 128x96 pixels."""
    graph = graph or Graph()
    demo = graph.add("FollowClick_LoadDemoModel")
    return clip_on(graph, demo, of(demo, 1), of(demo, 2), of(demo, 3), length)


def tiny_clip(file: str, length: int = FRAMES) -> Clip:
    """A motion model file of another family on a random MODEL with the blocks of Stable Diffusion 1.5."""
    graph = Graph()
    demo = graph.add("FollowClick_LoadDemoModel")
    model = graph.add("Testing_RandomModel", channels=TINY_CHANNELS, text_width=128)
    motion_model = graph.add("FollowClick_LoadMotionModel", name=file)
    return clip_on(graph, model, of(demo, 1), of(demo, 2), motion_model, length)


def every_switch(**on) -> dict:
    """The inputs of Accelerate Sampling (exact), of which a graph names each."""
    off = {"compile_blocks": "off", "any_size": True, "channels_last": False, "cuda_graphs": False, "text_keys": False}
    return {**off, "guidance_start": 0.0, "guidance_end": 1.0, "fused_feed_forward": False, **on}


def plain_picture(graph: Graph | None = None) -> Clip:
    """Text to image on the demo MODEL, without any node of this pack after the loader."""
    graph = graph or Graph()
    demo = graph.add("FollowClick_LoadDemoModel")
    positive = graph.add("CLIPTextEncode", clip=of(demo, 1), text="an eagle, photo of a meadow")
    negative = graph.add("CLIPTextEncode", clip=of(demo, 1), text="")
    latent = graph.add("EmptyLatentImage", width=128, height=96, batch_size=2)
    return Clip(graph, demo, demo, of(demo, 1), of(demo, 2), of(demo, 3), positive, negative, latent)


def write_pictures(folder: Path) -> None:
    """The photo and its mask, and a pose sequence: a stick figure that raises an arm, one picture per frame."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((128, 96), Image.Resampling.BICUBIC)
    photo.save(folder / "meadow.png")
    mask = np.zeros((96, 128), np.uint8)
    mask[20:80, 16:64] = 255
    Image.fromarray(mask).save(folder / "half.png")
    for index in range(FRAMES):
        pose = np.zeros((96, 128, 3), np.uint8)
        pose[30:80, 60:66] = (0, 255, 0)
        pose[30 - 6 * index : 34 - 6 * index, 60:100] = (255, 0, 0)
        Image.fromarray(pose).save(folder / f"pose{index}.png")


def unet_tensors() -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in safetensors.torch.load_file(weights_path("unet")).items()}


def write_lora(path: Path) -> None:
    """A LoRA as they are found on the internet: kohya's names, rank 4, on the UNet and on the text encoder."""
    torch.manual_seed(1)
    tensors = {}
    for name, weight in unet_tensors().items():
        if name.endswith(("to_q.weight", "to_v.weight")):
            _add_lora(tensors, "lora_unet_" + name.removesuffix(".weight").replace(".", "_"), weight.shape)
    _add_lora(tensors, "lora_te_text_model_encoder_layers_0_self_attn_v_proj", (128, 128))
    safetensors.torch.save_file(tensors, path)


def _add_lora(tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, ...], rank: int = 4) -> None:
    tensors[f"{name}.lora_up.weight"] = 0.2 * torch.randn(shape[0], rank)
    tensors[f"{name}.lora_down.weight"] = 0.2 * torch.randn(rank, shape[1])
    tensors[f"{name}.alpha"] = torch.tensor(float(rank))


def write_controlnet(path: Path, unet: dict[str, torch.Tensor]) -> None:
    """An openpose ControlNet (cldm's keys and layout) for this UNet: its encoder, a hint encoder, output convolutions.

    The convolutions that are zero before training are random here, so that it is heard.
    """
    torch.manual_seed(2)
    encoder = ("input_blocks.", "middle_block.", "time_embed.")
    tensors = {name: weight.clone() for name, weight in unet.items() if name.startswith(encoder)}
    blocks = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("input_blocks.")})
    for block in blocks:
        _add_conv(tensors, f"zero_convs.{block}.0", *[_block_width(unet, block)] * 2, size=1)
    middle = unet["middle_block.0.in_layers.0.weight"].shape[0]
    _add_conv(tensors, "middle_block_out.0", middle, middle, size=1)
    widths = [3, 16, 16, 32, 32, 96, 96, 256, unet["input_blocks.0.0.weight"].shape[0]]
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        _add_conv(tensors, f"input_hint_block.{2 * index}", before, after, size=3)
    safetensors.torch.save_file(tensors, path)


def _block_width(unet: dict[str, torch.Tensor], block: int) -> int:
    names = ("0.weight", "0.op.weight", "0.out_layers.3.weight")
    return next(unet[key].shape[0] for name in names if (key := f"input_blocks.{block}.{name}") in unet)


def _add_conv(tensors: dict[str, torch.Tensor], name: str, before: int, after: int, size: int) -> None:
    # Twice what keeps a signal's size, as the nonlinearity after it halves it.
    tensors[f"{name}.weight"] = torch.randn(after, before, size, size) * 2 / (before * size * size) ** 0.5
    tensors[f"{name}.bias"] = torch.zeros(after)


def latents(server, run, node: str) -> np.ndarray:
    """What the Save Latent node wrote, f 4 h w."""
    (path,) = run.outputs[node]
    return safetensors.numpy.load(path.read_bytes())["latent_tensor"]


def ask(server, path: str) -> object:
    return json.loads(server.get(path))
