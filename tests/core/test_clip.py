import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from followclick_core import clip_files
from followclick_core.clip import Clip, check_clip_output, load_frames
from followclick_core.files import atomic_path


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.fixture
def clip(moving_square) -> Clip:
    frames, mask = moving_square
    return Clip(frames, mask, {"seed": 0})


@pytest.mark.parametrize(("name", "least_psnr"), [("out.webp", 33), ("out.gif", 27), ("out.mp4", 33)])
def test_every_format_comes_back_with_its_frames(tmp_path, clip, name, least_psnr):
    clip.save(tmp_path / name)
    frames = load_frames(tmp_path / name)
    assert frames.shape == clip.frames.shape
    assert psnr(frames, clip.frames) > least_psnr
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_png_frames_are_lossless_in_a_folder_and_beside_each_other(tmp_path, clip):
    clip.save(tmp_path / "frames")
    clip.save(tmp_path / "out.png")
    assert np.array_equal(load_frames(tmp_path / "frames"), clip.frames)
    assert np.array_equal(load_frames(tmp_path / "out.png"), clip.frames)
    assert (tmp_path / "frames" / "frame_0015.png").exists() and (tmp_path / "out_0015.png").exists()


def test_a_shorter_clip_leaves_no_frame_of_the_longer_one(tmp_path, clip):
    shorter = Clip(clip.frames[:4], clip.mask)
    for name in ("frames", "out.png"):
        clip.save(tmp_path / name)
        shorter.save(tmp_path / name)
        assert np.array_equal(load_frames(tmp_path / name), shorter.frames)


def test_a_folder_with_other_files_is_left_alone(tmp_path, clip):
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"holds other files, such as holiday\.jpg"):
        clip.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("name", ["out.webp", "out.gif"])
def test_animations_loop_and_play_at_the_clips_rate(tmp_path, clip, name):
    clip.save(tmp_path / name)
    with Image.open(tmp_path / name) as animation:
        durations = []
        for index in range(animation.n_frames):
            animation.seek(index)
            animation.load()
            durations.append(animation.info["duration"])
        assert animation.info["loop"] == 0
    assert sum(durations) == 2000


def test_an_mp4_has_the_rate_and_even_sides(tmp_path, clip):
    import av

    odd = Clip(clip.frames[:, :95, :127], clip.mask[:95, :127])
    odd.save(tmp_path / "odd.mp4")
    with av.open(str(tmp_path / "odd.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (128, 96)
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
    frames = load_frames(tmp_path / "odd.mp4")
    assert psnr(frames[:, :95, :127], odd.frames) > 33


def test_an_mp4_keeps_pure_colours(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=np.uint8)
    frames = colours.repeat(16, axis=0)[None, None].repeat(16, axis=1).repeat(2, axis=0)
    Clip(frames, np.zeros((16, 64), dtype=bool)).save(tmp_path / "colours.mp4")
    seen = load_frames(tmp_path / "colours.mp4")[0, 8, 8::16]
    assert np.abs(seen.astype(int) - colours).max() <= 4


def test_a_still_background_does_not_boil_in_a_gif(tmp_path, clip):
    clip.save(tmp_path / "out.gif")
    frames = load_frames(tmp_path / "out.gif")
    still = (clip.frames == clip.frames[:1]).all(axis=(0, 3))
    assert still.mean() > 0.5
    assert (frames[:, still] == frames[0, still]).all()


def test_a_gif_shows_a_gradient_by_dithering(tmp_path):
    ramp = np.linspace(0, 255, 256 * 3).reshape(3, 256).T[None].repeat(256, axis=0)
    ramp[..., 1] = np.linspace(0, 255, 256)[:, None]
    frames = ramp.round().astype(np.uint8)[None].repeat(2, axis=0)
    Clip(frames, np.zeros((256, 256), dtype=bool)).save(tmp_path / "ramp.gif")
    seen = load_frames(tmp_path / "ramp.gif")[0].astype(float)

    def blocks(image):
        return image.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))

    plain = np.asarray(Image.fromarray(frames[0]).quantize(256, dither=Image.Dither.NONE).convert("RGB"), dtype=float)
    error, error_plain = (np.abs(blocks(a) - blocks(frames[0])).mean() for a in (seen, plain))
    assert error < 0.8 * error_plain


def test_a_frame_that_the_encoder_merged_is_counted_again(tmp_path, clip):
    frames = clip.frames.copy()
    frames[5] = frames[4]
    Clip(frames, clip.mask).save(tmp_path / "out.webp")
    assert len(load_frames(tmp_path / "out.webp")) == 16


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path, clip):
    with pytest.raises(ValueError, match=r"as \.avi; use \.webp, \.gif, \.mp4, \.png"):
        clip.save(tmp_path / "out.avi")
    with pytest.raises(ValueError, match=r"as \.avi"):
        check_clip_output(tmp_path / "out.avi")


def test_an_unwritable_place_is_found_out_before_and_while_saving(tmp_path, clip):
    (tmp_path / "taken.webp").mkdir()
    (tmp_path / "taken").write_text("a file")
    places = {"nowhere/out.webp": FileNotFoundError, "nowhere/frames": FileNotFoundError}
    places |= {"taken.webp": ValueError, "taken": ValueError, "taken/out.mp4": FileNotFoundError}
    for place, error in places.items():
        with pytest.raises(error):
            check_clip_output(tmp_path / place)
        with pytest.raises(error):
            clip.save(tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken", "taken.webp"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to")
def test_a_read_only_folder_is_said_in_one_sentence(clip):
    with pytest.raises(ValueError, match="cannot be written"):
        check_clip_output("/proc/self/out.webp")
    with pytest.raises(ValueError, match="cannot be written"):
        clip.save("/proc/self/out.webp")


def test_checking_an_output_leaves_nothing_behind(tmp_path):
    for name in ("out.webp", "frames", "out.png"):
        check_clip_output(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, error):
    (tmp_path / "out.webp").write_text("old")
    with pytest.raises(error), atomic_path(tmp_path / "out.webp") as temporary:
        temporary.write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["out.webp"]
    assert (tmp_path / "out.webp").read_text() == "old"


def test_an_interrupted_save_leaves_no_half_written_file(tmp_path):
    script = (
        "import sys, numpy as np\n"
        "from followclick_core.clip import Clip\n"
        "frames = np.random.default_rng(0).integers(0, 255, (64, 512, 512, 3), dtype=np.uint8)\n"
        "print('saving', flush=True)\n"
        "Clip(frames, np.zeros((512, 512), dtype=bool)).save(sys.argv[1])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "out.mp4")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and so all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == b"saving\n"
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".out-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert not list(tmp_path.iterdir())


def test_what_is_no_clip_is_said_so(tmp_path, photo):
    with pytest.raises(FileNotFoundError, match="no clip"):
        load_frames(tmp_path / "missing.webp")
    with pytest.raises(FileNotFoundError, match=r"missing_0000\.png"):
        load_frames(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="holds no pictures"):
        load_frames(tmp_path)
    for name in ("notes.mp4", "notes.gif"):
        (tmp_path / name).write_text("no clip")
        with pytest.raises(ValueError, match=name):
            load_frames(tmp_path / name)
    (tmp_path / "mixed").mkdir()
    Image.fromarray(photo).save(tmp_path / "mixed" / "0.png")
    Image.fromarray(photo[:50]).save(tmp_path / "mixed" / "1.png")
    with pytest.raises(ValueError, match="Frame 1 of .* is 128x50, the first 128x96"):
        load_frames(tmp_path / "mixed")


@pytest.mark.parametrize("name", ["out.webp", "out.gif", "out.mp4"])
def test_a_clip_cut_short_is_refused(tmp_path, clip, name):
    clip.save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=name):
        load_frames(tmp_path / name)


def test_a_clip_of_too_many_frames_is_refused(tmp_path, monkeypatch, clip):
    clip.save(tmp_path / "out.gif")
    monkeypatch.setattr(clip_files, "MAX_FRAMES", 15)
    with pytest.raises(ValueError, match="more than 15 frames"):
        load_frames(tmp_path / "out.gif")


def test_a_clip_checks_its_own_parts(moving_square, unchecked):
    frames, mask = moving_square
    with pytest.raises(ValueError, match="uint8 of shape"):
        Clip(frames.astype(np.float32), mask)
    with pytest.raises(ValueError, match="mask is bool of its frames' shape"):
        Clip(frames, mask[:50])
    with pytest.raises(ValueError, match="per second"):
        Clip(frames, mask, fps=0)


def test_frames_that_are_no_clips_are_neither_replaced_nor_removed(tmp_path, clip, photo):
    (tmp_path / "frames").mkdir()
    names = ("frames/frame_0001.png", "img_0001.png", "img_0300.png")
    for name in names:
        Image.fromarray(photo).save(tmp_path / name)
    before = [(tmp_path / name).read_bytes() for name in names]
    for name, said in (("frames", "holds other files, such as frame_0001"), ("img.png", "holds img_0001.png")):
        for write in (clip.save, check_clip_output):
            with pytest.raises(ValueError, match=said):
                write(tmp_path / name)
    assert [(tmp_path / name).read_bytes() for name in names] == before
