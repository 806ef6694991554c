"""Sampling apart from scoring: the same clips as in one go, found again, told from others, and without OpenCV."""

import operator
import pickle
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from followclick_core.__main__ import main
from followclick_core.animator import Animator
from followclick_core.evaluation import latents
from followclick_core.evaluation.latents import LatentSampler, StoredTakes, read_index, read_sampling, sample_takes
from followclick_core.evaluation.scenes import evaluate_scenes, held_out_scenes, sample_scenes
from followclick_core.evaluation.takes import SWEEP_MAGNITUDES, Ask, Plan, read_scenes
from followclick_core.evaluation.workers import in_workers

SIZE, VERBS = 128, ("jump", "spin")
ASK = Ask("own", "jump", 3.0)


@pytest.fixture(scope="module")
def animator(untrained_weights):
    return Animator.load(untrained_weights, "cpu")


@pytest.fixture(scope="module")
def arguments(animator, art):
    """What both halves are given: three scenes of four frames, one of them with its sweep."""
    return (animator, art, 3, 1, 4, 1), {"size": SIZE, "sweep_scenes": 1, "verbs": VERBS}


@pytest.fixture(scope="module")
def sampled(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("takes")
    assert sample_scenes(*arguments[0], takes=folder, **arguments[1]) == 0
    return folder


class Noise(LatentSampler):
    """Noise in a model's place; counts the clips that it is asked for."""

    def __init__(self):
        super().__init__(animator=None, clips_at_once=3)
        self.asked = []

    def segment(self, scene):
        return scene.mask if scene.index != 1 else np.zeros_like(scene.mask)

    def sample(self, requests):
        self.asked += [(takes.scene.index, ask.magnitude) for takes, ask in requests]
        return torch.randn(len(requests), 4, 4, SIZE // 8, SIZE // 8).half()


@pytest.fixture(scope="module")
def scenes(art):
    return list(held_out_scenes(art, 4, 1, SIZE, 4, VERBS))


def test_two_steps_give_the_clips_and_figures_of_one(arguments, sampled, tmp_path):
    evaluate_scenes(*arguments[0], out_dir=tmp_path / "one", **arguments[1])
    two = evaluate_scenes(*arguments[0], out_dir=tmp_path / "two", takes=sampled, **arguments[1])
    assert two.settings["sampled"].startswith("on a CPU, ")
    pairs = list(zip(read_scenes(tmp_path / "one"), read_scenes(tmp_path / "two"), strict=True))
    assert sorted(len(scene.takes) for scene, _ in pairs) == [1, 1, 5]
    for scene, same in pairs:
        for take, stored in zip(scene.takes, same.takes, strict=True):
            assert take.magnitude == stored.magnitude
            np.testing.assert_array_equal(take.mask, stored.mask)
            # Latents are stored in half precision.
            assert np.abs(take.frames.astype(int) - stored.frames).max() <= 2


def test_workers_answer_in_order_and_raise_their_errors_here():
    answers = in_workers(partial(operator.floordiv, 6), [3, 1, 2, 0, 6], workers=2)
    assert [next(answers) for _ in range(3)] == [2, 6, 3]
    with pytest.raises(ZeroDivisionError):
        next(answers)


def test_stored_takes_can_go_to_a_worker(animator, art, sampled):
    source = StoredTakes(animator, sampled, read_sampling(sampled))
    scene = next(held_out_scenes(art, 1, 1, SIZE, 4, VERBS))
    (take,), (same,) = (
        each.animate([(scene, scene.magnitude)]) for each in (source, pickle.loads(pickle.dumps(source)))
    )
    np.testing.assert_array_equal(take.frames, same.frames)


def test_sampling_goes_on_where_it_stopped_and_never_samples_twice(scenes, tmp_path):
    noise = Noise()
    assert sample_takes(noise, scenes, tmp_path, {}, max_seconds=0) == len(scenes)
    assert sample_takes(noise, scenes[:2], tmp_path, {}) == 0
    assert sample_takes(noise, scenes, tmp_path, {}) == 0
    assert [index for index, _ in noise.asked] == [0, 2, 3]  # of scene 1 the click finds nothing
    assert sorted(read_index(tmp_path)) == [0, 1, 2, 3]


def test_more_sweeps_are_sampled_later_beside_what_is_there(animator, scenes, tmp_path):
    noise = Noise()
    sample_takes(noise, scenes, tmp_path, {})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    noise.asked.clear()
    for _ in range(2):
        assert sample_takes(noise, scenes, tmp_path, {}, Plan(VERBS, 3, unseen_scenes=1)) == 0
    assert len(noise.asked) == (4 + 2) + 4  # of scene 1 the click finds nothing
    assert all(path.read_bytes() == content for path, content in before.items())
    source = StoredTakes(animator, tmp_path, {})
    for magnitude in (scenes[0].magnitude, *SWEEP_MAGNITUDES):
        (take,) = source.animate([(scenes[0], magnitude)])
        assert take.magnitude == magnitude and np.ptp(take.frames, axis=0).any()


def test_scenes_before_the_first_are_left_to_others(scenes, tmp_path):
    noise = Noise()
    assert sample_takes(noise, scenes, tmp_path, {}, Plan(VERBS, 1), first_scene=2) == 0
    # The sweep belongs to scene 0, which was passed over.
    assert [index for index, _ in noise.asked] == [2, 3]


def test_files_stay_below_their_size_whatever_the_batch(scenes, tmp_path, monkeypatch):
    per_clip = 2 * 4 * 4 * (SIZE // 8) ** 2
    monkeypatch.setattr(latents, "FILE_BYTES", 8 * per_clip)
    noise = Noise()
    sample_takes(noise, scenes, tmp_path, {}, Plan(VERBS, 1))
    files = sorted(tmp_path.glob("takes-*.safetensors"))
    assert len(files) == 2
    assert all(file.stat().st_size <= 8 * per_clip for file in files)
    assert [magnitude for index, magnitude in noise.asked if index == 0] == [scenes[0].magnitude, *SWEEP_MAGNITUDES]


def test_a_batch_that_overflows_in_half_precision_is_sampled_anew(animator, scenes, monkeypatch):
    calls = []

    def generate(bundle, pixels, masks, prompts, magnitudes, seeds, params):
        calls.append(params.autocast)
        value = float("inf") if params.autocast else 1.0
        return torch.full((len(pixels), 4, 4, SIZE // 8, SIZE // 8), value)

    monkeypatch.setattr(latents, "generate_latents", generate)
    sampler = LatentSampler(animator, num_frames=4, steps=1, autocast=torch.float16)
    request = latents._SceneTakes(scenes[0], scenes[0].mask, [ASK])
    assert bool(sampler.sample([(request, ASK)]).isfinite().all())
    assert calls == [torch.float16, None]


def test_half_precision_gives_nearly_the_same_latents(untrained_weights, scenes):
    animator = Animator.load(untrained_weights, "cpu")
    torch.manual_seed(0)
    for parameter in animator.bundle.unet.parameters():  # its output begins with zero, which no rounding changes
        torch.nn.init.normal_(parameter, std=0.02) if not parameter.any() else None
    request = latents._SceneTakes(scenes[0], scenes[0].mask, [ASK])
    full, half = (
        LatentSampler(animator, num_frames=4, steps=2, autocast=dtype).sample([(request, ASK)]).float()
        for dtype in (None, torch.bfloat16)
    )
    difference = (full - half).square().mean().sqrt() / full.std()
    assert 0 < difference < 0.1


@pytest.mark.parametrize(("change", "named"), [({"seed": 2}, "seed"), ({"size": 64}, "size"), ({"steps": 9}, "steps")])
def test_takes_of_other_settings_are_refused(animator, art, sampled, tmp_path, change, named):
    settings = {"num_scenes": 3, "seed": 1, "num_frames": 4, "steps": 1, "size": SIZE, "verbs": VERBS} | change
    for run, folder in ((sample_scenes, {}), (evaluate_scenes, {"out_dir": tmp_path})):
        with pytest.raises(ValueError, match=f"another {named}"):
            run(animator, art, takes=sampled, **folder, **settings)


@pytest.mark.parametrize("part", ["motion", "autoencoder", "segmenter"])
def test_takes_of_other_weights_are_refused(untrained_weights, arguments, sampled, tmp_path, part):
    other = Animator.load(untrained_weights, "cpu")
    module = other.segmenter.sam if part == "segmenter" else getattr(other.bundle, part)
    next(module.parameters()).data += 1
    with pytest.raises(ValueError, match="another (weights|segmenter)"):
        evaluate_scenes(other, *arguments[0][1:], out_dir=tmp_path, takes=sampled, **arguments[1])


def test_missing_scenes_and_sweeps_are_named(arguments, sampled, tmp_path):
    (animator, art, _, *rest), options = arguments
    with pytest.raises(ValueError, match="lacks 2 of the 5 scenes, the first of them number 3"):
        evaluate_scenes(animator, art, 5, *rest, out_dir=tmp_path, takes=sampled, **options)
    more = options | {"sweep_scenes": 3}
    with pytest.raises(ValueError, match="as many --sweep-scenes"):
        evaluate_scenes(*arguments[0], out_dir=tmp_path, takes=sampled, **more)
    again = shutil.copytree(sampled, tmp_path / "more")
    assert sample_scenes(*arguments[0], takes=again, **more) == 0
    evaluation = evaluate_scenes(*arguments[0], out_dir=tmp_path, takes=again, **more)
    swept = [scene.verb == "jump" for scene in evaluation.scenes]  # the other verb cannot be swept
    assert [bool(scene.sweep) for scene in evaluation.scenes] == swept
    assert sum(swept) > 1


def test_a_click_that_found_nothing_is_a_still_clip(animator, scenes, tmp_path):
    sample_takes(Noise(), scenes[:2], tmp_path, {})
    (take,) = StoredTakes(animator, tmp_path, {}).animate([(scenes[1], scenes[1].magnitude)])
    assert not take.mask.any()
    assert (take.frames == scenes[1].image).all()


def test_sampling_needs_no_opencv(art, untrained_weights, tmp_path):
    art.save(tmp_path / "art.zip")
    program = (
        "import sys\n"
        "for name in ('cv2', 'av', 'scipy', 'matplotlib', 'skimage'): sys.modules[name] = None\n"
        "from followclick_core.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = [f"--art={tmp_path / 'art.zip'}", f"--model={untrained_weights}", "--scenes=1", "--steps=1"]
    command = ["evaluate", *options, f"--takes={tmp_path / 'takes'}", "--sample-only", "--sweep-scenes=0"]
    done = subprocess.run([sys.executable, "-c", program, *command, "--device=cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 scenes." in done.stdout
    assert list(read_index(tmp_path / "takes")) == [0]


@pytest.mark.parametrize(
    ("options", "message"), [(["--sample-only"], "--takes"), ([], "--output"), (["--takes=x"], "--output")]
)
def test_a_command_that_lacks_a_folder_names_the_option(options, message, capsys):
    assert main(["evaluate", "--art=none.zip", *options]) == 2
    assert message in capsys.readouterr().err
