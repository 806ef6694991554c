"""Joins a motion model to a UNet by forward hooks: this package's UNet or the host's, they share layer names.

Hooks insert no module, so no state-dict key changes, LoRAs stay valid and other packs' patches keep working; detaching
leaves nothing behind.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..shapes import Frames, PerSample, Tokens, Video
from .motion_model import MotionModel
from .motion_module import KeyValue, MotionModule, MotionText, RegionKeyValue
from .region_hooks import RegionBlend, RegionHooks
from .still_gate import StillGate


@dataclass
class MotionConditioning:
    """What one UNet call needs besides noisy latents, timestep and context.

    Args:
        num_frames: Frames per clip; the UNet's batch is (b f).
        context: Embedding of the motion prompt, b n c; None skips the motion-augmented attention.
        magnitude: Mean flow in the region, pixels per frame at 512 pixels of width, for each clip, [b], or for
            each of its frames, [b, f]; None adds no embedding.
        first_frame: Mask and first-frame latents, b 5 f h w (conditioning.first_frame_condition); None leaves them out.
        fps: Frames per second, for families that are told; None takes the family's own.
        regions: Several regions with motions of their own: their prompts and magnitudes take the place of `context`
            and, where the blend has them, of `magnitude`.
    """

    num_frames: int
    context: Tokens | None = None
    magnitude: PerSample | Float[Tensor, "b f"] | None = None
    first_frame: Video | None = None
    regions: RegionBlend | None = None
    fps: float | None = None
    # Projected once and kept for all steps; `dataclasses.replace` hands it on, so other frames share it.
    _key_values: dict[int, KeyValue | None] = field(default_factory=dict, repr=False)
    # Kept for all steps as well, but of these very frames.
    _channels: dict[int, Frames] = field(default_factory=dict, init=False, repr=False)

    def text_for(self, module: MotionModule, features: Tensor) -> MotionText | None:
        """This module's keys and values of the motion text, and with several regions their shares of `features`."""
        if self.regions is None:
            return None if self.context is None else self._projected(module, self.context)
        if self.regions.contexts is None:
            return None
        key_value = self._projected(module, self.regions.contexts.flatten(0, 1))
        if key_value is None:
            return None
        return RegionKeyValue(*key_value, self.regions.shares_at((features.shape[-2], features.shape[-1]), features))

    def channels_for(self, motion_model: MotionModel, device: torch.device) -> Frames | None:
        """What the model's own first convolution sees, in the number format of its weights; None without a first frame.

        PIA's depend on the magnitude's numbers, and to look at these is to wait for the GPU.
        """
        if self.first_frame is None:
            return None
        if torch.is_grad_enabled():  # what was kept without gradients could not be trained on
            return self._laid_out(motion_model, device)
        if id(motion_model) not in self._channels:
            self._channels[id(motion_model)] = self._laid_out(motion_model, device)
        return self._channels[id(motion_model)]

    def _laid_out(self, motion_model: MotionModel, device: torch.device) -> Frames:
        regions, dtype = self.regions, motion_model.first_frame_conv.weight.dtype  # type: ignore[union-attr]
        if regions is None or regions.magnitudes is None:
            how = (self.magnitude,)
        else:
            how = (regions.magnitudes, regions.shares)
        channels = motion_model.family.channels(self.first_frame, *how)  # type: ignore[arg-type]
        return rearrange(channels, "b c f h w -> (b f) c h w").to(device, dtype)  # type: ignore[arg-type]

    def _projected(self, module: MotionModule, context: Tokens) -> KeyValue | None:
        # The host leaves parameters as trainable as they were made, but samples without gradients.
        if torch.is_grad_enabled() and (context.requires_grad or next(module.parameters()).requires_grad):
            return module.project_text(context)
        if id(module) not in self._key_values:
            weight = next(module.parameters())
            self._key_values[id(module)] = module.project_text(context.to(weight.device, weight.dtype))
        return self._key_values[id(module)]


class Attachment:
    """The hooks of one motion model on one UNet."""

    def __init__(self, unet: nn.Module, motion_model: MotionModel):
        self.motion_model = motion_model
        self._unet = unet
        self._handles: list[RemovableHandle] = []
        self._region_handles: list[RemovableHandle] = []
        self._conditioning: MotionConditioning | None = None
        self._timesteps: Tensor | None = None
        self._x_t: Tensor | None = None  # of the call that runs

    @contextlib.contextmanager
    def conditioned(self, conditioning: MotionConditioning, timesteps: Tensor | None = None) -> Iterator[None]:
        """Use `conditioning` for the UNet calls inside the block; outside it the UNet is the plain image model.

        Args:
            timesteps: What the UNet is called with, for each of the (b f) frames; only a still gate reads them.

        Raises:
            ValueError: the motion model knows no positions for so many frames, or has a still gate and is not told
                the timesteps.
        """
        self.motion_model.family.check_frames(conditioning.num_frames)
        # Only clips of several regions pay for the hooks that these need.
        if conditioning.regions is not None and not self._region_handles:
            hooks = RegionHooks(self._regions, self.motion_model.motion_embedding)
            self._region_handles.extend(hooks.set_on(self._unet))
        if timesteps is None and self.motion_model.still_gate is not None and conditioning.first_frame is not None:
            raise ValueError("This motion model has a still gate, so it must know the timesteps of the UNet's call.")
        previous = self._conditioning, self._timesteps
        self._conditioning, self._timesteps = conditioning, timesteps
        try:
            yield
        finally:
            self._conditioning, self._timesteps = previous
            self._x_t = None

    def detach(self) -> None:
        """Remove every hook; safe to call twice."""
        for handle in (*self._handles, *self._region_handles):
            handle.remove()
        self._handles.clear()
        self._region_handles.clear()

    def _regions(self) -> RegionBlend | None:
        return None if self._conditioning is None else self._conditioning.regions

    def hook_motion_module(self, layer: nn.Module, module: MotionModule) -> None:
        def run(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            conditioning = self._conditioning
            if conditioning is None:
                return output
            features = _as_weights_of(module, output)
            text = conditioning.text_for(module, features)
            return module(features, conditioning.num_frames, text).to(output.dtype)

        self._handles.append(layer.register_forward_hook(run))

    def hook_first_frame(self, layer: nn.Module) -> None:
        def add(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            conditioning = self._conditioning
            channels = None if conditioning is None else conditioning.channels_for(self.motion_model, output.device)
            if channels is None:
                return output
            if channels.shape[-2:] != output.shape[-2:] or len(channels) != len(output):
                raise ValueError(
                    f"The first-frame condition is for {len(channels)} frames of {tuple(channels.shape[-2:])} latents, "
                    f"but {len(output)} frames of {tuple(output.shape[-2:])} are sampled; make both equal."
                )
            return output + self.motion_model.first_frame_conv(channels).to(output.dtype)  # type: ignore[misc]

        self._handles.append(layer.register_forward_hook(add))

    def hook_magnitude(self, layer: nn.Module) -> None:
        def add(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            if self._conditioning is None or self._conditioning.magnitude is None:
                return output
            numbers = self._conditioning.magnitude.flatten().to(output.device)
            embedding = self.motion_model.motion_embedding(numbers).to(output.dtype)  # type: ignore[misc]
            # A number of a whole clip serves each of its frames.
            return output + embedding.repeat_interleave(len(output) // len(numbers), dim=0)

        self._handles.append(layer.register_forward_hook(add))

    def hook_still_gate(self, first: nn.Module, last: nn.Module, gate: StillGate) -> None:
        """Args: first, last: The UNet's first convolution, which sees the noisy latents, and its last."""

        def note(_layer: nn.Module, inputs: tuple[Tensor]) -> None:
            if self._gated_frame() is not None:
                self._x_t = inputs[0][:, :4]  # an inpainting UNet has more

        def mix(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            still = self._gated_frame()
            if still is None:
                return output
            x_t, timesteps = self._x_t, self._timesteps
            assert x_t is not None and timesteps is not None
            # Frame 0 holds the first frame in every layout.
            still = still[:, 1:, :1].to(x_t.device).expand(-1, -1, len(x_t) // len(still), -1, -1)
            still = rearrange(still, "b c f h w -> (b f) c h w")
            return gate(inputs[0], output, x_t, still, timesteps, self.motion_model.schedule)

        self._handles.append(first.register_forward_pre_hook(note))
        self._handles.append(last.register_forward_hook(mix))

    def _gated_frame(self) -> Video | None:
        return None if self._conditioning is None else self._conditioning.first_frame

    def hook_fps(self, layer: nn.Module, embedding: nn.Module) -> None:
        def add(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            if self._conditioning is None:
                return output
            fps = self._conditioning.fps or self.motion_model.family.fps
            return output + embedding(output.new_full((1,), fps)).to(output.dtype)  # type: ignore[arg-type]

        self._handles.append(layer.register_forward_hook(add))

    def hook_joint_norm(self, layer: nn.Module) -> None:
        """Have a GroupNorm see all frames of a clip at once, as where the layers run on whole clips.

        It gets another view of its input and computes as it always does, wherever the host keeps its weights.
        """

        def join(_layer: nn.Module, inputs: tuple[Tensor]) -> Tensor | None:
            if self._conditioning is None:
                return None
            return rearrange(inputs[0], "(b f) c h w -> b c f h w", f=self._conditioning.num_frames)

        def part(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            return output if self._conditioning is None else rearrange(output, "b c f h w -> (b f) c h w")

        self._handles.append(layer.register_forward_pre_hook(join))
        self._handles.append(layer.register_forward_hook(part))


def _as_weights_of(module: nn.Module, features: Tensor) -> Tensor:
    """Features in the number format of a module's weights, for the host's UNet may compute in another."""
    dtype = next(module.parameters()).dtype
    if features.dtype == dtype or torch.is_autocast_enabled(features.device.type):
        return features  # autocast chooses for each operation
    return features.to(dtype)


def attach(unet: nn.Module, motion_model: MotionModel) -> Attachment:
    """Hook `motion_model` into `unet` (LDM layer names); a call inside `conditioned` then samples a clip.

    Raises:
        ValueError: the two were made for different UNets.
    """
    attachment = Attachment(unet, motion_model)
    _check_widths(unet, motion_model)
    for layer, module in _places(unet, motion_model):
        attachment.hook_motion_module(layer, module)
    if motion_model.first_frame_conv is not None:
        attachment.hook_first_frame(unet.input_blocks[0][0])  # type: ignore[index]
    if motion_model.still_gate is not None:
        attachment.hook_still_gate(unet.input_blocks[0][0], unet.out[2], motion_model.still_gate)  # type: ignore[index,arg-type]
    if motion_model.motion_embedding is not None:
        attachment.hook_magnitude(unet.time_embed)  # type: ignore[arg-type]
    if motion_model.fps_embedding is not None:
        attachment.hook_fps(unet.time_embed, motion_model.fps_embedding)  # type: ignore[arg-type]
    if motion_model.family.joint_norms:
        for layer in _residual_norms(unet):
            attachment.hook_joint_norm(layer)
    return attachment


def _places(unet: nn.Module, motion_model: MotionModel) -> Iterator[tuple[nn.Module, MotionModule]]:
    """Each motion module with the layer it follows (AnimateDiff's places in LDM's numbering)."""
    per_level = motion_model.params.num_res_blocks
    for level, block in enumerate(motion_model.down_blocks):
        for index, module in enumerate(block.motion_modules):  # type: ignore[arg-type]
            # Block 0 is the input convolution, and each level ends with a downsampling block.
            yield _followed_layer(unet.input_blocks[1 + level * (per_level + 1) + index]), module  # type: ignore[index]
    if motion_model.mid_block is not None:
        yield unet.middle_block[1], motion_model.mid_block.motion_modules[0]  # type: ignore[index,misc]
    for level, block in enumerate(motion_model.up_blocks):
        for index, module in enumerate(block.motion_modules):  # type: ignore[arg-type]
            yield _followed_layer(unet.output_blocks[level * (per_level + 1) + index]), module  # type: ignore[index]


def _residual_norms(unet: nn.Module) -> Iterator[nn.Module]:
    """The norms of every ResBlock and the last one; not those of the transformers, which see single frames anyway."""
    for layer in unet.modules():
        if hasattr(layer, "in_layers") and hasattr(layer, "out_layers"):
            yield layer.in_layers[0]  # type: ignore[index,misc]
            yield layer.out_layers[0]  # type: ignore[index,misc]
    yield unet.out[0]  # type: ignore[index,misc]


def _followed_layer(block: nn.Sequential) -> nn.Module:
    """The last spatial transformer of a block, or its ResBlock; by class name, for the host has classes of its own."""
    transformers = [layer for layer in block if type(layer).__name__ == "SpatialTransformer"]
    return transformers[-1] if transformers else block[0]


def _check_widths(unet: nn.Module, motion_model: MotionModel) -> None:
    params = motion_model.params
    levels = len(params.channel_mult)
    wanted = (params.model_channels, 1 + levels * (params.num_res_blocks + 1) - 1, levels * (params.num_res_blocks + 1))
    conv = unet.input_blocks[0][0]  # type: ignore[index]
    found = (conv.weight.shape[0], len(unet.input_blocks), len(unet.output_blocks))  # type: ignore[arg-type]
    if wanted != found:
        raise ValueError(
            f"This motion model is for a UNet of {wanted[0]} channels with {wanted[1]} input and {wanted[2]} output "
            f"blocks, but the model has {found[0]}, {found[1]} and {found[2]}; load the checkpoint it was trained on."
        )
    for layer, module in _places(unet, motion_model):
        if (width := _width(layer)) != module.temporal_transformer.channels:
            raise ValueError(
                f"This motion model is for a UNet with {module.temporal_transformer.channels} channels where the model "
                f"has {width}; load the checkpoint it was trained on."
            )


def _width(layer: nn.Module) -> int:
    """Channels that a spatial transformer or a ResBlock gives out."""
    last = layer.norm if hasattr(layer, "norm") else layer.out_layers[3]  # type: ignore[index]
    return last.weight.shape[0]  # type: ignore[union-attr]
