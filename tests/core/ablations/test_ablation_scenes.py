"""The ablations' clips, and the tracker that measures them, against motion that is known."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from followclick_core.ablations.clips import HeldOutClips, TrainingClips, make_clips
from followclick_core.ablations.pairs import find_pairs, latent_shares
from followclick_core.ablations.scenes import DIRECTIONS, SWEEP_MAGNITUDES, ClipParams, ClipScenes
from followclick_core.ablations.scoring import obedience
from followclick_core.ablations.tracking import track, velocities
from followclick_core.ablations.variants import BASE, Variant
from followclick_core.models.autoencoder import Autoencoder
from followclick_core.regions import region_shares

PARAMS = ClipParams(num_frames=8, train=20, held_out=12, sweep=4, pairs=12)


@pytest.fixture(scope="module")
def held_out(art_pack):
    scenes = ClipScenes(art_pack, PARAMS, "held-out")
    items = [scenes[index] for index in range(PARAMS.held_out)]
    return {key: torch.stack([item[key] for item in items]) for key in items[0] if key not in TEXT}


TEXT = ("prompt", "caption", "long_caption")


def test_the_tracker_finds_the_true_motion_of_scenes(held_out):
    frames, masks = held_out["frames"].float() / 255, held_out["silhouette"].float()
    velocity = velocities(track(frames, masks)) * 8
    true = held_out["direction"] * held_out["magnitude"][:, None]
    error = (velocity - true).norm(dim=1)
    assert error.median() < 0.1 and (error < 0.05 * held_out["magnitude"] + 0.3).float().mean() >= 0.9
    assert (obedience(velocity, held_out["direction"], held_out["magnitude"]) == 1).all()
    assert (obedience(-velocity, held_out["direction"], held_out["magnitude"]) == 0).all()


def test_what_stands_still_has_no_velocity_even_in_noise(held_out):
    still = held_out["frames"][:, :, :1].float().repeat(1, 1, 8, 1, 1) / 255
    noisy = still + 0.05 * torch.randn(still.shape, generator=torch.Generator().manual_seed(0))
    velocity = velocities(track(noisy, held_out["silhouette"].float())) * 8
    assert velocity.norm(dim=1).max() < 0.2
    assert not track(noisy, torch.zeros_like(held_out["silhouette"].float())).any()


def test_a_clips_speed_is_that_of_its_motion_over_the_frame_rate(held_out):
    assert held_out["fps"].tolist() == [4.0] * 4 + [8.0] * 4 + [12.0] * 4
    per_second = held_out["magnitude"] * held_out["fps"]
    low, high = PARAMS.speeds
    assert (per_second > 0.95 * low).all() and (per_second < 1.05 * high).all()
    assert (per_second.log().std() > 0.2) and torch.equal(held_out["direction"][:4], held_out["direction"][4:8])


def test_union_is_the_way_of_the_object_and_majority_its_place_halfway(art_pack):
    scenes = ClipScenes(art_pack, replace(PARAMS, num_frames=16), "sweep")
    for index in range(4):
        clip = scenes[index]
        assert float(clip["magnitude"]) == pytest.approx(max(SWEEP_MAGNITUDES), rel=0.05)
        union, swept, majority = (clip[key].float() for key in ("union", "swept", "majority"))
        # The last frame's place is in no pair.
        assert (union * swept).sum() == union.sum() and union.sum() > 0.8 * swept.sum()
        silhouette = clip["silhouette"].float()
        assert majority.sum() < 1.1 * silhouette.sum()
        assert (majority * silhouette).sum() < 0.75 * silhouette.sum()


def test_clips_are_made_in_parts_that_resume_and_are_the_same_in_other_processes(art_pack, tmp_path):
    torch.manual_seed(0)
    autoencoder = Autoencoder(width=8)
    assert not make_clips(art_pack, autoencoder, PARAMS, tmp_path / "none", 0, time.monotonic() - 1)
    assert make_clips(art_pack, autoencoder, PARAMS, tmp_path / "one", 0, time.monotonic() + 600)
    assert make_clips(art_pack, autoencoder, PARAMS, tmp_path / "two", 2, time.monotonic() + 600)
    parts = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert parts == [f"{name}-000.safetensors" for name in ("held-out", "pairs", "sweep", "train")]
    for part in parts:
        assert (tmp_path / "one" / part).read_bytes() == (tmp_path / "two" / part).read_bytes(), part
    changed = (tmp_path / "one" / "train-000.safetensors").stat().st_mtime_ns
    assert make_clips(art_pack, autoencoder, PARAMS, tmp_path / "one", 0, time.monotonic() + 600)
    assert (tmp_path / "one" / "train-000.safetensors").stat().st_mtime_ns == changed

    clips = TrainingClips(tmp_path / "one", PARAMS, torch.device("cpu"))
    drawn = clips.draw(8, 3, BASE)
    assert drawn["latents"].shape == (8, 4, 8, 8, 8) and drawn["mask"].shape == (8, 1, 8, 8)
    for other, key in (
        (Variant("x", region="union"), "mask"),
        (Variant("x", condition="fps"), "magnitude"),
        (Variant("x", motion_captions=False), "tokens"),
    ):
        changed = {name for name, value in clips.draw(8, 3, other).items() if not torch.equal(value, drawn[name])}
        assert changed == {key}
    assert not torch.equal(clips.draw(8, 4, BASE)["latents"], drawn["latents"])
    assert clips.mean_magnitude(4) > 2 * clips.mean_magnitude(12)

    pairs = HeldOutClips(tmp_path / "one", PARAMS, "pairs", torch.device("cpu"))
    first, second, chosen = find_pairs(pairs)
    assert chosen and len(first.verbs) == len(second.verbs) == len(chosen)
    assert all(one != other for one, other in zip(first.verbs, second.verbs, strict=True))
    assert not (first.masks * second.masks).any()
    assert np.allclose(first.directions, [DIRECTIONS[verb] for verb in first.verbs])


def test_shares_of_regions_are_those_of_the_nodes():
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, 8:24, 8:24] = 1
    masks[1, :, 40:56, 32:56] = 1
    shares = latent_shares([masks[:1], masks[1:]], (8, 8))
    at_pixels = region_shares(torch.cat([masks[0], masks[1]]))
    assert torch.allclose(shares.sum(0), torch.ones(1, 1, 8, 8))
    # Distances of a latent's middle and of its pixels differ by parts of it.
    averaged = torch.nn.functional.avg_pool2d(at_pixels[:, None], 8)
    assert (shares[:, 0] - averaged).abs().max() < 0.25 and (shares[:, 0] - averaged).abs().mean() < 0.03
