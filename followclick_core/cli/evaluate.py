"""The command `evaluate`: a model on held-out scenes, in one go, or sampled on one machine and scored on another.

Imports are inside the functions, as in commands.py.
"""

import argparse
from pathlib import Path
from typing import Any

from .values import count, guidance_interval, guidance_options, seed

PROGRAM = "python -m followclick_core"

HELP = f"""\
Measure a model on scenes whose sprites and photos training never saw, and write the figures as JSON and Markdown.

  {PROGRAM} evaluate --art build/art.zip --scenes 100 --output runs/evaluation

In two steps, of which only the first wants a GPU, and only the second OpenCV:

  {PROGRAM} evaluate --art build/art.zip --scenes 200 --takes runs/takes --sample-only --device cuda
  {PROGRAM} evaluate --art build/art.zip --scenes 200 --takes runs/takes --output runs/evaluation

The first stores the clips as latents; done again, it samples what is missing. Takes of other weights are refused.

On photos of your own, described by benchmark.json (docs/EVALUATION.md):

  {PROGRAM} evaluate --benchmark my-photos --output runs/my-photos
"""

SWEEP_SCENES, SWEEP_SCENES_STORED = 12, 60
# Those of evaluation/references.py, which is not imported for a help text.
REFERENCES = ("truth", "encoded-truth", "still")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--art", metavar="ZIP", help="what build-art wrote: scenes are made of it")
    parser.add_argument("--benchmark", metavar="FOLDER", help="photos of your own instead of scenes")
    parser.add_argument("--model", default="demo", metavar="NAME", help="which model (default demo)")
    parser.add_argument("--scenes", type=count, default=100, metavar="N", help="how many (default 100)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="which scenes (default 0)")
    parser.add_argument("--steps", type=count, default=25, metavar="N", help="sampling steps (default 25)")
    guidance_options(parser)
    parser.add_argument(
        "--sweep-scenes",
        type=int,
        metavar="N",
        help="how many scenes are also asked for the magnitudes 2, 4, 8 and 16 "
        f"(default {SWEEP_SCENES}; with --takes {SWEEP_SCENES_STORED})",
    )
    parser.add_argument(
        "--unseen-phrasings",
        type=int,
        default=0,
        metavar="N",
        help="how many scenes are also asked for in words that training never used, in two ways each (default 0)",
    )
    parser.add_argument(
        "--reference",
        choices=REFERENCES,
        help="clips in the model's place: the true ones, these through its autoencoder, or the photo standing still",
    )
    parser.add_argument("--output", metavar="FOLDER", help="report.json and report.md go here")
    parser.add_argument("--takes", metavar="FOLDER", help="clips as latents: filled by --sample-only, then scored")
    parser.add_argument("--sample-only", action="store_true", help="fill the folder of --takes, and score nothing")
    parser.add_argument(
        "--first-scene", type=int, default=0, metavar="N", help="with --sample-only: pass over the scenes before it"
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        metavar="S",
        help="with --sample-only: stop after so long; the same command goes on",
    )
    parser.add_argument(
        "--workers", type=count, default=1, metavar="N", help="processes that decode --takes and score (default 1)"
    )
    measures = parser.add_argument_group("the paper's measures, each where its weights are named")
    measures.add_argument("--clip-weights", metavar="FILE", help="Tem-Consis and Text-Align: CLIP, for open_clip")
    measures.add_argument("--clip-model", default="ViT-B-32", metavar="NAME", help="open_clip's name (ViT-B-32)")
    measures.add_argument("--i3d-weights", metavar="FILE", help="FVD: i3d_pretrained_400.pt")
    measures.add_argument("--dreamsim-weights", metavar="FOLDER", help="PIC: what DreamSim's release unpacks to")
    measures.add_argument("--dreamsim-model", default="ensemble", metavar="NAME", help="DreamSim's name (ensemble)")
    measures.add_argument(
        "--mobilenet-weights", metavar="FILE", help="stand-ins under other names: torchvision's mobilenet_v2"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, mps")


def run(arguments: argparse.Namespace) -> None:
    from .commands import chosen_device
    from .progress import StageBars

    _check(arguments)
    for folder in (arguments.output, arguments.takes):
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
    device = chosen_device(arguments.device)
    with StageBars(arguments.quiet) as progress:
        progress("load", 0, 1)
        from ..animator import Animator
        from ..data.art import ArtPack

        animator = Animator.load(arguments.model, device)
        extractors = _extractors(arguments)
        if arguments.benchmark:
            progress("load", 1, 1)
            _evaluate_benchmark(arguments, animator, extractors, progress)
            return
        art = ArtPack.load(arguments.art)
        progress("load", 1, 1)
        if arguments.sample_only:
            _sample(arguments, animator, art, progress)
            return
        from ..evaluation.scenes import evaluate_scenes

        evaluate_scenes(
            animator,
            art,
            arguments.scenes,
            arguments.seed,
            **_sampling(arguments),
            out_dir=arguments.output,
            size=animator.bundle.preset.size,
            sweep_scenes=_sweep_scenes(arguments),
            unseen_scenes=arguments.unseen_phrasings,
            takes=arguments.takes,
            reference=arguments.reference,
            workers=arguments.workers,
            extractors=extractors,
            progress=progress,
        )
        progress.close()
        _print_report(arguments)


def _evaluate_benchmark(arguments: argparse.Namespace, animator, extractors, progress) -> None:
    from ..evaluation.benchmark import evaluate_benchmark

    evaluate_benchmark(
        animator,
        arguments.benchmark,
        arguments.seed,
        **_sampling(arguments),
        out_dir=arguments.output,
        extractors=extractors,
        progress=progress,
    )
    progress.close()
    _print_report(arguments)


def _extractors(arguments: argparse.Namespace):
    from ..evaluation.features import load_clip, load_dreamsim, load_i3d, load_mobilenet
    from ..evaluation.perceptual import Extractors

    dreamsim = arguments.dreamsim_weights
    return Extractors(
        clip=load_clip(arguments.clip_weights, arguments.clip_model) if arguments.clip_weights else None,
        i3d=load_i3d(arguments.i3d_weights) if arguments.i3d_weights else None,
        dreamsim=load_dreamsim(dreamsim, arguments.dreamsim_model) if dreamsim else None,
        mobilenet=load_mobilenet(arguments.mobilenet_weights) if arguments.mobilenet_weights else None,
    )


def _print_report(arguments: argparse.Namespace) -> None:
    if not arguments.quiet:
        print((Path(arguments.output) / "report.md").read_text(encoding="utf-8"))


def _sample(arguments: argparse.Namespace, animator, art, progress) -> None:
    from ..evaluation.scenes import sample_scenes

    left = sample_scenes(
        animator,
        art,
        arguments.scenes,
        arguments.seed,
        **_sampling(arguments),
        takes=arguments.takes,
        size=animator.bundle.preset.size,
        sweep_scenes=_sweep_scenes(arguments),
        unseen_scenes=arguments.unseen_phrasings,
        first_scene=arguments.first_scene,
        max_seconds=arguments.max_seconds,
        progress=progress,
    )
    progress.close()
    if not arguments.quiet:
        done = arguments.scenes - left
        again = f" Give --first-scene {done}, or the same folder again, to go on." if left else ""
        print(f"{arguments.takes}: {done} of {arguments.scenes} scenes.{again}")


def _sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "steps": arguments.steps,
        "guidance_scale": arguments.cfg,
        "guidance_interval": guidance_interval(arguments),
    }


def _sweep_scenes(arguments: argparse.Namespace) -> int:
    if arguments.sweep_scenes is not None or arguments.reference:
        return arguments.sweep_scenes or 0
    return SWEEP_SCENES_STORED if arguments.takes else SWEEP_SCENES


def _check(arguments: argparse.Namespace) -> None:
    if bool(arguments.art) == bool(arguments.benchmark):
        raise ValueError("Give either --art, for held-out scenes, or --benchmark, for photos of your own.")
    if arguments.benchmark and arguments.takes:
        raise ValueError("--takes goes with --art; a benchmark is evaluated in one go.")
    if arguments.reference and (arguments.benchmark or arguments.takes or arguments.sweep_scenes):
        raise ValueError("--reference goes with --art alone: its clips are not sampled, and have their own magnitude.")
    if arguments.reference and arguments.unseen_phrasings:
        raise ValueError("A --reference is asked in no words; leave --unseen-phrasings out.")
    if arguments.sample_only and not arguments.takes:
        raise ValueError("--sample-only fills the folder of --takes; name one.")
    if not arguments.sample_only and not arguments.output:
        raise ValueError("The figures go to the folder of --output; name one (or only sample: --takes, --sample-only).")
