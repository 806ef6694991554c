"""The command line, run as a user runs it, and by its main() where only the exit code and the sentence matter."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from followclick_core import files
from followclick_core.__main__ import main
from followclick_core.cli.parser import join_negative_values
from followclick_core.clip import Clip, load_frames
from followclick_core.flow import measure_motion
from followclick_core.images import load_mask, save_mask
from followclick_core.version import VERSION


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "followclick_core", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def photo_file(tmp_path, photo) -> Path:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def animate(photo_file, tmp_path, untrained_weights):
    """main(["animate", …]) with small settings, each of which a test may replace (None leaves it out)."""

    def call(more=(), **replaced) -> int:
        options = {"click": "64,48", "motion": "run", "frames": 4, "steps": 2, "device": "cpu"}
        options |= {"model": untrained_weights, "output": tmp_path / "out.webp"} | replaced
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
        return main(["animate", str(photo_file), *flags, *more])

    return call


@pytest.fixture
def sentence(capsys):
    """What stderr says: besides a wiped progress bar a single line that begins with the program's name."""

    def read() -> str:
        error = capsys.readouterr().err.rpartition("\r")[-1]
        assert error.startswith("followclick: ") and error.endswith(".\n") and error.count("\n") == 1, error
        return error

    return read


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from followclick_core.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print('HEAVY', [name for name in ('torch', 'numpy', 'PIL', 'jaxtyping', 'tqdm') if name in sys.modules])\n"
    )
    commands = ("animate", "segment", "measure", "train", "build-dataset", "build-art", "evaluate")
    for arguments in ([], *([command] for command in commands)):
        answer = subprocess.run([sys.executable, "-c", code, *arguments, "--help"], capture_output=True, text=True)
        assert "HEAVY []" in answer.stdout, answer.stderr
        assert all(command in answer.stdout for command in (arguments or commands))
        assert "python -m followclick_core" in answer.stdout


def test_the_version_is_printed():
    assert run("--version").stdout == f"followclick {VERSION}\n"


def test_animate_writes_clip_mask_and_report(animate, tmp_path, capsys):
    mask_file, report_file = tmp_path / "mask.png", tmp_path / "report.json"
    assert animate(output=tmp_path / "out", mask_output=mask_file, report=report_file, seed=3, magnitude=8) == 0
    frames, report = load_frames(tmp_path / "out"), json.loads(report_file.read_text())
    assert len(frames) == 4
    # The photo's own aspect ratio, 4:3, up to the rounding of a side.
    assert abs(frames.shape[2] - frames.shape[1] * 4 / 3) <= 2
    assert load_mask(mask_file).shape == frames.shape[1:3]
    assert report["asked"]["magnitude"] == 8 and report["asked"]["seed"] == 3 and report["asked"]["motion"] == "run"
    assert {"measured", "seconds", "versions", "image_size"} <= report.keys()
    assert not list(tmp_path.glob(".*"))
    output = capsys.readouterr()
    assert "out: 4 frames of" in output.out
    assert all(label in output.err for label in ("finding the object", "sampling", "decoding", "measuring"))


def test_several_objects_long_clips_and_loops(animate, tmp_path):
    report_file = tmp_path / "report.json"
    flags = {"output": tmp_path / "out", "report": report_file, "frames": 18, "steps": 1, "cfg": 1}
    assert animate(**flags, more=["--also", "30,30", "jump", "3", "--also", "90,70", "sway", "--loop"]) == 0
    asked = json.loads(report_file.read_text())["asked"]
    assert len(load_frames(tmp_path / "out")) == 18 and asked["loop"] is True
    assert [(each["motion"], each["magnitude"]) for each in asked["also"]] == [("jump", 3), ("sway", 6)]


def test_approximations_are_asked_for_and_reported(animate, tmp_path):
    report_file = tmp_path / "report.json"
    flags = {"report": report_file, "steps": 4, "reuse_features": 2, "only_region": 2.5}
    assert animate(**flags) == 0
    asked = json.loads(report_file.read_text())["asked"]
    assert (asked["reuse_features"], asked["only_region"]) == (2, 2.5)
    assert "guidance_interval" not in asked  # reused features need the same guidance at every step
    assert animate(report=report_file, steps=4) == 0
    assert not {"reuse_features", "only_region"} & json.loads(report_file.read_text())["asked"].keys()


@pytest.mark.parametrize("words", [["30,30"], ["30,30", "jump", "fast"], ["30;30", "jump"], ["30,30", "a", "2", "b"]])
def test_another_object_that_is_misspelt_is_one_sentence(animate, sentence, words):
    assert animate(more=["--also", *words]) == 2
    assert "give a point, what it does and how fast" in sentence()


def test_the_same_seed_gives_the_same_clip_and_another_seed_another(animate, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert animate(output=tmp_path / name, seed=seed) == 0
    a, b, c = (load_frames(tmp_path / name) for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_quiet_says_nothing(photo_file, tmp_path, untrained_weights):
    segmenter = untrained_weights / "segmenter.safetensors"
    quiet = run(
        "segment", photo_file, "--click=64,48", "--segmenter", segmenter, "--output", tmp_path / "m.png", "--quiet"
    )
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert load_mask(tmp_path / "m.png").any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"click": "640,48"}, r"(640, 48) lies outside the image of 128x96"),
        ({"click": "-5,10"}, r"(-5, 10) lies outside"),
        ({"click": "nan,10"}, r"(nan, 10) lies outside"),
        ({"click": "64;48"}, "'64;48' is not X,Y"),
        ({"click": None}, "required: --click"),
        ({"motion": " "}, "motion prompt is empty"),
        ({"motion": None}, "required: --motion"),
        ({"magnitude": "nan"}, "magnitude is nan"),
        ({"magnitude": "-1"}, "magnitude is -1"),
        ({"magnitude": "much"}, "invalid float value: 'much'"),
        ({"frames": "0"}, "frames, not 0"),
        ({"steps": "0"}, "steps, not 0"),
        ({"cfg": "inf"}, "guidance scale is inf"),
        ({"seed": "-1"}, "'-1' is no seed"),
        ({"reuse_features": "0"}, "'0' is no count"),
        ({"only_region": "0.5"}, "0.5 times the region"),
        ({"device": "toaster"}, "device 'toaster'"),
        ({"model": "nowhere"}, "no model nowhere"),
        ({"output": "out.avi"}, "written as .avi"),
        ({"output": "nowhere/out.webp"}, "no folder nowhere"),
        ({"mask_output": "mask.jpg"}, "written as PNG"),
        ({"report": "nowhere/report.json"}, "no folder nowhere"),
    ],
)
def test_bad_input_is_answered_by_one_sentence_and_code_2(animate, tmp_path, monkeypatch, sentence, options, message):
    monkeypatch.chdir(tmp_path)
    assert animate(**options) == 2
    assert message in sentence()
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_a_photo_that_cannot_be_used_is_answered_by_one_sentence(tmp_path, sentence):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "text.jpg").write_text("no picture")
    for name, message in (
        ("dot.png", "1x1 pixels, too small"),
        ("text.jpg", "not a picture"),
        ("gone.png", "no picture"),
    ):
        output = tmp_path / "out.webp"
        assert main(["animate", str(tmp_path / name), "--click=0,0", "--motion=run", f"--output={output}"]) == 2
        assert message in sentence()


def test_the_photo_is_not_overwritten(animate, photo_file, sentence):
    before = photo_file.read_bytes()
    assert animate(mask_output=photo_file) == 2
    assert "photo.png is named twice" in sentence()
    assert photo_file.read_bytes() == before


def test_damaged_weights_are_answered_by_one_sentence(animate, tmp_path, untrained_weights, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in untrained_weights.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "unet.safetensors").write_bytes((untrained_weights / "unet.safetensors").read_bytes()[:5000])
    assert animate(model=broken) == 2
    assert "unet.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out.webp").exists()


def test_an_unknown_command_names_the_known_ones(sentence):
    assert main(["dance"]) == 2
    assert "'animate', 'segment'" in sentence()


def test_a_fault_of_the_program_shows_its_traceback_and_code_1(tmp_path, moving_square):
    frames, mask = moving_square
    Clip(frames, mask).save(tmp_path / "clip.webp")
    save_mask(tmp_path / "mask.png", mask)
    # A module that cannot be imported stands for any fault that is not the user's.
    (tmp_path / "av.py").write_text("raise RuntimeError('broken install')")
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    answer = run("measure", tmp_path / "clip.mp4", "--mask", tmp_path / "mask.png", env=environment)
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr and "broken install" in answer.stderr


def test_segment_writes_the_candidate_grown_and_feathered(photo_file, tmp_path, untrained_weights, capsys):
    common = [
        "segment",
        str(photo_file),
        "--click=64,48",
        "--segmenter",
        str(untrained_weights / "segmenter.safetensors"),
    ]
    masks = []
    for index, options in enumerate(([], ["--grow=3"], ["--grow", "-3"], ["--candidate=2"])):
        assert main([*common, *options, f"--output={tmp_path / f'{index}.png'}"]) == 0
        masks.append(load_mask(tmp_path / f"{index}.png"))
    plain, grown, shrunk, _ = masks
    assert grown.sum() > plain.sum() > shrunk.sum() and grown[plain].all() and plain[shrunk].all()
    assert main([*common, "--feather=4", f"--output={tmp_path / 'soft.png'}"]) == 0
    assert len(np.unique(np.asarray(Image.open(tmp_path / "soft.png")))) > 10
    capsys.readouterr()
    for option, message in (
        ("--candidate=7", "candidate 7"),
        ("--candidate=worst", "'worst'"),
        ("--grow=-999", "empty"),
    ):
        assert main([*common, option, "--quiet", f"--output={tmp_path / 'none.png'}"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()


def test_measure_agrees_with_the_library(tmp_path, moving_square, capsys):
    frames, mask = moving_square
    Clip(frames, mask).save(tmp_path / "frames")
    save_mask(tmp_path / "mask.png", mask)
    report_file = tmp_path / "motion.json"
    assert (
        main(["measure", str(tmp_path / "frames"), f"--mask={tmp_path / 'mask.png'}", f"--report={report_file}"]) == 0
    )
    report, expected = json.loads(report_file.read_text()), measure_motion(frames, mask)
    assert report["inside"] == pytest.approx(expected.inside) and len(report["per_frame_inside"]) == 15
    # 2 px per frame at 128 px of width are 8 at 512.
    assert report["inside"] == pytest.approx(8, rel=0.15) and report["outside"] < 1
    printed = capsys.readouterr().out
    assert f"{expected.inside:.2f}" in printed and "14-15" in printed


def test_measure_refuses_what_it_cannot_measure(tmp_path, moving_square, sentence):
    frames, mask = moving_square
    Clip(frames, mask).save(tmp_path / "clip.webp")
    Clip(frames[:1], mask).save(tmp_path / "one.webp")
    save_mask(tmp_path / "mask.png", mask)
    save_mask(tmp_path / "empty.png", np.zeros_like(mask))
    save_mask(tmp_path / "small.png", mask[:50])
    for clip, mask_name, message in (
        ("clip.webp", "empty.png", "empty"),
        ("clip.webp", "small.png", "128x50 pixels, "),
        ("clip.webp", "gone.png", "no picture"),
        ("gone.webp", "mask.png", "no clip"),
        ("one.webp", "mask.png", "frame"),
    ):
        assert main(["measure", str(tmp_path / clip), f"--mask={tmp_path / mask_name}"]) == 2
        assert message in sentence()


def test_training_refuses_an_unknown_preset_or_art_that_is_missing(tmp_path, sentence):
    for preset, message in (("huge", "huge"), ("nano", "art.zip")):
        options = [f"--preset={preset}", f"--art={tmp_path / 'art.zip'}", f"--run={tmp_path / 'run'}"]
        assert main(["train", *options]) == 2
        assert message in sentence()


def test_a_run_folder_that_is_a_file_is_answered_by_one_sentence(tmp_path, sentence):
    (tmp_path / "run").write_text("a file")
    (tmp_path / "art.zip").write_text("no art")
    for command in (
        ["train", "--preset=nano", f"--run={tmp_path / 'run'}"],
        ["evaluate", f"--output={tmp_path / 'run'}"],
    ):
        assert main([*command, f"--art={tmp_path / 'art.zip'}"]) == 2
        assert str(tmp_path / "run") in sentence()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing_half_written(photo_file, tmp_path, untrained_weights, number, code):
    options = ["--click=64,48", "--motion=run", "--steps=1000", f"--model={untrained_weights}", "--device=cpu"]
    command = [sys.executable, "-m", "followclick_core", "animate", str(photo_file), *options]
    process = subprocess.Popen(
        [*command, f"--output={tmp_path / 'out.webp'}"],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and so all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    seen = ""
    while "sampling" not in seen:
        character = process.stderr.read(1)
        assert character, seen
        seen += character
    process.send_signal(number)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "Traceback" not in rest
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_a_minus_after_an_option_is_its_value():
    given = ["--click", "-5,10", "--grow", "-3", "--magnitude", "-inf", "--quiet", "-h", "a", "-1"]
    joined = ["--click=-5,10", "--grow=-3", "--magnitude=-inf", "--quiet", "-h", "a", "-1"]
    assert join_negative_values(given) == joined


def test_json_is_written_whole_and_without_numbers_that_json_lacks(tmp_path):
    files.write_json(tmp_path / "a.json", {"eagle": "Adler – 1", "value": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "eagle": "Adler – 1",
        "value": [1, 2.5, None],
    }
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "b.json", {"value": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
