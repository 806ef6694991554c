"""Every kind of source, and rows that are wrong."""

import io
import json
import os
import tarfile

import pytest

from followclick_core.dataset.plan import read_part, update_plan
from followclick_core.dataset.sources import Problem, Video, read_source, shown
from followclick_core.dataset.store import Store

MOTIONS = {" ": None, "\t\n": None, "\u3000": None, " run \n fast ": "run fast"}


def entries(source, folder=None):
    found = list(read_source(source, folder))
    return [e for e in found if isinstance(e, Video)], [e for e in found if isinstance(e, Problem)]


def reasons(problems):
    return [(problem.name, problem.reason) for problem in problems]


def test_a_folder_gives_videos_with_their_sidecar_captions(add_video, tmp_path):
    add_video("b", "A  man\nwalks ")
    add_video("a", "A dog runs")
    videos, problems = entries(tmp_path / "videos")
    assert [(video.name, video.caption) for video in videos] == [("a.mp4", "A dog runs"), ("b.mp4", "A man walks")]
    assert not problems


def test_captions_that_are_missing_empty_or_not_utf8_are_named_and_their_videos_left_out(add_video, tmp_path):
    add_video("empty", " \n")
    add_video("latin", "Ein Mädchen läuft".encode("latin-1"))
    add_video("none", None)
    add_video("good", "\ufeffA girl runs")
    videos, problems = entries(tmp_path / "videos")
    assert [video.caption for video in videos] == ["A girl runs"]
    assert reasons(problems) == [
        ("empty.mp4", "no caption"),
        ("latin.mp4", "caption is not UTF-8"),
        ("none.mp4", "no caption"),
    ]


def test_webvids_csv_finds_its_videos_by_page_and_id(add_video, tmp_path):
    page = tmp_path / "all" / "000_050"
    page.mkdir(parents=True)
    add_video("x").rename(page / "17.mp4")
    (tmp_path / "webvid.csv").write_text(
        "videoid,contentUrl,duration,page_dir,name\n17,https://a/17.mp4,PT1S,000_050,A dog runs\n"
        "18,https://a/18.mp4,PT1S,000_050,Gone\n"
    )
    videos, problems = entries(tmp_path / "webvid.csv", tmp_path / "all")
    assert [(video.name, video.caption, video.path) for video in videos] == [("17", "A dog runs", str(page / "17.mp4"))]
    assert reasons(problems) == [("18", "file is missing")]


def test_the_columns_of_webvid10m_motion_become_phrase_and_figures(add_video, tmp_path):
    add_video("1"), add_video("2")
    (tmp_path / "motion.csv").write_text(
        "videoid,page_dir,name,dynamic_confidence,dynamic_wording,dynamic_source_category\n"
        '1,,"A man, walking",0.95,man walking,action\n2,,A house,0.1,none,\n'
    )
    videos, problems = entries(tmp_path / "motion.csv", tmp_path / "videos")
    assert not problems
    assert [video.motion for video in videos] == ["man walking", None]
    assert videos[0].extra == {
        "dynamic_confidence": 0.95,
        "dynamic_wording": "man walking",
        "dynamic_source_category": "action",
    }


def test_a_csv_row_that_is_not_utf8_costs_only_itself(add_video, tmp_path):
    add_video("1"), add_video("2")
    (tmp_path / "list.csv").write_bytes(b"videoid,page_dir,name\n1,,caf\xe9\n2,,A dog runs\n")
    videos, problems = entries(tmp_path / "list.csv", tmp_path / "videos")
    assert [video.name for video in videos] == ["2"]
    assert reasons(problems) == [("1", "caption is not UTF-8")]


def test_a_csv_of_other_columns_is_refused_with_the_columns_that_came(tmp_path):
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has the columns a, b; WebVid's are videoid, page_dir and name"):
        list(read_source(tmp_path / "list.csv"))


def test_a_jsonl_names_its_broken_lines(add_video, tmp_path):
    add_video("a")
    good = json.dumps({"path": "videos/a.mp4", "caption": "A dog runs", "motion": "run fast"})
    lines = [
        good.encode(),
        b"{broken",
        b'{"path": "videos/a.mp4"}',
        b'{"caption": "x"}',
        b"[1]",
        b'{"caption": "\xff"}',
    ]
    (tmp_path / "list.jsonl").write_bytes(b"\n".join(lines))
    videos, problems = entries(tmp_path / "list.jsonl")
    assert [(video.caption, video.motion) for video in videos] == [("A dog runs", "run fast")]
    assert [problem.reason for problem in problems] == [
        "list is damaged",
        "no caption",
        "list is damaged",
        "list is damaged",
        "caption is not UTF-8",
    ]


def test_an_unreadable_caption_costs_only_its_video(add_video, tmp_path):
    add_video("good"), add_video("bad", None)
    # A folder in the caption's place fails for root, too, whom permissions do not stop.
    (tmp_path / "videos" / "bad.txt").mkdir()
    videos, problems = entries(tmp_path / "videos")
    assert [video.name for video in videos] == ["good.mp4"]
    assert reasons(problems) == [("bad.mp4", "caption is unreadable")]


def test_an_unreadable_folder_is_named(add_video, tmp_path, monkeypatch):
    add_video("good")
    (tmp_path / "videos" / "closed").mkdir()
    scandir = os.scandir

    def scan(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    videos, problems = entries(tmp_path / "videos")
    assert [video.name for video in videos] == ["good.mp4"]
    assert problems == [Problem("closed", "folder is unreadable", "Permission denied")]


def test_a_name_that_no_file_can_have_costs_only_its_row(add_video, tmp_path):
    add_video("a")
    paths = ["videos/" + "x" * 300 + ".mp4", "half \ud83d.mp4", "nul \0.mp4", "videos/a.mp4"]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"path": p, "caption": "A dog runs"}) for p in paths))
    videos, problems = entries(tmp_path / "list.jsonl")
    assert [video.name for video in videos] == ["videos/a.mp4"]
    assert [problem.reason for problem in problems] == ["file is missing"] * 3
    assert "half \\ud83d.mp4" in problems[1].name


def test_brackets_without_end_cost_only_their_line(add_video, tmp_path):
    add_video("a")
    good = json.dumps({"path": "videos/a.mp4", "caption": "A dog runs"})
    (tmp_path / "list.jsonl").write_text("[" * 200_000 + "\n" + good)
    videos, problems = entries(tmp_path / "list.jsonl")
    assert len(videos) == 1 and reasons(problems) == [("list.jsonl line 1", "list is damaged")]


@pytest.mark.parametrize("confidence", ["NaN", "Infinity", "-inf", "1e999"])
def test_numbers_that_json_lacks_stay_text_and_can_be_planned(add_video, tmp_path, confidence):
    add_video("1")
    (tmp_path / "list.csv").write_text(f"videoid,name,dynamic_confidence\n1,A dog runs,{confidence}\n")
    videos, problems = entries(tmp_path / "list.csv", tmp_path / "videos")
    assert not problems and [video.extra for video in videos] == [{"dynamic_confidence": confidence}]
    store = Store(tmp_path / "out")
    store.create()
    assert update_plan(store, videos, 1) == [] and read_part(store, 0) == videos


def test_a_motion_phrase_of_blanks_is_none_and_others_lose_theirs(add_video, tmp_path):
    add_video("a")
    rows = [{"id": str(n), "path": "videos/a.mp4", "caption": "A dog", "motion": m} for n, m in enumerate(MOTIONS)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    videos, _ = entries(tmp_path / "list.jsonl")
    assert [video.motion for video in videos] == list(MOTIONS.values())


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_webdataset_shards_are_read_without_unpacking(sliding_video, tmp_path):
    content = sliding_video.read_bytes()
    members = [
        ("a.mp4", content),
        ("a.txt", b"A dog runs"),
        ("d/b.json", b'{"caption": "A cat"}'),
        ("d/b.mp4", content),
    ]
    write_tar(tmp_path / "s.tar", [*members, ("c.mp4", content)])
    videos, problems = entries(tmp_path / "s.tar")
    assert [(video.name, video.caption) for video in videos] == [("s.tar/a", "A dog runs"), ("s.tar/d/b", "A cat")]
    assert reasons(problems) == [("s.tar/c", "no caption")]
    for video in videos:
        with open(video.path, "rb") as file:
            file.seek(video.offset)
            assert file.read(video.length) == content


def test_a_shard_that_is_cut_short_names_itself(sliding_video, tmp_path):
    members = [("a.mp4", sliding_video.read_bytes()), ("a.txt", b"A dog"), ("b.mp4", b"x" * 100_000)]
    write_tar(tmp_path / "s.tar", members)
    whole = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[: len(whole) - 60_000])
    videos, problems = entries(tmp_path)
    assert [video.name for video in videos] == ["s.tar/a"]
    assert [problem.reason for problem in problems] == ["shard is damaged"]


def test_names_that_are_no_utf8_can_be_shown():
    assert shown("caf\udce9.mp4") == "caf\\xe9.mp4"
    assert shown("café.mp4") == "café.mp4"


def test_a_source_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a folder of videos"):
        read_source(tmp_path / "gone")
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(ValueError, match="clip.mp4 is no source"):
        read_source(tmp_path / "clip.mp4")
