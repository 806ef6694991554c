"""What is compared: the recipe, and variants that differ from it in one thing each."""

from dataclasses import dataclass

REGIONS = ("silhouette", "union", "majority")
CONDITIONS = ("magnitude", "fps")


@dataclass(frozen=True)
class Variant:
    """How one model is trained, and what it is asked at inference.

    Args:
        layout: How the first frame is laid out over time, see `conditioning.first_frame_condition`.
        mask_ratio, masked_share: Share of the first frame's latents set to zero, and of the samples where that is done.
        motion_attention: Whether the motion modules have the motion-augmented attention (MA, paper section 4.3).
        motion_captions: Whether training reads short motion prompts, or else long captions of the scene that name the
            motion at their end in some clips only, as captions of web videos do ("Data" in the paper's Table 2).
        condition: The number that says how fast: the mean flow magnitude, or the clip's frames per second.
        region: The mask of training: the object's silhouette in the first frame, as a click means it, or the
            paper's pairwise motion masks joined over pairs by union or by majority. At inference it is the silhouette.
        still_gate: Whether the motion model has a gate for what stands still (models/still_gate.py).
    """

    name: str
    layout: str = "repeat"
    mask_ratio: float = 0.7
    masked_share: float = 0.5
    motion_attention: bool = True
    motion_captions: bool = True
    condition: str = "magnitude"
    region: str = "silhouette"
    still_gate: bool = False

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS or self.region not in REGIONS:
            raise ValueError(
                f"Variant {self.name} asks for the condition {self.condition!r} and the region {self.region!r}; "
                f"conditions are {', '.join(CONDITIONS)}, regions {', '.join(REGIONS)}."
            )


BASE = Variant("base")
_RATIOS = tuple(Variant(f"ratio-{tenths}", mask_ratio=tenths / 10, masked_share=1.0) for tenths in range(10))

# The most asked for come first: what a short run leaves out are the finer steps of the mask ratio.
VARIANTS: tuple[Variant, ...] = (
    BASE,
    _RATIOS[0],
    _RATIOS[7],
    Variant("fps", condition="fps"),
    Variant("no-ma", motion_attention=False),
    Variant("no-captions", motion_captions=False),
    Variant("no-ma-no-captions", motion_attention=False, motion_captions=False),
    Variant("layout-paper", layout="paper"),
    Variant("layout-release", layout="release"),
    Variant("union", region="union"),
    Variant("majority", region="majority"),
    Variant("still-gate", still_gate=True),
    *(_RATIOS[tenths] for tenths in (9, 3, 5, 8, 1, 6, 2, 4)),
)


@dataclass(frozen=True)
class Ablation:
    """One comparison, and which figures tell it.

    Args:
        name: Of its files and of its section in the report.
        variants: Name of the variant and what the table calls it, the reference first.
        ordered: Whether the variants are steps of one number.
    """

    name: str
    title: str
    variants: tuple[tuple[str, str], ...]
    figures: tuple[str, ...]
    ordered: bool = False


_COMMON = ("loss_inside", "loss_outside", "clip_error", "obeys", "first_frame_mse", "leak")

ABLATIONS: tuple[Ablation, ...] = (
    Ablation(
        "mask-ratio",
        "First-frame mask ratio (paper, Figure 4)",
        (("ratio-7", "0.7"), *((f"ratio-{n}", f"{n / 10:g}") for n in range(10) if n != 7), ("base", "0.7 on half")),
        _COMMON,
        ordered=True,
    ),
    Ablation(
        "captions",
        "Motion-augmented attention and motion captions (paper, Table 2)",
        (
            ("base", "both"),
            ("no-ma", "without MA"),
            ("no-captions", "without motion captions"),
            ("no-ma-no-captions", "without either"),
        ),
        _COMMON,
    ),
    Ablation(
        "magnitude",
        "Optical-flow magnitude against frames per second (paper, Figure 8)",
        (("base", "flow magnitude"), ("fps", "frames per second")),
        ("sweep_spearman", "sweep_r2", "sweep_slope", "speed_spearman", "loss_inside", "obeys"),
    ),
    Ablation(
        "layout",
        "Layout of the first frame over time",
        (("base", "repeat"), ("layout-paper", "paper"), ("layout-release", "release")),
        _COMMON,
    ),
    Ablation(
        "region",
        "Training mask: silhouette, union or majority",
        (("base", "silhouette"), ("union", "union"), ("majority", "majority")),
        _COMMON,
    ),
    Ablation(
        "still-gate",
        "A gate for what stands still",
        (("base", "without"), ("still-gate", "with")),
        _COMMON,
    ),
)
# Two ways of one model, not two variants.
PAIRS = Ablation(
    "pairs",
    "Two objects with two motions",
    (("separate", "a prediction per region"), ("joined", "one pass, both prompts")),
    ("pairs_first", "pairs_second", "pairs_both"),
)


def find_variants(names: list[str] | None) -> tuple[Variant, ...]:
    """The variants of these names in the grid's order, or all; ValueError for a name that there is not."""
    known = {variant.name: variant for variant in VARIANTS}
    unknown = sorted(set(names or ()) - known.keys())
    if unknown:
        raise ValueError(f"There is no variant {', '.join(unknown)}; choose of {', '.join(known)}.")
    return VARIANTS if names is None else tuple(variant for variant in VARIANTS if variant.name in names)
