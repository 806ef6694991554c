"""Named configurations: the sizes this project trains, and Stable Diffusion 1.5's."""

from dataclasses import dataclass, replace

from .models.motion_model import MotionParams
from .models.text_encoder import TextEncoderParams
from .models.unet import UNetParams


@dataclass(frozen=True)
class Preset:
    """All numbers of one model.

    Args:
        size: Side in pixels of the training clips; photos are animated at about size² pixels.
    """

    name: str
    size: int
    unet: UNetParams
    motion: MotionParams
    text: TextEncoderParams

    def __post_init__(self) -> None:
        if self.unet.context_dim != self.text.width:
            raise ValueError(
                f"Preset {self.name}: the UNet reads text of width {self.unet.context_dim}, "
                f"the encoder writes {self.text.width}."
            )


def _preset(name: str, size: int, unet: UNetParams, text: TextEncoderParams, still_gate: bool = True) -> Preset:
    motion = MotionParams(
        model_channels=unet.model_channels,
        channel_mult=unet.channel_mult,
        num_res_blocks=unet.num_res_blocks,
        num_heads=unet.num_heads,
        context_dim=text.width,
        still_gate=still_gate,
    )
    return Preset(name, size, unet, motion, text)


_DEMO = _preset(
    "demo",
    256,
    UNetParams(64, (1, 2, 3), 1, (1, 1, 1), 1, num_heads=4, context_dim=128),
    TextEncoderParams(width=128, layers=3, num_heads=4),
)

PRESETS = {
    preset.name: preset
    for preset in (
        # Of real clips little stands still to the last bit.
        _preset("sd15", 512, UNetParams(), TextEncoderParams(), still_gate=False),
        _DEMO,
        # The demo's architecture at half the side: a quarter of the work per clip, for short GPU runs.
        replace(_DEMO, name="small", size=128),
        _preset(
            "nano",
            128,
            UNetParams(32, (1, 2, 4), 1, (0, 1, 1), 1, num_heads=4, context_dim=96),
            TextEncoderParams(width=96, layers=2, num_heads=4),
        ),
    )
}


def get_preset(name: str) -> Preset:
    """The preset of this name; ValueError with the known names otherwise."""
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
