"""Raw figures of clips whose motion is known, and which of them are left out."""

import numpy as np
import pytest

from followclick_core.dataset import filters
from followclick_core.dataset.filters import reject
from followclick_core.dataset.measure import flow_cells, measure_clip
from followclick_core.dataset.params import CaptionParams, ClipParams, MotionParams, Thresholds
from followclick_core.flow import dis_flow

from .conftest import SIDE, scene


def record(frames, side=480, **params):
    """A sample's raw record, as far as the filters read it."""
    motion = MotionParams(**params)
    figures = measure_clip(frames, dis_flow(), motion).figures.to_dict()
    return {"mask_rule": motion.mask_rule, "motion": figures, "source": {"width": side, "height": side + 10}}


def zoomed(frame, factor):
    import cv2

    height, width = frame.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 0, factor)
    return cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)


def smooth_noise(size, blur, seed):
    """A texture like a photo's: structure at every place, no hard edges."""
    import cv2

    noise = cv2.GaussianBlur(
        np.random.default_rng(seed).integers(0, 255, (size, size, 3)).astype(np.uint8), (0, 0), blur
    )
    return ((noise.astype(float) - noise.mean()) * 4 + 120).clip(0, 255).astype(np.uint8)


def test_mask_and_magnitude_of_a_sliding_square_are_its_silhouette_and_its_step():
    size, side, step = 256, 80, 2
    ground, patch = smooth_noise(size, 3, seed=1), smooth_noise(side, 2, seed=2)
    frames = np.repeat(ground[None], 16, axis=0)
    for index, frame in enumerate(frames):
        frame[64 : 64 + side, 24 + step * index : 24 + step * index + side] = patch
    silhouette = np.zeros((size, size), bool)
    silhouette[64 : 64 + side, 24 : 24 + side] = True
    clip = measure_clip(frames, dis_flow(), MotionParams())
    # Flow reaches a little over the edge, and is slower there.
    assert clip.figures.magnitude["followed"] == pytest.approx(step * 512 / size, rel=0.15)
    assert clip.figures.camera < 0.3 and clip.figures.border < 0.3
    overlap = {rule: (mask & silhouette).sum() / (mask | silhouette).sum() for rule, mask in clip.masks.items()}
    assert overlap["followed"] > 0.7
    assert overlap["followed"] > max(overlap[rule] for rule in ("literal", "union", "majority"))
    # The swept region goes on to the right, by 15 steps of 2 px.
    ahead = (100, 24 + side + 20)
    assert clip.masks["union"][ahead] and not clip.masks["followed"][ahead]


def test_the_stored_flow_is_the_mean_of_each_cell():
    flows = np.random.default_rng(0).normal(size=(2, 16, 24, 2)).astype(np.float32)
    cells = flow_cells(flows)
    assert cells.shape == (2, 2, 3, 2) and cells.dtype == np.float16
    np.testing.assert_allclose(cells[1, 1, 2], flows[1, 8:16, 16:24].mean(axis=(0, 1)), atol=1e-3)


def test_a_good_clip_is_kept():
    assert reject(record(scene(16)), Thresholds()) == []


def test_a_still_clip_is_static_even_with_a_camera_s_noise():
    rng = np.random.default_rng(0)
    still = np.repeat(scene(1), 16, axis=0).astype(int) + rng.normal(0, 2, (16, SIDE, SIDE, 3))
    assert reject(record(still.clip(0, 255).astype(np.uint8)), Thresholds()) == [filters.STATIC]


def test_a_pan_and_a_zoom_are_panning():
    wide = scene(1, width=SIDE + 80)[0]
    pan = np.stack([wide[:, 3 * index : 3 * index + SIDE] for index in range(16)])
    assert filters.PANNING in reject(record(pan), Thresholds())
    zoom = np.stack([zoomed(scene(1)[0], 1 + 0.02 * index) for index in range(16)])
    # A zoom's median flow is small; its border gives it away.
    assert record(zoom)["motion"]["camera"] < Thresholds().max_camera
    assert filters.PANNING in reject(record(zoom), Thresholds())


def test_dark_fast_slow_and_small_clips_have_reasons_of_their_own():
    dark = (scene(16) * 0.06).astype(np.uint8)
    assert filters.DARK in reject(record(dark), Thresholds())
    assert reject(record(scene(16, step=1)), Thresholds(min_magnitude=10)) == [filters.LITTLE]
    assert reject(record(scene(16, step=4)), Thresholds(max_magnitude=3)) == [filters.MUCH]
    assert reject(record(scene(16), side=100), Thresholds()) == [filters.SMALL]
    assert reject(record(scene(16)), Thresholds(max_area=0.01)) == [filters.EVERYWHERE]


def test_the_rule_chooses_which_figures_count():
    fast = scene(16, step=5)
    # Every place is crossed in a few pairs only, so a majority vote finds nothing.
    assert record(fast)["motion"]["area"]["majority"] < record(fast)["motion"]["area"]["followed"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipParams(size=100), "multiple of 8"),
        (lambda: ClipParams(num_frames=1), "2 to 256 frames"),
        (lambda: MotionParams(mask_rule="intersection"), "choose one of literal, union, majority, followed"),
        (lambda: MotionParams(floor=-1), "0 px or more"),
        (lambda: Thresholds(max_camera=-1), "max_camera is 0 or more"),
        (lambda: CaptionParams(endpoint="http://x"), "give both"),
    ],
)
def test_impossible_parameters_are_answered_by_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
