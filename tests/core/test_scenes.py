"""data/scenes.py: flow and masks are exact, what should stand still does, and scenes follow from their seed."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from followclick_core.data import sprite_names
from followclick_core.data.art import AnimationInfo, ArtPack, PhotoInfo, SpriteInfo
from followclick_core.data.layout import Draftsman
from followclick_core.data.scenes import SceneGenerator, SceneParams
from followclick_core.data.scenes_ahead import ScenesAhead
from followclick_core.data.verbs import VERBS

# Something for every tag, twice.
CODES = "1f600 1f642 1f415 1f40e 1f985 1f54a 2601 1f325 1f41f 1f420 26f5 1f6a4 1f680 2764 1f499 1f3f3 1f3c1 1f44b 270b"
SIZE = 96


def texture(rng, size, cells):
    """Smooth random colours: what a warp by a fraction of a pixel can be checked on."""
    coarse = torch.tensor(rng.uniform(0, 255, (1, 3, cells, cells)), dtype=torch.float32)
    return (
        F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0).numpy().astype(np.uint8)
    )


def sprite(rng, width, size=128):
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    alpha = np.clip((0.9 - np.sqrt((x / width) ** 2 + y**2)) * size / 3, 0, 1) * 255
    return np.concatenate([texture(rng, size, 10), alpha[..., None].astype(np.uint8)], -1)


@pytest.fixture(scope="module")
def art():
    rng = np.random.default_rng(0)
    codes = [(code, split) for code in CODES.split() for split in ("train", "test")]
    infos = [
        SpriteInfo(
            code,
            sprite_names.noun(code),
            split,
            tuple(sorted(sprite_names.tags(code))),
            sprite_names.face_box(code) or {},
        )
        for code, split in codes
    ]
    frames = np.stack([sprite(np.random.default_rng(5), 0.4 + 0.03 * i, 64) for i in range(16)])
    return ArtPack(
        sprites=np.stack([sprite(rng, rng.uniform(0.6, 1.0)) for _ in codes]),
        sprite_infos=infos,
        animations=np.stack([frames, frames]),
        animation_infos=[AnimationInfo("1f3c3", "runner", "run", 0.02, split) for split in ("train", "test")],
        photos=[texture(rng, 160, 24)[:, :140] for _ in range(6)],
        photo_infos=[PhotoInfo(f"p{i}", "a wall", "test", "CC0", "train" if i < 4 else "test") for i in range(6)],
    )


@pytest.fixture(scope="module")
def clips(art):
    """One exact clip per verb, with things that stand around."""
    generator = SceneGenerator(art, SceneParams(size=SIZE, drawn=0.0, scales=(0.35, 0.5)), "cpu")
    return generator.sample(len(VERBS), seed=1, verbs=VERBS)


def warped_back(video, flow):
    """Frame i+1 as seen from frame i: f-1 c h w."""
    axis = torch.arange(video.shape[-1]) + 0.5
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1) + flow.permute(1, 2, 3, 0)
    return F.grid_sample(video[:, 1:].transpose(0, 1), grid / video.shape[-1] * 2 - 1, align_corners=False)


@pytest.mark.parametrize("verb", VERBS)
def test_the_flow_leads_to_the_same_point_of_the_object(clips, verb):
    i = VERBS.index(verb)
    video, masks, flow = clips.frames[i], clips.object_masks[i], clips.flow[i]
    # Judged well inside the silhouette, at both ends, away from whatever stands in front. Flashes change colours, so
    # every frame is compared by its own mean brightness.
    inside = (F.max_pool2d(1 - masks[:-1, None], 7, 1, 3) < 0.5) & (warped_back(masks[None], flow) > 0.999)
    first, second, back = video[:, :-1].transpose(0, 1), video[:, 1:].transpose(0, 1), warped_back(video, flow)

    def error(other):
        squares = []
        for a, b, area in zip(first, other, inside, strict=True):
            if area.sum() > 10:
                a, b = a[:, area[0]], b[:, area[0]]
                squares.append(((a / a.mean() - b / b.mean()) ** 2).mean())
        return torch.stack(squares).mean()

    assert clips.flow_known[i]
    assert error(second) > 4 * error(back)


def test_nothing_but_the_target_changes_by_one_grey_level(clips):
    around = F.max_pool2d(clips.swept, 11, 1, 5)[:, :, None] > 0  # soft edges reach a little beyond the silhouette
    change = (clips.frames - clips.frames[:, :, :1]).abs().masked_fill(around, 0)
    assert change.max() < 1e-4


def test_distractors_stand_beside_the_target(clips):
    assert clips.distractor_mask.sum() > 0
    assert not (clips.distractor_mask * clips.mask[:, 0]).any()


def test_the_mask_is_the_silhouette_of_the_moving_thing(art):
    alone = SceneGenerator(art, SceneParams(size=SIZE, max_distractors=0, drawn=0.0, verbs=("move right",)), "cpu")
    batch = alone.sample(4, seed=3, magnitudes=[12.0] * 4)
    moved = (batch.frames[:, :, 0] - batch.frames[:, :, -1]).abs().amax(1) > 0.05
    silhouettes = torch.maximum(batch.object_masks[:, 0], batch.object_masks[:, -1]) > 0
    overlap = (moved & silhouettes).sum((1, 2)) / (moved | silhouettes).sum((1, 2))
    assert (overlap > 0.75).all()
    assert set(batch.object_masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(batch.swept, batch.object_masks.amax(1, keepdim=True))


def test_flow_is_zero_outside_the_masks_and_its_mean_is_the_label(clips):
    outside = clips.object_masks[:, None, :-1] == 0
    assert clips.flow.masked_select(outside.expand_as(clips.flow)).abs().max() == 0
    i = VERBS.index("move left")
    per_pixel = clips.flow[i].norm(dim=0)[clips.object_masks[i, :-1] > 0]
    assert clips.magnitude[i].item() == pytest.approx(per_pixel.mean().item() * 512 / SIZE, rel=1e-3)
    assert (clips.flow[i, 0][clips.object_masks[i, :-1] > 0] < 0).all()


def test_the_same_seed_gives_the_same_clips_and_another_seed_others(art):
    generator = SceneGenerator(art, SceneParams(size=64), "cpu")
    first, again, other = generator.sample(3, seed=5), generator.sample(3, seed=5), generator.sample(3, seed=6)
    assert torch.equal(first.frames, again.frames) and torch.equal(first.flow, again.flow)
    assert first.motion_prompts == again.motion_prompts and first.captions == again.captions
    assert not torch.equal(first.frames, other.frames)


def test_a_scene_does_not_depend_on_its_batch(art):
    generator = SceneGenerator(art, SceneParams(size=64), "cpu")
    assert torch.equal(generator.sample(4, seed=2).frames[:2], generator.sample(2, seed=2).frames)


@pytest.mark.parametrize("wanted", [2.0, 6.0, 14.0])
def test_a_magnitude_that_is_asked_for_comes_out(art, wanted):
    generator = SceneGenerator(art, SceneParams(size=64, drawn=0.0, max_distractors=0), "cpu")
    verbs = ["move left", "move down", "run", "shake", "jump"]
    magnitudes = generator.sample(len(verbs), seed=4, verbs=verbs, magnitudes=[wanted] * len(verbs)).magnitude
    assert magnitudes[:2].tolist() == pytest.approx([wanted] * 2, rel=0.1)
    assert ((magnitudes < 1.3 * wanted) & (magnitudes > 0.4 * wanted)).all()


def test_magnitudes_and_verbs_are_spread(art):
    generator = SceneGenerator(art, SceneParams(size=32, max_distractors=1), "cpu")
    batches = [generator.sample(50, seed=seed) for seed in range(4)]
    magnitudes = torch.cat([batch.magnitude for batch in batches])
    for low, high in ((0.3, 1.5), (1.5, 3), (3, 6), (6, 12), (12, 26)):
        assert ((magnitudes >= low) & (magnitudes < high)).float().mean() > 0.05
    assert len({verb for batch in batches for verb in batch.verbs}) >= len(VERBS) - 2
    known = torch.cat([batch.flow_known for batch in batches])
    assert known.float().mean() > 0.8


def test_drawn_animations_are_labelled_as_measured(art):
    generator = SceneGenerator(art, SceneParams(size=64, drawn=1.0, max_distractors=0, verbs=("run",)), "cpu")
    batch = generator.sample(4, seed=0)
    assert not batch.flow_known.any()
    area = batch.object_masks.sum((2, 3))
    assert (area[:, 8] > area[:, 0] * 1.1).all()  # the drawn disc widens from frame to frame
    assert (batch.magnitude > 1).all()


def test_train_and_test_share_no_sprite_and_no_photo(art):
    params = SceneParams(size=32)
    train, test = Draftsman(art, params, "train"), Draftsman(art, params, "test")
    assert not set(train.sprites) & set(test.sprites) and not set(train.photos) & set(test.photos)
    for draftsman, sprites, photos in ((train, train.sprites, train.photos), (test, test.sprites, test.photos)):
        for index in range(40):
            layout = draftsman.draw(9, index)
            pieces = [layout.target, *layout.distractors]
            assert {piece.index for piece in pieces if piece.kind == "sprite"} <= set(sprites)
            assert {layout.background.photo} | {piece.photo.photo for piece in pieces if piece.photo} <= set(photos)


def test_stills_are_single_frames_with_masks(art):
    batch = SceneGenerator(art, SceneParams(size=64), "cpu").sample_stills(6, seed=0)
    assert batch.frames.shape == (6, 3, 1, 64, 64) and batch.flow.shape == (6, 2, 0, 64, 64)
    assert (batch.mask.sum((1, 2, 3)) > 20).all() and (batch.magnitude == 0).all()
    assert batch.frames.min() >= 0 and batch.frames.max() <= 1


def test_half_of_the_object_stays_in_the_frame(art):
    verbs = [verb for verb in VERBS if verb != "launch"]
    batch = SceneGenerator(art, SceneParams(size=64, max_distractors=0, drawn=0.0), "cpu").sample(
        len(verbs), 8, verbs=verbs
    )
    area = batch.object_masks.sum((2, 3))
    shrinks = torch.tensor([verb in ("shrink",) for verb in verbs])
    assert (area.amin(1) > 0.35 * area.amax(1))[
        ~shrinks & torch.tensor([v not in ("grow", "pulse", "storm") for v in verbs])
    ].all()


def test_captions_and_prompts_name_what_is_there(clips):
    assert all("photo of a wall" in caption for caption in clips.captions)
    assert all(text == text.lower() and text.strip() for text in (*clips.motion_prompts, *clips.captions))


def test_an_unknown_side_of_the_split_is_refused(art):
    with pytest.raises(ValueError, match="'train' or 'test'"):
        SceneGenerator(art, SceneParams(size=32), "cpu", split="validation")


@pytest.fixture
def small_scenes(art):
    return SceneGenerator(art, SceneParams(size=32, num_frames=4), "cpu", split="train")


def test_scenes_made_ahead_by_another_process_equal_those_made_at_once(small_scenes):
    ahead = ScenesAhead(small_scenes, torch.device("cpu"), workers=1)
    for seed in (3, 4, 9):
        made, own = ahead.sample(2, seed), small_scenes.sample(2, seed)
        assert (made.frames - own.frames).abs().max() <= 0.5 / 255 + 1e-6
        assert torch.equal(made.object_masks, own.object_masks)
        assert torch.allclose(made.flow, own.flow, rtol=1e-3, atol=1e-3)
        assert torch.equal(made.magnitude, own.magnitude)
        assert made.motion_prompts == own.motion_prompts


def test_clips_and_stills_may_be_asked_for_in_turn(small_scenes):
    ahead = ScenesAhead(small_scenes, torch.device("cpu"), workers=1)
    assert ahead.sample(1, 0).frames.shape[2] == 4
    assert ahead.sample_stills(2, 0).frames.shape == (2, 3, 1, 32, 32)
    assert ahead.sample(1, 1).verbs == small_scenes.sample(1, 1).verbs


def test_programs_that_share_the_seeds_have_every_second_one(small_scenes):
    ahead = ScenesAhead(small_scenes, torch.device("cpu"), workers=1, rank=1, ranks=2)
    for seed in (3, 4):
        assert torch.equal(ahead.sample(1, seed).magnitude, small_scenes.sample(1, 2 * seed + 1).magnitude)


def test_making_scenes_ahead_needs_a_process(small_scenes):
    with pytest.raises(ValueError, match="at least 1 process"):
        ScenesAhead(small_scenes, torch.device("cpu"), workers=0)
