"""The click editor's masks on a real server: the run's own, in turns, beside prompts, and gone with /free."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TWO = [{"x": 0.5, "y": 0.5, "label": 1}, {"x": 0.1, "y": 0.9, "label": 1, "object": 2}]


def run_masks(server, image: str, clicks: list[dict], grow: int, drawn: bool) -> tuple[np.ndarray, dict]:
    """The masks of a queued run, and the frame that Click to Mask shows."""
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": image}},
        "2": {
            "class_type": "FollowClick_ClickToMask",
            "inputs": {"image": ["1", 0], "clicks": json.dumps(clicks), "grow": grow, "feather": 0.0},
        },
        "3": {"class_type": "MaskToImage", "inputs": {"mask": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "masks"}},
    }
    if drawn:
        graph["2"]["inputs"]["drawn_mask"] = ["1", 1]
    prompt_id = server.queue(graph)
    run = server.wait(prompt_id)
    shown = json.loads(server.get(f"/history/{prompt_id}"))[prompt_id]["outputs"]["2"]
    masks = [np.asarray(Image.open(path))[..., 0] > 0 for path in run.outputs["4"]]
    return np.stack(masks), shown


@pytest.mark.parametrize("image", ["photo.png", "turned.jpg", "clipspace/painted.png"])
@pytest.mark.parametrize(("grow", "drawn"), [(0, False), (7, True), (-4, False)])
def test_the_live_mask_is_the_runs_to_the_pixel(server, editor, photo, image, grow, drawn):
    server.post("/free", {"unload_models": True, "free_memory": True})  # so that neither uses the other's embedding
    subfolder, _, filename = image.rpartition("/")
    named = {"filename": filename, "subfolder": subfolder, "type": "input"}
    masks, shown = run_masks(server, image, TWO, grow, drawn)
    server.post("/free", {"unload_models": True, "free_memory": True})
    more = {"drawn_mask": named} if drawn else {}
    live = editor.segment(image=named, grow=grow, **more)
    assert live.status == 200 and live.headers["Content-Type"] == "image/png"
    assert [each["object"] for each in live.objects] == [1, 2]
    np.testing.assert_array_equal(live.planes, masks)
    assert 0.001 < masks.mean() < 0.999
    # The frame that the editor shows after the run is the same picture.
    (frame,) = shown["followclick_frame"]
    again = editor.segment(image=frame, grow=grow, **more)
    assert again.body == live.body


def test_the_routes_answer_under_api_too(server, editor, photo):
    body = json.dumps({"image": {"example": "rocket"}, "clicks": {"clicks": TWO}, "editor": "a"}).encode()
    under_api, plain = (editor.send(body, path=f"{prefix}/followclick/segment") for prefix in ("/api", ""))
    assert under_api.status == 200 and under_api.body == plain.body
    verbs = json.loads(server.get("/api/followclick/verbs"))["verbs"]
    assert "run" in verbs and json.loads(server.get("/followclick/verbs"))["verbs"] == verbs


def test_a_picture_is_made_ready_without_clicks(editor, photo):
    answer = editor.segment([])
    assert answer.status == 204 and answer.body == b""


def test_the_examples_of_the_pack_can_be_clicked(editor):
    answer = editor.segment(image={"example": "rocket"}, size=[64, 43])
    assert answer.status == 200 and answer.planes.shape == (2, 43, 64)
    assert editor.segment(image={"example": "../rocket"}).status == 404


def big_photo(server, seed: int) -> str:
    """A new picture, slow enough to embed that other requests come meanwhile."""
    name = f"big-{seed}.png"
    small = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(small).resize((8000, 6000), Image.Resampling.BICUBIC).save(
        server.folder / "input" / name, compress_level=1
    )
    return name


def first_of(pending: Iterable[Future]) -> tuple[Future, list[Future]]:
    """The one that is answered first, and the others."""
    pending = list(pending)
    done, _ = wait(pending, timeout=60, return_when=FIRST_COMPLETED)
    first = next(each for each in pending if each in done)
    return first, [each for each in pending if each is not first]


def slow_request(server, editor, pool: ThreadPoolExecutor, seed: int) -> Future:
    """One whose turn it is for as long as a big photo takes.

    That it is there already is seen from another one of its editor, which gives way to it when it has embedded.
    """
    names = [big_photo(server, seed), big_photo(server, seed + 1)]
    refused, (slow,) = first_of([pool.submit(editor.segment, image=name, editor="slow") for name in names])
    assert refused.result().status == 409
    return slow


def test_the_newest_request_of_an_editor_wins(server, editor, photo):
    """Of two, the one that the server gets later stays; which one that is, is not for the client to say."""
    clicks = [[{"x": 0.1 + 0.1 * number, "y": 0.5, "label": 1}] for number in range(5)]
    with ThreadPoolExecutor(8) as pool:
        slow, refused = slow_request(server, editor, pool, 10), []
        asked = {pool.submit(editor.segment, clicks[0], editor="dragging"): 0}
        waiting = list(asked)
        for number in range(1, 5):
            newer = pool.submit(editor.segment, clicks[number], editor="dragging")
            asked[newer] = number
            older, waiting = first_of([*waiting, newer])
            refused.append(older.result())
        (last,) = waiting
        assert slow.result().status == last.result().status == 200
    assert [each.status for each in refused] == [409] * 4
    assert all("newer request" in each.error for each in refused)
    assert last.result().body == editor.segment(clicks[asked[last]]).body


def test_a_request_that_embeds_gives_way_and_its_embedding_stays(server, editor, photo):
    name = big_photo(server, 20)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(editor.segment, TWO[:1], image=name, editor="one") for _ in range(2)]
        assert sorted(each.result().status for each in both) == [200, 409]


def test_the_server_answers_others_while_a_mask_is_made(server, editor, photo):
    answered = 0
    with ThreadPoolExecutor(2) as pool:
        slow = slow_request(server, editor, pool, 30)
        while not slow.done():
            server.get("/queue")
            answered += not slow.done()
        assert slow.result().status == 200
    assert answered >= 3, "a server that is kept from it answers once, at the end"


def test_too_many_editors_are_told_to_come_back(server, editor, photo):
    with ThreadPoolExecutor(32) as pool:
        slow = slow_request(server, editor, pool, 40)
        others = [pool.submit(editor.segment, editor=f"editor-{number}") for number in range(24)]
        answers = [each.result() for each in others]
        assert slow.result().status == 200
    crowded = [each for each in answers if each.status == 503]
    assert {each.status for each in answers} == {200, 503} and len(crowded) <= 24 - 16
    assert all(each.headers["Retry-After"] == "1" and "try again" in each.error for each in crowded)


def long_prompt(server, graphs) -> str:
    graph = json.loads(json.dumps(graphs["click_to_animate"]))
    sampler = next(node for node in graph.values() if node["class_type"] == "KSampler")
    sampler["inputs"] |= {"steps": 1000, "seed": time.monotonic_ns() % 10**6}
    return server.queue(graph)


def running(server) -> bool:
    return bool(json.loads(server.get("/queue"))["queue_running"])


def test_on_the_cpu_masks_are_made_beside_a_prompt(server, editor, photo, graphs):
    expected = editor.segment()
    before = (server.folder / "log.txt").stat().st_size
    prompt_id = long_prompt(server, graphs)
    try:
        deadline = time.monotonic() + 120
        # Bytes, as the size is: a progress bar's blocks take several each.
        while b"/1000 [" not in (server.folder / "log.txt").read_bytes()[before:]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        answer = editor.segment()
        assert running(server), "the prompt ended before the mask was made"
        assert answer.status == 200 and answer.body == expected.body
    finally:
        server.post("/interrupt", {})
    with pytest.raises(RuntimeError, match="interrupted"):
        server.wait(prompt_id)


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Its content is gone, and nobody can tell without reading it: whoever answers from it has remembered it."""
    content, status = path.read_bytes(), path.stat()

    def write(new: bytes) -> None:
        path.write_bytes(new)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    write(bytes(len(content)))
    try:
        yield
    finally:
        write(content)


def new_photo(server, seed: int) -> str:
    name = f"new-{seed}.png"
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(server.folder / "input" / name)
    return name


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_free_lets_go_of_what_is_kept(server, editor, photo):
    """A picture that is remembered is not read; after /free it is embedded anew, to the same mask."""
    name = new_photo(server, 1)
    first = editor.segment(image=name)
    assert first.status == 200
    with unreadable(server.folder / "input" / name):
        assert editor.segment(image=name).body == first.body
        server.post("/free", {"unload_models": True})
        wait_for(lambda: editor.segment(image=name).status == 400)
    assert editor.segment(image=name).body == first.body


def test_many_editors_at_once_all_get_their_own_mask(editor, photo):
    clicks = [[{"x": 0.05 + 0.1 * number, "y": 0.5, "label": 1}] for number in range(8)]
    expected = [editor.segment(each).body for each in clicks]
    barrier = threading.Barrier(8)

    def ask(number: int) -> bytes:
        barrier.wait()
        return editor.segment(clicks[number], editor=f"editor-{number}").body

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == expected
    assert len(set(expected)) > 4


def test_freeing_again_and_again_while_masks_are_made_harms_nobody(server, editor, photo):
    """The host's worker and the route's thread both change what is loaded; were they to do so at once, the worker would
    end, and no prompt would ever run again."""
    expected, end = editor.segment().body, time.monotonic() + 8

    def free() -> None:
        while time.monotonic() < end:
            server.post("/free", {"unload_models": True})
            time.sleep(0.01)

    def ask(number: int) -> None:
        while time.monotonic() < end:
            assert editor.segment(editor=f"editor-{number}").body == expected

    def run() -> None:
        while time.monotonic() < end:
            grow = int(time.monotonic_ns() // 1000 % 60)  # so that the host does not answer from its cache
            assert run_masks(server, "photo.png", TWO, grow, False)[0].any()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(free), pool.submit(ask, 1), pool.submit(ask, 2), pool.submit(run)]:
            done.result()
    assert "Exception in thread" not in (server.folder / "log.txt").read_text()
