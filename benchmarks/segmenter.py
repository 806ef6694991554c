"""How well clicks find objects with the embedded segmenter or a training's: on held-out scenes, on scenes of large
objects, and on photos outlined by hand (followclick_core/evaluation/photo_clicks.py).

    python benchmarks/segmenter.py --art build/art.zip
    python benchmarks/segmenter.py --art build/art.zip --model runs/segmenter/weights

Means of the intersection over union: of one click's first mask, of the best of its candidates, and after a second click
where the first went wrong. A click is the point farthest from the object's edge ("centre"), or any at least half as far
from it ("interior"); on photos 20 of these for each object.
"""

import argparse
from itertools import chain, repeat

from followclick_core.data.art import ArtPack
from followclick_core.data.scenes import SceneGenerator, SceneParams
from followclick_core.evaluation.photo_clicks import outlined_photos
from followclick_core.evaluation.segmenter import ClickScore, evaluate_segmenter, score_clicks
from followclick_core.models.bundle import weights_path
from followclick_core.segment import load_segmenter

LARGE = (0.5, 1.0)  # picture widths
CLICKS_PER_PHOTO = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", default="build/art.zip")
    parser.add_argument("--model", help="a run's weights folder (default: the shipped model)")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args()
    segmenter = load_segmenter(weights_path("segmenter", arguments.model))
    art = ArtPack.load(arguments.art)
    photos = [(photo, mask) for _, photo, mask in outlined_photos(art)]
    print("| pictures, click | clicks | first mask | best candidate | second click |\n|---|---|---|---|---|")
    for name, params in (
        ("scenes, centre", SceneParams(size=arguments.size)),
        ("scenes of large objects, centre", SceneParams(size=arguments.size, scales=LARGE)),
    ):
        scenes = SceneGenerator(art, params, split="test")
        print(row(name, evaluate_segmenter(segmenter, scenes, arguments.scenes)), flush=True)
    print(row("photos, centre", score_clicks(segmenter, photos)), flush=True)
    often = chain.from_iterable(repeat(photo, CLICKS_PER_PHOTO) for photo in photos)
    print(row("photos, interior", score_clicks(segmenter, often, click="interior")))


def row(name: str, score: ClickScore) -> str:
    figures = (score.mean_iou, score.oracle_iou, score.second_click_iou)
    return f"| {name} | {score.num_pictures} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |"


if __name__ == "__main__":
    main()
