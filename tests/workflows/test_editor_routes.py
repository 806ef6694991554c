"""The click editor's routes on a real server: the run's masks, one at a time, and nothing for hostile requests."""

import contextlib
import io
import json
import os
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

TWO = [{"x": 0.5, "y": 0.5, "label": 1}, {"x": 0.1, "y": 0.9, "label": 1, "object": 2}]
SEGMENT = "/followclick/segment"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        assert set(json.loads(self.body)) == {"error"}
        return json.loads(self.body)["error"]

    @property
    def objects(self) -> list[dict]:
        return json.loads(self.headers["X-FollowClick-Objects"])

    @property
    def planes(self) -> np.ndarray:
        packed = np.asarray(Image.open(io.BytesIO(self.body)))
        return np.stack([packed >> plane & 1 for plane in range(len(self.objects))])


def send(server, body: bytes, headers: dict[str, str] | None = None, path: str = SEGMENT) -> Answer:
    request = urllib.request.Request(
        server.url + path, body, {"Content-Type": "application/json"} if headers is None else headers
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Answer(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, dict(error.headers), error.read())


def content(clicks=TWO, image: str | dict = "photo.png", editor: str = "editor-1", **more) -> dict:
    named = {"filename": image, "subfolder": "", "type": "input"} if isinstance(image, str) else image
    return {"image": named, "clicks": {"image_size": [4, 3], "clicks": clicks}, "editor": editor} | more


def segment(server, *args, **more) -> Answer:
    return send(server, json.dumps(content(*args, **more)).encode())


@pytest.fixture(scope="module")
def photo(server) -> np.ndarray:
    """A photo in the input folder, turned by EXIF as phones do, and the same painted over in the MaskEditor."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(server.folder / "input" / "turned.jpg", exif=exif, quality=95)
    picture.save(server.folder / "input" / "photo.png")
    painted = picture.convert("RGBA")
    alpha = np.full((240, 320), 255, np.uint8)
    alpha[60:180, 80:200] = 0
    painted.putalpha(Image.fromarray(alpha))
    (server.folder / "input" / "clipspace").mkdir()
    painted.save(server.folder / "input" / "clipspace" / "painted.png")
    return np.asarray(picture)


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
def test_the_live_mask_is_the_runs_to_the_pixel(server, photo, image, grow, drawn):
    server.post("/free", {"unload_models": True, "free_memory": True})  # so that neither uses the other's embedding
    subfolder, _, filename = image.rpartition("/")
    named = {"filename": filename, "subfolder": subfolder, "type": "input"}
    masks, shown = run_masks(server, image, TWO, grow, drawn)
    server.post("/free", {"unload_models": True, "free_memory": True})
    more = {"drawn_mask": named} if drawn else {}
    live = segment(server, image=named, grow=grow, **more)
    assert live.status == 200 and live.headers["Content-Type"] == "image/png"
    assert [each["object"] for each in live.objects] == [1, 2]
    np.testing.assert_array_equal(live.planes, masks)
    assert 0.001 < masks.mean() < 0.999
    # The frame that the editor shows after the run is the same picture.
    (frame,) = shown["followclick_frame"]
    again = segment(server, image=frame, grow=grow, **more)
    assert again.body == live.body


def test_the_routes_answer_under_api_too(server, photo):
    body = json.dumps(content()).encode()
    assert send(server, body, path=f"/api{SEGMENT}").body == send(server, body).body
    verbs = json.loads(server.get("/api/followclick/verbs"))["verbs"]
    assert "run" in verbs and json.loads(server.get("/followclick/verbs"))["verbs"] == verbs


def test_a_picture_is_made_ready_without_clicks(server, photo):
    answer = segment(server, [])
    assert answer.status == 204 and answer.body == b""


def test_the_examples_of_the_pack_can_be_clicked(server):
    answer = segment(server, image={"example": "rocket"}, size=[64, 43])
    assert answer.status == 200 and answer.planes.shape == (2, 43, 64)
    assert segment(server, image={"example": "../rocket"}).status == 404


# --- hostile requests ---


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def secrets(server, photo):
    """Pictures beside the host's folders, and links to them from within."""
    for place in (server.folder, server.folder / "user"):
        Image.fromarray(photo).save(place / "secret.png")
    inside = server.folder / "input"
    (inside / "link.png").symlink_to(server.folder / "secret.png")
    (inside / "linked").symlink_to(server.folder / "user")
    (inside / "huge.png").write_bytes(huge_png(20_000, 10_000))
    (inside / "wide.png").write_bytes(huge_png(16_000, 12_500))
    (inside / "text.png").write_text("no picture")
    os.mkfifo(inside / "pipe.png")
    return server.folder


def named(filename="photo.png", subfolder="", folder_type="input") -> dict:
    return {"filename": filename, "subfolder": subfolder, "type": folder_type}


PICTURES = {
    "dots in the name": (named("../secret.png"), 403),
    "dots in the subfolder": (named("secret.png", ".."), 403),
    "dots after a folder": (named("secret.png", "clipspace/../../user"), 403),
    "backslashes": (named("..\\secret.png"), 403),
    "a link to a file": (named("link.png"), 403),
    "a link to a folder": (named("secret.png", "linked"), 403),
    "a name below": (named("clipspace/painted.png"), 403),
    "an absolute name": (named("/etc/hostname"), 403),
    "an absolute subfolder": (named("hostname", "/etc"), 403),
    "a folder of models": (named("photo.png", "", "models"), 400),
    "an annotated name": (named("photo.png [output]"), 404),
    "a zero byte": (named("photo.png\0"), 400),
    "half a surrogate pair": (named("\ud800.png"), 400),
    "a long name": (named("x" * 1000), 404),
    "a pipe": (named("pipe.png"), 404),
    "a folder": (named("clipspace"), 404),
    "nothing": (named(""), 400),
    "text": (named("text.png"), 400),
    "200 megapixels": (named("huge.png"), 400),
    "200 megapixels, another shape": (named("wide.png"), 400),
    "an address": ({"url": "http://127.0.0.1/x.png"}, 400),
}


@pytest.mark.parametrize("what", PICTURES)
def test_no_name_leads_out_of_the_hosts_folders(server, secrets, what):
    picture, status = PICTURES[what]
    for sent in ({"image": picture}, {"drawn_mask": picture}):
        answer = segment(server, **sent)
        assert answer.status == status, (what, answer.body)
        assert str(secrets) not in answer.error
    assert segment(server).status == 200


def with_click(**values) -> bytes:
    return json.dumps(content([{"x": 0.5, "y": 0.5, "label": 1} | values])).encode()


BODIES = {
    "NaN": with_click(x=float("nan")),
    "Infinity": with_click(y=float("inf")),
    "a number that becomes infinite": with_click(x="BIG").replace(b'"BIG"', b"1e999"),
    "outside": with_click(x=1.01),
    "below": with_click(y=-0.01),
    "text for a number": with_click(x="0.5"),
    "an unknown label": with_click(label=2),
    "object 0": with_click(object=0),
    "an object that is no number": with_click(object={"a": []}),
    "a candidate too many": with_click(candidate=3),
    "a candidate of 4000 digits": with_click(candidate=10**4000),
    "unknown keys": with_click(path="/etc/passwd"),
    "65 clicks": json.dumps(content(TWO * 33)).encode(),
    "9 objects": json.dumps(content([{"x": 0.5, "y": 0.5, "label": 1, "object": n} for n in range(1, 10)])).encode(),
    "only excluding clicks": with_click(label=0),
    "no clicks": b'{"image": {"example": "rocket"}, "editor": "a"}',
    "deep brackets": b'{"a":' + b"[" * 60_000,
    "no JSON": b"clicks",
    "no object": b"[1, 2]",
    "empty": b"",
    "not UTF-8": b"\xff\xfe{}",
    "a model's path": json.dumps(content(segmenter="../../etc/passwd")).encode(),
    "a segmenter that is not there": json.dumps(content(segmenter="absent.pth")).encode(),
    "a size of gigabytes": json.dumps(content(size=[100_000, 100_000])).encode(),
    "a huge grow": json.dumps(content(grow=10**9)).encode(),
    "an editor of another kind": json.dumps(content(editor={"$ne": ""})).encode(),
}


@pytest.mark.parametrize("what", BODIES)
def test_what_is_out_of_bounds_is_refused_in_a_sentence(server, photo, what):
    answer = send(server, BODIES[what])
    assert answer.status == 400, answer.body
    assert 10 < len(answer.error) < 300 and "\n" not in answer.error


def test_a_million_points_are_refused_before_they_are_read(server, photo):
    body = json.dumps(content([{"x": 0.5, "y": 0.5, "label": 1}])).encode()
    point = b'{"x": 0.5, "y": 0.5, "label": 1}'
    answer = send(server, body.replace(point, b", ".join([point] * 10**6)))
    assert answer.status == 413 and "at most" in answer.error
    assert segment(server).status == 200


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json5",
        "application/problem+json",
        "",
    ],
)
def test_only_json_declared_as_such_is_taken(server, photo, kind):
    """A page of another origin may send the others to this server without being asked for permission."""
    answer = send(server, json.dumps(content()).encode(), {"Content-Type": kind, "Origin": "null"})
    assert answer.status == 415 and "application/json" in answer.error


def test_a_character_set_may_be_declared(server, photo):
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        assert send(server, json.dumps(content()).encode(), {"Content-Type": kind}).status == 200


def test_a_form_of_another_origin_gets_nothing(server, photo):
    form = b"image=photo.png&clicks=%5B%5D"
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert send(server, form, kind | {"Origin": "http://evil.example"}).status == 403  # the host itself
    assert send(server, form, kind | {"Origin": "null"}).status == 415
    preflight = urllib.request.Request(
        server.url + SEGMENT, method="OPTIONS", headers={"Origin": "null", "Access-Control-Request-Method": "POST"}
    )
    with urllib.request.urlopen(preflight) as answer:
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_compressed_bodies_are_refused_unread(server, photo):
    answer = send(
        server, zlib.compress(bytes(10**8)), {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    )
    assert answer.status == 415


def test_reading_has_no_side_effects_and_other_methods_are_refused(server):
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(server.url + SEGMENT, method=method))
        assert refused.value.code in (404, 405)


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 50\r\n\r\n{",  # and then nothing more
        b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}",
    ],
)
def test_broken_transfers_leave_the_server_alive(server, photo, rest):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        start = f"POST {SEGMENT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n".encode()
        connection.sendall(start + rest)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            assert b" 5" not in connection.recv(4096).split(b"\r\n")[0]
    assert segment(server).status == 200


def test_nothing_of_all_this_was_an_error_of_the_server(server):
    """After the hostile ones: no traceback that went through the pack stands in the log, and it still answers."""
    assert "followclick-under-test/nodes/" not in (server.folder / "log.txt").read_text()
    assert segment(server).status == 200


# --- turns, memory, prompts ---


def big_photo(server, seed: int) -> str:
    """A new picture, slow enough to embed that other requests come meanwhile."""
    name = f"big-{seed}.png"
    small = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(small).resize((8000, 6000), Image.Resampling.BICUBIC).save(
        server.folder / "input" / name, compress_level=1
    )
    return name


def test_the_newest_request_of_an_editor_wins(server, photo):
    name = big_photo(server, 1)
    with ThreadPoolExecutor(8) as pool:
        slow = pool.submit(segment, server, image=name, editor="slow")
        time.sleep(0.3)
        assert not slow.done()
        waiting = []
        for number in range(5):
            clicks = [{"x": 0.1 + 0.1 * number, "y": 0.5, "label": 1}]
            waiting.append(pool.submit(segment, server, clicks, editor="dragging"))
            time.sleep(0.05)
        statuses = [each.result().status for each in waiting]
        assert slow.result().status == 200
    assert statuses == [409, 409, 409, 409, 200]
    assert "newer request" in waiting[0].result().error
    assert waiting[-1].result().body == segment(server, [{"x": 0.5, "y": 0.5, "label": 1}]).body


def test_a_request_that_embeds_gives_way_and_its_embedding_stays(server, photo):
    name = big_photo(server, 2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(segment, server, image=name, editor="one")
        time.sleep(0.3)
        second = pool.submit(segment, server, TWO[:1], image=name, editor="one")
        assert (first.result().status, second.result().status) == (409, 200)


def test_the_server_answers_others_while_a_mask_is_made(server, photo):
    name = big_photo(server, 3)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(segment, server, image=name, editor="slow")
        waits = []
        while not slow.done():
            start = time.monotonic()
            server.get("/queue")
            waits.append(time.monotonic() - start)
        assert slow.result().status == 200
    assert len(waits) > 3 and sorted(waits)[len(waits) // 2] < 0.2


def test_too_many_editors_are_told_to_come_back(server, photo):
    name = big_photo(server, 4)
    with ThreadPoolExecutor(32) as pool:
        slow = pool.submit(segment, server, image=name, editor="slow")
        time.sleep(0.3)
        others = [pool.submit(segment, server, editor=f"editor-{number}") for number in range(24)]
        answers = [each.result() for each in others]
        assert slow.result().status == 200
    crowded = [each for each in answers if each.status == 503]
    assert {each.status for each in answers} == {200, 503} and len(crowded) == 24 - 16
    assert all(each.headers["Retry-After"] == "1" and "try again" in each.error for each in crowded)


def long_prompt(server, graphs) -> str:
    graph = json.loads(json.dumps(graphs["click_to_animate"]))
    sampler = next(node for node in graph.values() if node["class_type"] == "KSampler")
    sampler["inputs"] |= {"steps": 1000, "seed": time.monotonic_ns() % 10**6}
    return server.queue(graph)


def running(server) -> bool:
    return bool(json.loads(server.get("/queue"))["queue_running"])


def test_on_the_cpu_masks_are_made_beside_a_prompt(server, photo, graphs):
    expected = segment(server)
    before = (server.folder / "log.txt").stat().st_size
    prompt_id = long_prompt(server, graphs)
    try:
        deadline = time.monotonic() + 120
        while "/1000 [" not in (server.folder / "log.txt").read_text()[before:]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        answer = segment(server)
        assert running(server), "the prompt ended before the mask was made"
        assert answer.status == 200 and answer.body == expected.body
    finally:
        server.post("/interrupt", {})
    with pytest.raises(RuntimeError, match="interrupted"):
        server.wait(prompt_id)


def test_free_lets_go_of_what_is_kept(server, photo):
    """A picture that is remembered costs no decoding; after /free it is embedded anew, to the same mask."""
    name = big_photo(server, 5)

    def seconds() -> float:
        start = time.monotonic()
        answers.append(segment(server, size=[80, 60], image=name))
        return time.monotonic() - start

    answers: list[Answer] = []
    first, remembered = seconds(), min(seconds() for _ in range(3))
    server.post("/free", {"unload_models": True})
    time.sleep(2)
    again = seconds()
    assert remembered < 0.5 * first and again > 2 * remembered
    assert len({answer.body for answer in answers}) == 1 and answers[0].status == 200


def test_many_editors_at_once_all_get_their_own_mask(server, photo):
    clicks = [[{"x": 0.05 + 0.1 * number, "y": 0.5, "label": 1}] for number in range(8)]
    expected = [segment(server, each).body for each in clicks]
    barrier = threading.Barrier(8)

    def ask(number: int) -> bytes:
        barrier.wait()
        return segment(server, clicks[number], editor=f"editor-{number}").body

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == expected
    assert len(set(expected)) > 4
