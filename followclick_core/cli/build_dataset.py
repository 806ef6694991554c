"""The command build-dataset: its arguments and help, and what it does. Nothing heavy is imported with it."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..dataset.params import BuildParams
    from ..dataset.report import Report

PROGRAM = "python -m followclick_core"
EXTRA = "ray, webdataset, scenedetect, openai and jsonschema"

HELP = f"""\
Turn videos into shards for training: clips without cuts, masks of what moves, its magnitude, short motion captions.

  {PROGRAM} build-dataset videos/ --out shards/
  {PROGRAM} build-dataset results_10M_train.csv --videos videos/ --out shards/ --workers 16
  {PROGRAM} build-dataset clips.jsonl --out shards/ --endpoint http://localhost:8000/v1 --caption-model qwen

SOURCE is a folder of videos with captions in .txt files beside them, a CSV with WebVid's columns (those of
WebVid10M-motion too), a JSONL of {{"path": …, "caption": …}}, or webdataset .tar shards. The same command goes on where
an interrupted one stopped, and does again only what its flags have changed: other thresholds need no decoding. What is
left out, and why, is in OUT/report.md. Needs the packages of the extra `dataset`. docs/DATASET.md says more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a folder, .csv, .jsonl or .tar")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="shards, report and all steps between go here")
    parser.add_argument("--videos", metavar="FOLDER", help="where a CSV's or JSONL's videos lie (default: beside it)")
    _clip_arguments(parser.add_argument_group("clips"))
    _motion_arguments(parser.add_argument_group("motion, in px per frame at 512 px of width"))
    _threshold_arguments(parser.add_argument_group("what is kept"))
    _caption_arguments(parser.add_argument_group("motion captions"))
    group = parser.add_argument_group("where it runs")
    group.add_argument("--workers", type=_whole, default=2, metavar="N", help="processes (default 2)")
    group.add_argument("--address", metavar="HOST:PORT", help="a Ray cluster (default: this machine alone)")
    group.add_argument(
        "--device", default="cpu", metavar="NAME", help="for RAFT and latents: cpu (default) or cuda, on every worker"
    )
    group.add_argument("--gpus-per-worker", type=float, default=1.0, metavar="X", help="with cuda (default 1)")
    group.add_argument(
        "--retry-failed", action="store_true", help="do parts again with videos that were missing, unreadable or failed"
    )
    group.add_argument(
        "--videos-per-part", type=_whole, default=64, metavar="N", help="at most, in one shard (default 64)"
    )


def _clip_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--frames", type=_whole, default=16, metavar="N", help="length of a clip (default 16)")
    group.add_argument("--stride", type=_whole, default=4, metavar="N", help="take every Nth frame (default 4)")
    group.add_argument("--size", type=_whole, default=512, metavar="PX", help="of the centre crop (default 512)")
    group.add_argument("--clips-per-video", type=_whole, default=4, metavar="N", help="at most (default 4)")
    group.add_argument(
        "--cut-threshold", type=float, default=27.0, metavar="X", help="scenedetect's content value (default 27)"
    )
    group.add_argument(
        "--decoder",
        default="pyav",
        metavar="pyav|torchcodec",
        help="torchcodec misses patched-up damage (default pyav)",
    )
    group.add_argument("--jpeg-quality", type=_whole, default=95, metavar="N", help="of stored frames (default 95)")
    group.add_argument(
        "--latents", metavar="FOLDER", help="also store latents and text embeddings by these weights, or by `demo`"
    )


def _motion_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--raft", metavar="FILE", help="torchvision's RAFT weights (default: flow by DIS)")
    group.add_argument(
        "--mask-rule",
        default="followed",
        metavar="literal|union|majority|followed",
        help="whose mask and magnitude a sample carries; all are stored (default followed)",
    )
    group.add_argument("--floor", type=float, default=1.0, metavar="PX", help="slower is still (default 1)")
    group.add_argument(
        "--keep-camera", action="store_true", help="do not take the median flow off before the mask is drawn"
    )


def _threshold_arguments(group: argparse._ArgumentGroup) -> None:
    for flag, default, text in (
        ("min-area", 0.002, "share of the frame that moves; below: static"),
        ("max-area", 0.7, "above: everything moves"),
        ("max-camera", 1.5, "median flow; above: a pan"),
        ("max-border", 2.5, "flow along the border; above: zoom or rotation"),
        ("min-brightness", 0.08, "of the darkest frame, 0 to 1"),
        ("min-magnitude", 1.0, "below: too little motion"),
        ("max-magnitude", 32.0, "above: too much motion"),
        ("min-side", 128, "of the video, in pixels"),
    ):
        group.add_argument(
            f"--{flag}", type=type(default), default=default, metavar="X", help=f"{text} (default {default:g})"
        )


def _caption_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--endpoint", metavar="URL", help="an OpenAI-compatible API (default: none, phrases by rules alone)"
    )
    group.add_argument("--caption-model", metavar="NAME", help="which model of the endpoint")
    group.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable that holds the key (default OPENAI_API_KEY)",
    )
    group.add_argument(
        "--caption-cache", metavar="FILE", help="answers, which builds may share (default OUT/captions.sqlite)"
    )
    group.add_argument("--token-budget", type=_whole, metavar="N", help="spend no more, over all runs of the cache")
    group.add_argument("--concurrency", type=_whole, default=16, metavar="N", help="requests at a time (default 16)")
    group.add_argument("--request-timeout", type=float, default=60.0, metavar="S", help="of one request (default 60)")
    group.add_argument("--request-retries", type=int, default=5, metavar="N", help="of one request (default 5)")
    group.add_argument(
        "--retry-quarantined", action="store_true", help="ask again for captions that got only malformed answers"
    )


def run(arguments: argparse.Namespace) -> None:
    params = _params(arguments)
    try:
        from ..dataset.build import build
        from ..dataset.workers import require_packages

        require_packages()
    except ModuleNotFoundError as error:
        raise ValueError(
            f"build-dataset needs {EXTRA}, and {error.name} is not installed; pip install 'followclick[dataset]'."
        ) from error
    from .progress import StageBars

    with StageBars(arguments.quiet) as progress:
        report = build(
            arguments.source,
            arguments.out,
            params,
            arguments.videos,
            progress=progress,
            retry_quarantined=arguments.retry_quarantined,
            retry_failed=arguments.retry_failed,
        )
    if not arguments.quiet:
        print(_summary(arguments.out, report))
    if report.failures:
        first = report.failures[0]
        raise ValueError(
            f"{len(report.failures)} parts of the work are not done, the first: {first.name}: "
            f"{_last_line(first.detail)} Remove the cause and run the same command again."
        )


def _params(arguments: argparse.Namespace) -> "BuildParams":
    from ..dataset.params import BuildParams, CaptionParams, ClipParams, MotionParams, RunParams, Thresholds

    return BuildParams(
        clips=ClipParams(
            num_frames=arguments.frames,
            stride=arguments.stride,
            size=arguments.size,
            clips_per_video=arguments.clips_per_video,
            cut_threshold=arguments.cut_threshold,
            jpeg_quality=arguments.jpeg_quality,
            decoder=arguments.decoder,
        ),
        motion=MotionParams(
            raft=arguments.raft,
            device=arguments.device,
            floor=arguments.floor,
            subtract_median=not arguments.keep_camera,
            mask_rule=arguments.mask_rule,
        ),
        thresholds=Thresholds(**{name: getattr(arguments, name) for name in Thresholds.__dataclass_fields__}),
        captions=CaptionParams(
            endpoint=arguments.endpoint,
            model=arguments.caption_model,
            key_variable=arguments.key_variable,
            cache=arguments.caption_cache,
            concurrency=arguments.concurrency,
            token_budget=arguments.token_budget,
            retries=arguments.request_retries,
            timeout=arguments.request_timeout,
        ),
        latents=arguments.latents,
        run=RunParams(
            workers=arguments.workers,
            address=arguments.address,
            gpus_per_worker=arguments.gpus_per_worker,
            videos_per_part=arguments.videos_per_part,
        ),
    )


def _summary(out: str, report: "Report") -> str:
    clips, videos = report.content["clips"], report.content["videos"]
    problems = sum(report.problems.values())
    return (
        f"{out}: {clips['in shards']} clips in shards, {clips['in shards with a motion phrase']} with a motion phrase, "
        f"of {clips['taken']} taken from {videos['planned']} videos. {problems} problems are named in {out}/report.md."
    )


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)
