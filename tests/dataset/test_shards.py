"""What the reader gives is what a build wrote, and a training stage takes it."""

import io
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from followclick_core.__main__ import main
from followclick_core.data.shards import ShardClips, ShardParams, stream_shards
from followclick_core.dataset.clips import VideoOutcome, take_clips
from followclick_core.dataset.params import ClipParams
from followclick_core.dataset.sources import Video
from followclick_core.dataset.tars import TarIndex
from followclick_core.dataset.workers import WorkerPool

from .conftest import SIDE, run_here


@pytest.fixture(scope="module")
def built_once(sliding_video, tmp_path_factory):
    """Three clips in three shards; the caption of one tells of no motion."""
    folder = tmp_path_factory.mktemp("built")
    videos = folder / "videos"
    videos.mkdir()
    for name, caption in (("a", "A square slides down"), ("b", "A square"), ("c", "A box spins")):
        shutil.copy(sliding_video, videos / f"{name}.mp4")
        (videos / f"{name}.txt").write_text(caption)
    flags = ["--size", str(SIDE), "--workers", "1", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkerPool, "run", run_here)
        assert main(["build-dataset", str(videos), "--out", str(folder / "out"), *flags]) == 0
    return folder / "out"


@pytest.fixture
def built(built_once, tmp_path):
    return shutil.copytree(built_once, tmp_path / "out")


def test_samples_have_the_frames_masks_and_magnitude_that_were_measured(built, sliding_video):
    clips = ShardClips(built, ShardParams(size=SIDE))
    batch = clips.take([0])
    [record] = batch.records
    expected = next(
        take_clips(Video("v", str(sliding_video), ""), ClipParams(size=SIDE, clips_per_video=1), VideoOutcome("v"))
    )
    pixels = (batch.frames[0].permute(1, 2, 3, 0).numpy() * 255).round()
    assert np.abs(pixels - expected.frames).mean() < 2  # JPEG at quality 95
    assert batch.magnitude.tolist() == pytest.approx([record["motion"]["magnitude"]["followed"]])
    assert batch.mask.mean().item() == pytest.approx(record["motion"]["area"]["followed"], abs=1e-6)
    assert batch.swept.mean().item() == pytest.approx(record["motion"]["area"]["union"], abs=1e-6)
    assert batch.captions == batch.motion_prompts or batch.captions[0].startswith("A ")


def test_clips_without_a_phrase_are_for_training_on_captions_only(built):
    motion, caption = (ShardClips(built, ShardParams(size=64, texts=texts)) for texts in ("motion", "caption"))
    assert motion.take(range(len(motion))).motion_prompts == ["slide down", "spin"]
    assert caption.take(range(len(caption))).motion_prompts == ["A square slides down", "A square", "A box spins"]


def test_the_same_seed_draws_the_same_batch_and_another_seed_another(built):
    clips = ShardClips(built, ShardParams(size=64, texts="caption"))
    first, same = clips.sample(8, seed=3), clips.sample(8, seed=3)
    assert torch.equal(first.frames, same.frames) and first.captions == same.captions
    assert any(clips.sample(8, seed=seed).captions != first.captions for seed in range(4))
    stills = clips.sample_stills(4, seed=0)
    assert stills.frames.shape == (4, 3, 1, 64, 64)


def test_size_frames_and_rule_are_the_reader_s_choice(built):
    batch = ShardClips(built, ShardParams(size=32, num_frames=5, mask_rule="union")).take([0])
    assert batch.frames.shape == (1, 3, 5, 32, 32) and batch.mask.shape == (1, 1, 32, 32)
    assert batch.magnitude.tolist() == pytest.approx([batch.records[0]["motion"]["magnitude"]["union"]])
    assert set(batch.mask.unique().tolist()) <= {0.0, 1.0}


def test_streaming_gives_every_clip_once(built):
    batches = list(stream_shards(built, ShardParams(size=32, texts="caption"), batch_size=2))
    assert [len(batch.captions) for batch in batches] == [2, 1]
    assert sorted(caption for batch in batches for caption in batch.captions) == [
        "A box spins",
        "A square",
        "A square slides down",
    ]


def test_shards_are_read_by_webdataset_s_own_decoders(built):
    import webdataset

    shards = sorted(str(path) for path in (built / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 3
    for sample in samples:
        assert sample["frame.000.jpg"].shape == (SIDE, SIDE, 3)
        assert sample["flow.npy"].shape == (15, SIDE // 8, SIDE // 8, 2)
        assert isinstance(sample["json"], dict) and isinstance(sample["txt"], str)


def test_a_shard_that_was_not_finished_is_not_read(built):
    shard = sorted((built / "shards").glob("*.tar"))[0]
    shard.with_suffix(".json").unlink()
    clips = ShardClips(built, ShardParams(size=32, texts="caption"))
    assert clips.take(range(len(clips))).captions == ["A square", "A box spins"]


def test_a_folder_without_shards_or_phrases_is_named(built, tmp_path):
    with pytest.raises(FileNotFoundError, match="no shards with clips"):
        ShardClips(tmp_path, ShardParams(size=32))
    with pytest.raises(ValueError, match="motion or caption"):
        ShardParams(size=32, texts="both")
    with pytest.raises(IndexError, match="There are 2 clips"):
        ShardClips(built, ShardParams(size=32)).take([2])


def test_a_damaged_tar_is_named(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"s.tar is damaged"):
        TarIndex(tmp_path / "s.tar")


def test_an_index_reads_single_files_of_a_sample(built):
    path = sorted((built / "shards").glob("*.tar"))[0]
    index = TarIndex(path)
    with tarfile.open(path) as tar:
        for key in index:
            [mask] = index.read(key, "mask.union").values()
            assert mask == tar.extractfile(f"{key}.mask.union.png").read()
            assert Image.open(io.BytesIO(mask)).mode == "1"


def test_the_motion_stage_takes_shards_in_the_place_of_scenes(built):
    from followclick_core.models.autoencoder import Autoencoder
    from followclick_core.presets import get_preset
    from followclick_core.training.params import TRAINING
    from followclick_core.training.stages import Generative, MotionStage

    preset = get_preset("nano")
    clips = ShardClips(built, ShardParams(size=64, num_frames=preset.motion.trained_frames))
    torch.manual_seed(0)
    stage = MotionStage(Generative(preset), Autoencoder(), TRAINING["nano"].motion, preset, clips)
    chunk = stage._make_chunk(0)
    count = TRAINING["nano"].motion.chunk_size
    assert chunk["latents"].shape == (count, 4, preset.motion.trained_frames, 8, 8)
    assert chunk["mask"].shape == chunk["swept"].shape == (count, 1, 8, 8)
    assert chunk["tokens"].shape == (count, 77) and (chunk["magnitude"] > 1).all()
