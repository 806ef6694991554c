"""Click to clip with an untrained model: what is promised to whoever calls it, whatever the weights."""

import importlib.metadata
import itertools
import json

import numpy as np
import pytest
import torch

from followclick_core import animator as animator_module
from followclick_core.animator import Animator, Canvas

QUICK = {"num_frames": 2, "steps": 2, "guidance_scale": 1.0}
CLICK = [(64, 48, 1)]


@pytest.fixture(scope="module")
def animator(untrained_weights):
    return Animator.load(untrained_weights, "cpu")


@pytest.fixture
def region(photo):
    """A region to move, where the untrained segmenter would find none."""
    mask = np.zeros(photo.shape[:2], dtype=bool)
    mask[30:70, 40:90] = True
    return mask


def refused(call, *parts):
    """The sentence of the ValueError that `call` raises; it holds all `parts`."""
    with pytest.raises(ValueError) as error:
        call()
    text = str(error.value)
    assert type(error.value) is ValueError, type(error.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 250, text
    for part in parts:
        assert part in text, text


# What comes back


def test_the_same_seed_gives_identical_frames_and_another_seed_others(animator, photo):
    first, again, other = (animator.animate(photo, CLICK, "run", seed=seed, **QUICK) for seed in (3, 3, 4))
    assert np.array_equal(first.frames, again.frames) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.frames, other.frames)


def test_neither_torchs_own_random_state_nor_a_run_before_matters(animator, photo):
    torch.manual_seed(1)
    first = animator.animate(photo, CLICK, "run", **QUICK)
    animator.animate(photo[::-1].copy(), CLICK, "shake", seed=8, **QUICK)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = animator.animate(photo, CLICK, "run", **QUICK)
    assert np.array_equal(first.frames, again.frames) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("width", "height"), [(96, 96), (400, 97), (61, 183), (33, 31), (16, 90), (1001, 333)])
def test_a_photo_of_any_size_comes_back_at_its_aspect_ratio(animator, width, height):
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    clip = animator.animate_mask(image, mask, "run", num_frames=1, steps=1, guidance_scale=1)
    frames, clip_height, clip_width, channels = clip.frames.shape
    assert (frames, channels, clip.frames.dtype) == (1, 3, np.uint8)
    assert clip.mask.shape == (clip_height, clip_width) and clip.mask.dtype == np.bool_
    # To the nearest pixel, and at about as many pixels as the model was trained on.
    assert abs(clip_width - clip_height * width / height) <= 0.5 * (1 + width / height)
    assert clip_width * clip_height == pytest.approx(128**2, rel=0.03)
    assert clip.report["clip_size"] == [clip_width, clip_height] and clip.report["image_size"] == [width, height]
    rows, columns = np.nonzero(clip.mask)
    assert rows.min() / clip_height == pytest.approx(0.25, abs=0.03)
    assert (columns.max() + 1) / clip_width == pytest.approx(0.5, abs=0.05)


def test_grey_rgba_and_16_bit_photos_are_accepted(animator, photo, region, unchecked):
    def frames(image):
        return animator.animate_mask(image, region, "run", num_frames=1, steps=1, guidance_scale=1).frames

    expected = frames(photo)
    opaque = np.concatenate([photo, np.full_like(photo[..., :1], 255)], axis=-1)
    for same in (opaque, photo.astype(np.uint16) * 257, photo.astype(np.float32) / 255):
        assert np.array_equal(frames(same), expected), same.dtype
    grey = photo[..., 1]
    assert np.array_equal(frames(grey), frames(grey[..., None].repeat(3, axis=-1)))


def test_as_many_frames_as_asked_for(animator, photo, region):
    for count in (1, 5):
        clip = animator.animate_mask(photo, region, "run", num_frames=count, steps=1, guidance_scale=1)
        assert len(clip.frames) == count == clip.report["asked"]["num_frames"]


def test_autoencoding_gives_the_clips_size(animator, photo):
    clip = animator.animate(photo, CLICK, "run", **QUICK)
    coded = animator.autoencode(photo)
    assert coded.shape == clip.frames.shape[1:] and coded.dtype == np.uint8
    canvas = animator.canvas(photo)
    with torch.no_grad():
        pixels = canvas.place(photo)
        expected = animator.bundle.autoencoder.decode(animator.bundle.autoencoder.encode(pixels)).clamp(0, 1)
    cut = (expected[0, :, : canvas.height, : canvas.width].permute(1, 2, 0) * 255).round().byte().numpy()
    assert np.abs(cut.astype(int) - coded).max() <= 1


def test_the_magnitude_reaches_the_model_in_pixels_of_its_own_width(animator, region, photo, monkeypatch):
    """A clip 148 wide of a model trained at 128 moves 148 / 128 as many pixels for the same number at 512 of width."""
    told = []
    monkeypatch.setattr(
        animator.bundle.motion.motion_embedding,
        "forward",
        lambda values: told.append(values.tolist()) or torch.zeros(len(values), 128),
    )
    animator.animate_mask(photo, region, "run", magnitude=8.0, num_frames=1, steps=1, guidance_scale=1)
    assert animator.canvas(photo).width == 148
    assert told == [[pytest.approx(8.0 * 148 / 128)]]


# The report


def test_the_report_holds_what_was_asked_and_measured(animator, photo):
    clip = animator.animate(photo, [(64, 48, 1), (2, 3, 0)], "flap the wings", 4.5, 3, 2, 3.5, seed=11)
    report = json.loads(json.dumps(clip.report, allow_nan=False))
    assert report == clip.report
    assert report["asked"] == {
        "clicks": [[64, 48, 1], [2, 3, 0]],
        "motion": "flap the wings",
        "magnitude": 4.5,
        "num_frames": 3,
        "steps": 2,
        "guidance_scale": 3.5,
        "guidance_interval": [0.1, 0.7],
        "seed": 11,
    }
    assert report["measured"]["mask_area"] == pytest.approx(clip.mask.mean(), abs=1e-4)
    assert list(report["seconds"]) == ["segment", "sample", "decode", "measure"]
    assert all(seconds >= 0 for seconds in report["seconds"].values()) and report["seconds"]["sample"] > 0
    assert report["model"]["preset"] == "nano" and report["model"]["device"] == "cpu"
    canvas = animator.canvas(photo)
    assert report["model_size"] == [canvas.padded_width, canvas.padded_height]
    assert report["versions"]["torch"] == importlib.metadata.version("torch")


def test_the_report_measures_the_clip_that_it_comes_with(animator, photo, region, monkeypatch, moving_square):
    frames, _ = moving_square
    monkeypatch.setattr(animator_module.Canvas, "cut", lambda _canvas, _video: frames[:4, :, :, :])
    monkeypatch.setattr(animator_module.Canvas, "place_mask", lambda canvas, _mask: square_mask(canvas))

    def square_mask(canvas):
        mask = torch.zeros(1, 1, canvas.padded_height, canvas.padded_width)
        mask[..., 30:62, 20:52] = 1
        return mask

    canvas = Canvas(128, 96, 128, 96)
    monkeypatch.setattr(animator, "canvas", lambda _image: canvas)
    measured = animator.animate_mask(photo, region, "run", num_frames=4, steps=1, guidance_scale=1).report["measured"]
    # 2 px per frame on a picture 128 wide are 8 at 512, and nothing else moves.
    assert measured["inside"] == pytest.approx(8, rel=0.2) and measured["outside"] < 1


@pytest.mark.usefixtures("unchecked")
def test_numbers_from_numpy_make_a_report_too(animator, photo):
    clicks = np.array([[64, 48, 1]])
    clip = animator.animate(photo, clicks, "run", np.float32(6), np.int64(2), 1, 1.0, seed=np.int64(3))
    asked = json.loads(json.dumps(clip.report, allow_nan=False))["asked"]
    assert asked["clicks"] == [[64, 48, 1]] and asked["magnitude"] == 6 and asked["seed"] == 3


# Progress


def test_progress_tells_of_the_stages_in_order_and_of_each_step(animator, photo):
    told = []
    animator.animate(
        photo, CLICK, "run", num_frames=5, steps=3, guidance_scale=1, progress=lambda *step: told.append(step)
    )
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == ["segment", "sample", "decode", "measure"]
    stages = [stage for stage, _, _ in told]
    assert sorted(stages, key=["segment", "sample", "decode", "measure"].index) == stages
    for stage in dict.fromkeys(stages):
        steps = [(done, total) for name, done, total in told if name == stage]
        assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1]
        assert all(first[0] / first[1] <= then[0] / then[1] for first, then in itertools.pairwise(steps))
    assert [(d, t) for stage, d, t in told if stage == "sample" and t > 1] == [(1, 3), (2, 3), (3, 3)]
    assert ("decode", 2, 2) in told


@pytest.mark.parametrize("stage", ["segment", "sample", "decode", "measure"])
def test_what_progress_raises_stops_the_run_there(animator, photo, stage):
    told = []

    def stop(name, done, _total):
        told.append(name)
        if name == stage and (done or name != "sample"):
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        animator.animate(photo, CLICK, "run", **QUICK, progress=stop)
    assert told[-1] == stage
    assert not any(layer._forward_hooks for layer in animator.bundle.unet.modules())


# Clicks


def test_a_second_click_on_the_same_image_does_not_embed_it_again(animator, photo, monkeypatch):
    embedded = []
    embed = animator.segmenter.embed
    monkeypatch.setattr(animator.segmenter, "embed", lambda image: embedded.append(1) or embed(image))
    monkeypatch.setattr(animator, "_embedding", None)
    first = animator.segment(photo, CLICK)
    assert np.array_equal(animator.segment(photo.copy(), CLICK).masks, first.masks)
    animator.segment(photo, [(20, 20, 1), (100, 80, 0)])
    animator.animate(photo, CLICK, "run", **QUICK)
    assert len(embedded) == 1
    other = photo.copy()
    other[0, 0, 0] ^= 1
    animator.segment(other, CLICK)
    animator.segment(photo[:, :96].copy(), [(20, 20, 1)])
    assert len(embedded) == 3


@pytest.mark.parametrize("click", [(128, 48, 1), (64, 96, 1), (-1, 5, 1), (500, 500, 1), (float("nan"), 5, 1)])
def test_a_click_outside_the_image_is_refused(animator, photo, click):
    refused(lambda: animator.animate(photo, [click], "run", **QUICK), "click")


def test_no_click_and_only_excluding_clicks_are_refused(animator, photo):
    refused(lambda: animator.animate(photo, [], "run", **QUICK), "click")
    refused(lambda: animator.animate(photo, [(64, 48, 0)], "run", **QUICK), "click")


# Bad values


@pytest.mark.parametrize("motion", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(animator, photo, motion):
    refused(lambda: animator.animate(photo, CLICK, motion, **QUICK), "motion prompt is empty", "run")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("magnitude", float("nan"), "motion magnitude is nan"),
        ("magnitude", -0.5, "motion magnitude is -0.5"),
        ("magnitude", float("inf"), "motion magnitude is inf"),
        ("magnitude", 65.0, "from 0 to 64"),
        ("num_frames", 0, "from 1 to 1024 frames, not 0"),
        ("num_frames", -1, "not -1"),
        ("num_frames", 1025, "not 1025"),
        ("steps", 0, "from 1 to 1000 steps, not 0"),
        ("steps", 1001, "not 1001"),
        ("guidance_scale", float("nan"), "guidance scale is nan"),
        ("guidance_scale", 0.5, "guidance scale is 0.5"),
    ],
)
def test_values_that_make_no_sense_are_refused_before_any_work(animator, photo, region, monkeypatch, name, value, said):
    def worked(*_):
        raise AssertionError("the segmenter ran")

    monkeypatch.setattr(animator, "segment", worked)
    refused(lambda: animator.animate(photo, CLICK, "run", **{name: value}), said)
    refused(lambda: animator.animate_mask(photo, region, "run", **{name: value}), said)


@pytest.mark.parametrize("magnitude", [0, 64])
def test_the_ends_of_the_range_are_accepted(animator, photo, region, magnitude):
    animator.animate_mask(photo, region, "run", magnitude, num_frames=1, steps=1, guidance_scale=1)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 1, 3), "1x1"),
        ((15, 200, 3), "200x15"),
        ((20_000, 20_000, 3), "20000x20000"),
        ((200, 20, 3), "20x200"),
        ((0, 0, 3), "0x0"),
    ],
)
def test_an_image_too_small_too_large_or_too_long_is_refused(animator, shape, said):
    image = np.broadcast_to(np.uint8(7), shape)
    refused(lambda: animator.animate(image, [(0, 0, 1)], "run", **QUICK), said)


@pytest.mark.usefixtures("unchecked")
def test_arrays_that_are_no_image_are_refused(animator, photo):
    for image in (photo[None], photo.astype(np.float32), photo.astype(np.int64) - 300, np.full((64, 64, 3), np.nan)):
        refused(lambda image=image: animator.animate(image, CLICK, "run", **QUICK), "image")


@pytest.mark.usefixtures("unchecked")
def test_an_empty_or_foreign_mask_is_refused(animator, photo, region):
    def animate(mask):
        return lambda: animator.animate_mask(photo, mask, "run", **QUICK)

    refused(animate(np.zeros_like(region)), "mask is empty", "click on the object")
    refused(animate(region[:50]), "mask is bool of (50, 128)", "(96, 128)")
    refused(animate(region.astype(np.float32)), "mask is float32", "bool mask")


def test_a_mask_of_one_pixel_still_moves_something(animator):
    image, mask = np.zeros((900, 900, 3), np.uint8), np.zeros((900, 900), bool)
    mask[450, 300] = True
    clip = animator.animate_mask(image, mask, "run", num_frames=1, steps=1, guidance_scale=1)
    assert 1 <= clip.mask.sum() <= 4 and clip.mask[62:66, 40:45].any()


# Loading


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model .*nowhere; give 'demo' or the weights folder"):
        Animator.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"no unet.safetensors in {tmp_path}"):
        Animator.load(tmp_path)


# The canvas


@pytest.mark.parametrize("size", [(128, 96), (97, 101), (640, 113)])
def test_a_canvas_is_padded_to_what_the_unet_needs_and_cut_again(size):
    canvas = Canvas.fit(size, 128, 32)
    assert canvas.padded_width % 32 == 0 == canvas.padded_height % 32
    assert 0 <= canvas.padded_width - canvas.width < 32 and 0 <= canvas.padded_height - canvas.height < 32
    image = np.random.default_rng(0).integers(0, 255, (canvas.height, canvas.width, 3), dtype=np.uint8)
    placed = canvas.place(image)
    assert placed.shape == (1, 3, canvas.padded_height, canvas.padded_width)
    assert np.array_equal(canvas.cut(placed[:, :, None])[0], image)
    # The padding repeats the border, so that no edge appears there.
    assert (placed[..., canvas.width :] == placed[..., canvas.width - 1 : canvas.width]).all()
    mask = np.ones((canvas.height, canvas.width), dtype=bool)
    region = canvas.place_mask(mask)
    assert region.sum() == mask.size and (region[0, 0, : canvas.height, : canvas.width] == 1).all()


@pytest.mark.parametrize("size", [(601, 100), (100, 1000)])
def test_a_very_long_photo_is_refused(size):
    refused(lambda: Canvas.fit(size, 128, 32), "at most 6 times the other")
