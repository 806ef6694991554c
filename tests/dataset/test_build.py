"""Builds as a whole, in this process: what is kept, what is named, what is done again and what is not. Ray is apart."""

import io
import json
import os
import resource
import subprocess
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from followclick_core.__main__ import main
from followclick_core.dataset import clips
from followclick_core.dataset.build import _with_absolute_paths, build
from followclick_core.dataset.decode import VideoError
from followclick_core.dataset.pack import PackStep
from followclick_core.dataset.params import BuildParams, CaptionParams, ClipParams, MotionParams, RunParams, Thresholds
from followclick_core.dataset.plan import read_part
from followclick_core.dataset.steps import CRASHES
from followclick_core.dataset.store import Store

from .conftest import SIDE, scene, write_video
from .fake_endpoint import FakeEndpoint

pytestmark = pytest.mark.usefixtures("no_ray")

PARAMS = BuildParams(clips=ClipParams(size=SIDE), run=RunParams(videos_per_part=2))


def times_of(folder, step):
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / step).glob("*.tar"))}


def samples_of(folder):
    """Key -> suffix -> content, over all shards."""
    samples = {}
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                samples.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return samples


def test_every_sample_carries_frames_masks_flow_captions_and_raw_figures(add_video, tmp_path):
    add_video("a", "A square slides down")
    report = build(tmp_path / "videos", tmp_path / "out", PARAMS)
    assert report.content["clips"] == {
        "taken": 1,
        "measured": 1,
        "kept": 1,
        "in shards": 1,
        "in shards with a motion phrase": 1,
    }
    [sample] = samples_of(tmp_path / "out").values()
    frames = [f"frame.{index:03d}.jpg" for index in range(16)]
    masks = [f"mask.{rule}.png" for rule in ("literal", "union", "majority", "followed")]
    assert set(sample) == {*frames, *masks, "flow.npy", "txt", "motion.txt", "json"}
    record = json.loads(sample["json"])
    assert (sample["txt"], sample["motion.txt"]) == (b"A square slides down", b"slide down")
    assert record["video"] == "a.mp4" and record["source"]["fps"] == 25 and record["motion_source"] == "rules"
    assert record["motion"]["magnitude"]["followed"] > 3
    assert record["measured_by"] == {"estimator": "dis", "floor": 1.0, "subtract_median": True}


def test_whatever_is_wrong_with_a_video_is_named_and_the_rest_is_kept(add_video, tmp_path, sliding_video):
    add_video("good")
    add_video("uncaptioned", None)
    add_video("latin", "caf\xe9".encode("latin-1"))
    (add_video("empty")).write_bytes(b"")
    (add_video("corrupt")).write_bytes(b"\0" * 5000)
    (add_video("short", video=write_video(tmp_path / "s.mp4", scene(20)))).touch()
    add_video("odd", video=write_video(tmp_path / "o.mp4", scene(70, width=175, height=143)))
    add_video("still", video=write_video(tmp_path / "t.mp4", np.repeat(scene(1), 70, axis=0)))
    times = [*(i / 50 for i in range(50)), *(1 + i / 20 for i in range(50))]
    add_video("uneven", video=write_video(tmp_path / "u.mp4", scene(100, step=1), times, fps=50))
    report = build(tmp_path / "videos", tmp_path / "out", PARAMS)
    named = {
        reason: [row["name"].split(" at ")[0] for row in group["first"]]
        for reason, group in report.content["problems"].items()
    }
    assert named == {
        "no caption": ["uncaptioned.mp4"],
        "caption is not UTF-8": ["latin.mp4"],
        "empty file": ["empty.mp4"],
        "unreadable": ["corrupt.mp4"],
        "too short": ["short.mp4"],
        "static": ["still.mp4"],
    }
    assert report.content["videos"]["variable frame rate, sampled by time"] == 1
    kept = {json.loads(sample["json"])["video"] for sample in samples_of(tmp_path / "out").values()}
    assert kept == {"good.mp4", "odd.mp4", "uneven.mp4"}
    written = (tmp_path / "out" / "report.md").read_text()
    assert all(f"### {reason}: 1" in written for reason in named)
    assert len((tmp_path / "out" / "problems.jsonl").read_text().splitlines()) == 6
    assert (tmp_path / "out" / "histograms.png").read_bytes().startswith(b"\x89PNG")
    assert not report.failures


def test_a_second_run_does_nothing_and_new_videos_are_added(add_video, tmp_path):
    for name in "abc":
        add_video(name)
    build(tmp_path / "videos", tmp_path / "out", PARAMS)
    before = {step: times_of(tmp_path / "out", step) for step in ("clips", "motion", "shards")}
    build(tmp_path / "videos", tmp_path / "out", PARAMS)
    assert {step: times_of(tmp_path / "out", step) for step in before} == before
    add_video("aa")
    assert build(tmp_path / "videos", tmp_path / "out", PARAMS).kept == 4
    after = {step: times_of(tmp_path / "out", step) for step in before}
    for step, times in before.items():
        assert times.items() <= after[step].items() and len(after[step]) == len(times) + 1


def test_what_killed_workers_left_half_written_is_removed(add_video, tmp_path):
    add_video("a")
    left = tmp_path / "out" / "clips" / ".part-000000-0badcafe.tar"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    build(tmp_path / "videos", tmp_path / "out", PARAMS)
    assert not left.exists()


def test_other_thresholds_need_neither_decoding_nor_flow(add_video, tmp_path):
    add_video("a")
    assert build(tmp_path / "videos", tmp_path / "out", PARAMS).kept == 1
    before = {step: times_of(tmp_path / "out", step) for step in ("clips", "motion")}
    strict = replace(PARAMS, thresholds=Thresholds(min_magnitude=20))
    report = build(tmp_path / "videos", tmp_path / "out", strict)
    assert report.kept == 0 and report.content["rejected"] == {"too little motion": 1}
    assert samples_of(tmp_path / "out") == {}
    (tmp_path / "videos" / "a.mp4").write_bytes((tmp_path / "videos" / "a.mp4").read_bytes())  # the same, but touched
    assert {step: times_of(tmp_path / "out", step) for step in before} == before


def test_another_rule_or_caption_repacks_and_another_floor_measures_again(add_video, tmp_path):
    add_video("a")
    folder = tmp_path / "out"
    build(tmp_path / "videos", folder, PARAMS)
    clips, motion = times_of(folder, "clips"), times_of(folder, "motion")
    build(tmp_path / "videos", folder, replace(PARAMS, motion=MotionParams(mask_rule="union")))
    assert [json.loads(sample["json"])["mask_rule"] for sample in samples_of(folder).values()] == ["union"]
    (tmp_path / "videos" / "a.txt").write_text("The box falls")
    build(tmp_path / "videos", folder, PARAMS)
    assert [sample["motion.txt"] for sample in samples_of(folder).values()] == [b"fall"]
    assert (times_of(folder, "clips"), times_of(folder, "motion")) == (clips, motion)
    build(tmp_path / "videos", folder, replace(PARAMS, motion=MotionParams(floor=0.5)))
    assert times_of(folder, "clips") == clips and times_of(folder, "motion") != motion


def test_a_video_that_was_replaced_is_taken_again(add_video, tmp_path, sliding_video):
    path = add_video("a")
    path.write_bytes(b"broken")
    assert build(tmp_path / "videos", tmp_path / "out", PARAMS).kept == 0
    path.write_bytes(sliding_video.read_bytes())
    report = build(tmp_path / "videos", tmp_path / "out", PARAMS)
    assert report.kept == 1 and not report.problems


def test_other_frames_are_refused_for_a_folder_that_holds_some(add_video, tmp_path):
    add_video("a")
    build(tmp_path / "videos", tmp_path / "out", PARAMS)
    with pytest.raises(ValueError, match="holds clips with stride 4, not 8"):
        build(tmp_path / "videos", tmp_path / "out", replace(PARAMS, clips=ClipParams(size=SIDE, stride=8)))


def test_a_video_that_ends_its_worker_each_time_is_left_out(add_video, tmp_path, monkeypatch):
    add_video("good"), add_video("killer")
    folder = tmp_path / "out"
    build(tmp_path / "videos", folder, PARAMS)
    # What a worker that was killed leaves behind: attempts of this run, and no manifest.
    Store(folder).manifest("clips", 1).unlink()
    monkeypatch.setattr("followclick_core.dataset.build.secrets.token_hex", lambda count: "cafe")
    (folder / "clips" / "part-000001.attempts").write_text("cafe:0:17\n" * CRASHES)
    (folder / "clips" / "part-000000.attempts").write_text("earlier:0:17\n" * 9)
    Store(folder).manifest("clips", 0).unlink()
    report = build(tmp_path / "videos", folder, PARAMS)
    assert report.problems == {"crashes the decoder": 1} and report.kept == 1
    assert not list(folder.glob("clips/*.attempts"))


def test_phrases_come_from_the_source_the_endpoint_or_the_rules_and_say_so(add_video, tmp_path):
    rows = [
        {"path": str(add_video("a")), "caption": "a dog runs up", "motion": "run fast"},
        {"path": str(add_video("b")), "caption": "a cat walks down"},
        {"path": str(add_video("c")), "caption": "schema horse gallops"},
        {"path": str(add_video("d")), "caption": "schema house"},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    server = FakeEndpoint()
    captions = CaptionParams(server.url, "fake", concurrency=2, attempts=2)
    try:
        report = build(tmp_path / "list.jsonl", tmp_path / "out", replace(PARAMS, captions=captions))
    finally:
        server.close()
    records = [json.loads(sample["json"]) for sample in samples_of(tmp_path / "out").values()]
    assert [(record["motion_prompt"], record["motion_source"]) for record in records] == [
        ("run fast", "source"),
        ("move down", "endpoint"),
        ("gallop", "rules"),
        ("", "rules"),
    ]
    assert "a dog runs up" not in server.counts  # it had its phrase already
    assert report.content["motion_phrases"] == {"source": 1, "endpoint": 1, "rules": 1, "none found": 1}
    assert report.content["captions"]["quarantined"] == 2
    assert "in quarantine: schema house (wrong schema" in (tmp_path / "out" / "report.md").read_text()
    assert report.content["clips"]["in shards with a motion phrase"] == 3


def test_relative_paths_are_those_of_the_same_files(add_video, tmp_path, monkeypatch):
    add_video("a")
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": "a.mp4", "caption": "A square slides down"}))
    build(tmp_path / "list.jsonl", tmp_path / "out", PARAMS, tmp_path / "videos")
    before = {step: times_of(tmp_path / "out", step) for step in ("clips", "motion", "shards")}
    monkeypatch.chdir(tmp_path)
    build("list.jsonl", "out", PARAMS, "videos")
    assert {step: times_of(tmp_path / "out", step) for step in before} == before
    assert read_part(Store(tmp_path / "out"), 0)[0].path == str(tmp_path / "videos" / "a.mp4")


def test_weights_reach_workers_by_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = _with_absolute_paths(BuildParams(motion=MotionParams(raft="raft.pth"), latents="weights"))
    assert (params.motion.raft, params.latents) == (str(tmp_path / "raft.pth"), str(tmp_path / "weights"))
    assert _with_absolute_paths(BuildParams(latents="demo")) == BuildParams(latents="demo")


def test_a_failure_of_the_machine_is_made_up_for_when_asked(add_video, tmp_path, monkeypatch):
    add_video("a"), add_video("b")
    folder = tmp_path / "out"
    opened = clips.open_video

    def fail(video, decoder):
        if video.name == "b.mp4":
            raise VideoError("file is missing", "Stale file handle")
        return opened(video, decoder)

    monkeypatch.setattr(clips, "open_video", fail)
    assert build(tmp_path / "videos", folder, PARAMS).problems == {"file is missing": 1}
    monkeypatch.setattr(clips, "open_video", opened)
    before = times_of(folder, "clips")
    assert build(tmp_path / "videos", folder, PARAMS).kept == 1
    report = build(tmp_path / "videos", folder, PARAMS, retry_failed=True)
    assert report.kept == 2 and not report.problems and len(samples_of(folder)) == 2
    after = times_of(folder, "clips")
    assert [name for name in after if after[name] != before[name]] == ["part-000001.tar"]


def test_a_phrase_of_blanks_is_counted_as_none_also_where_an_earlier_build_kept_it(add_video, tmp_path):
    add_video("a", "A square slides down")
    folder = tmp_path / "out"
    build(tmp_path / "videos", folder, PARAMS)
    store = Store(folder)
    labels = store.read("labels", 0)
    [record] = labels["kept"].values()
    record["motion_prompt"] = " \n"
    store.write("labels", 0, labels | {"digest": "earlier"})
    PackStep(str(folder), "followed", None, "", "cpu").run(0)
    assert store.read("shards", 0)["with_motion_prompt"] == 0
    assert [sample["motion.txt"] for sample in samples_of(folder).values()] == [b""]


def test_a_dead_endpoint_costs_its_phrases_and_the_next_run_gets_them(add_video, tmp_path):
    add_video("a", "a dog runs up")
    folder = tmp_path / "out"
    dead = CaptionParams("http://127.0.0.1:1/v1", "fake", concurrency=1, retries=0)
    report = build(tmp_path / "videos", folder, replace(PARAMS, captions=dead))
    assert not report.failures and report.content["captions"]["failed"] == {"no connection": 1}
    assert "Asking was stopped by the endpoint (no connection)" in (folder / "report.md").read_text()
    [sample] = samples_of(folder).values()
    assert json.loads(sample["json"])["motion_source"] == "rules" and sample["motion.txt"] == b"run up"
    server = FakeEndpoint()
    try:
        alive = CaptionParams(server.url, "fake", concurrency=1)
        build(tmp_path / "videos", folder, replace(PARAMS, captions=alive))
    finally:
        server.close()
    [sample] = samples_of(folder).values()
    assert json.loads(sample["json"])["motion_source"] == "endpoint" and sample["motion.txt"] == b"move up"


def test_rejected_clips_are_not_paid_for(add_video, tmp_path):
    add_video("still", "a dog runs", video=write_video(tmp_path / "t.mp4", np.repeat(scene(1), 70, axis=0)))
    server = FakeEndpoint()
    try:
        build(tmp_path / "videos", tmp_path / "out", replace(PARAMS, captions=CaptionParams(server.url, "fake")))
    finally:
        server.close()
    assert not server.requests


def test_a_full_disk_is_named_and_the_same_command_goes_on_once_there_is_room(add_video, tmp_path):
    for name in "abc":
        add_video(name)
    folder = tmp_path / "out"
    # A limit on the size of files stands for the full disk: writing ends in the midst of a tar, with an OSError.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, hard))
    try:
        report = build(tmp_path / "videos", folder, PARAMS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [problem.name for problem in report.failures] == [f"clips, part 00000{number}" for number in range(3)]
    assert all("cannot be written (File too large)" in problem.detail for problem in report.failures)
    assert "### not written: 3" in (folder / "report.md").read_text()
    assert not list(folder.glob("*/*.tar")) and not list(folder.glob("*/.*"))
    report = build(tmp_path / "videos", folder, PARAMS)
    assert report.kept == 3 and not report.failures


def test_latents_and_text_embeddings_are_stored_when_asked_for(add_video, tmp_path):
    add_video("a", "A square slides down")
    params = BuildParams(clips=ClipParams(size=64, num_frames=4), latents="demo")
    build(tmp_path / "videos", tmp_path / "out", params)
    samples = samples_of(tmp_path / "out")
    assert samples
    for sample in samples.values():
        arrays = {name: np.load(io.BytesIO(sample[name])) for name in ("latents.npy", "caption.npy", "motion.npy")}
        assert arrays["latents.npy"].shape == (4, 4, 8, 8) and arrays["latents.npy"].dtype == np.float16
        assert arrays["caption.npy"].shape == arrays["motion.npy"].shape and arrays["caption.npy"].shape[0] == 77
        assert not np.array_equal(arrays["caption.npy"], arrays["motion.npy"])


def test_the_command_says_what_it_did_and_answers_bad_input_by_one_sentence(add_video, tmp_path, capsys):
    add_video("a")
    arguments = ["build-dataset", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), "--size", "160"]
    assert main(arguments) == 0
    assert "1 clips in shards, 1 with a motion phrase, of 1 taken from 1 videos." in capsys.readouterr().out
    for extra, message in (
        (["--stride", "8"], "holds clips with stride 4, not 8"),
        (["--size", "100"], "multiple of 8"),
        (["--mask-rule", "all"], "no mask rule 'all'"),
        (["--endpoint", "http://x"], "give both --endpoint and --caption-model"),
        (["--raft", "gone.pth"], "gone.pth"),
        (["--latents", "gone"], "There is no autoencoder.safetensors in gone"),
        (["--workers", "0"], "Workers are 1 or more"),
        (["--device", "toaster"], "on cpu or cuda, not on 'toaster'"),
        (["--decoder", "gif"], "no decoder 'gif'; choose one of pyav, torchcodec"),
        (["--frames", "x"], "'x' is no whole number"),
    ):
        assert main([*arguments, *extra]) == 2, extra
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error
    assert main(["build-dataset", str(tmp_path / "gone"), "--out", str(tmp_path / "o")]) == 2
    assert not (tmp_path / "o").exists()


def test_a_missing_package_is_named_with_the_way_to_get_it(add_video, tmp_path, capsys, monkeypatch):
    add_video("a")
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else found(name))
    assert main(["build-dataset", str(tmp_path / "videos"), "--out", str(tmp_path / "out")]) == 2
    assert "ray is not installed; pip install 'followclick[dataset]'" in capsys.readouterr().err


def test_names_that_are_no_utf8_are_no_obstacle(sliding_video, tmp_path):
    folder = os.fsencode(tmp_path / "videos")
    os.mkdir(folder)
    for suffix, content in ((b".mp4", sliding_video.read_bytes()), (b".txt", b"A square slides down")):
        with open(folder + b"/caf\xe9" + suffix, "wb") as file:
            file.write(content)
    (tmp_path / "videos" / "b\udcff.mp4").write_bytes(b"broken")
    (tmp_path / "videos" / "b\udcff.txt").write_text("A dog runs")
    report = build(tmp_path / "videos", tmp_path / "out", PARAMS)
    assert report.kept == 1 and report.content["problems"]["unreadable"]["first"][0]["name"] == "b\\xff.mp4"
    [sample] = samples_of(tmp_path / "out").values()
    assert json.loads(sample["json"])["video"] == "caf\\xe9.mp4"


def test_a_video_that_is_listed_twice_is_taken_once(add_video, tmp_path):
    row = json.dumps({"path": str(add_video("a")), "caption": "a dog runs"})
    (tmp_path / "list.jsonl").write_text(f"{row}\n{row}\n")
    report = build(tmp_path / "list.jsonl", tmp_path / "out", PARAMS)
    assert report.kept == 1 and report.problems == {"listed twice": 1}


def test_an_empty_source_gives_a_report_and_no_shards(tmp_path):
    (tmp_path / "videos").mkdir()
    report = build(tmp_path / "videos", tmp_path / "out", PARAMS)
    assert report.kept == 0 and not report.failures and (tmp_path / "out" / "report.md").exists()


def test_flow_by_raft_is_measured_from_a_weights_file_and_says_which(add_video, tmp_path):
    import torch
    from torchvision.models.optical_flow import raft_small

    add_video("a")
    torch.manual_seed(0)
    torch.save(raft_small(weights=None, progress=False).state_dict(), tmp_path / "raft.pth")
    params = BuildParams(
        clips=ClipParams(size=128, num_frames=3, clips_per_video=1),
        motion=MotionParams(raft=str(tmp_path / "raft.pth")),
        # Random weights give random flow; the sample is to be seen all the same.
        thresholds=Thresholds(0, 1, 1e9, 1e9, 0, 0, 1e9, 0),
    )
    build(tmp_path / "videos", tmp_path / "out", params)
    [sample] = samples_of(tmp_path / "out").values()
    assert json.loads(sample["json"])["measured_by"]["estimator"].startswith("raft ")
    assert np.load(io.BytesIO(sample["flow.npy"])).shape == (2, 16, 16, 2)
    before = times_of(tmp_path / "out", "clips")
    build(tmp_path / "videos", tmp_path / "out", replace(params, motion=MotionParams()))
    [sample] = samples_of(tmp_path / "out").values()
    assert json.loads(sample["json"])["measured_by"]["estimator"] == "dis"
    assert times_of(tmp_path / "out", "clips") == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB, and a function that makes room on it; skips where one cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs rights that this process lacks")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True)
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_really_full_ends_the_command_by_one_sentence(add_video, small_disk, tmp_path, capsys):
    folder, make_room = small_disk
    for name in "abc":
        add_video(name)
    command = ["build-dataset", str(tmp_path / "videos"), "--out", str(folder / "out"), "--size", str(SIDE), "--quiet"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left on device" in error
    assert "Remove the cause and run the same command again." in error
    assert not list(folder.glob("out/*/.*"))
    make_room()
    assert main(command) == 0
    assert len(samples_of(folder / "out")) == 3


def test_torchcodec_must_be_there_if_asked_for_and_is_not_used_otherwise(add_video, tmp_path, monkeypatch):
    add_video("a")
    asked = replace(PARAMS, clips=replace(PARAMS.clips, decoder="torchcodec"))
    monkeypatch.setattr("followclick_core.dataset.build.torchcodec_is_there", lambda: False)
    with pytest.raises(ValueError, match="torchcodec cannot be imported"):
        build(tmp_path / "videos", tmp_path / "out", asked)
    build(tmp_path / "videos", tmp_path / "out", PARAMS)
    [sample] = samples_of(tmp_path / "out").values()
    assert json.loads(sample["json"])["source"]["decoder"] == "pyav"
