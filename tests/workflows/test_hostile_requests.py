"""What anybody could send to the click editor's route: refused, nothing read outside the folders, the server alive."""

import contextlib
import json
import os
import socket
import struct
import urllib.error
import urllib.request
import zlib

import pytest
from PIL import Image

SEGMENT = "/followclick/segment"


def content(clicks: list | None = None, **more: object) -> dict:
    """A good request, and what is to be wrong with it."""
    clicks = [{"x": 0.5, "y": 0.5, "label": 1}] if clicks is None else clicks
    image = {"filename": "photo.png", "subfolder": "", "type": "input"}
    return {"image": image, "clicks": {"image_size": [4, 3], "clicks": clicks}, "editor": "editor-1"} | more


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
def test_no_name_leads_out_of_the_hosts_folders(editor, secrets, what):
    picture, status = PICTURES[what]
    for sent in ({"image": picture}, {"drawn_mask": picture}):
        answer = editor.segment(**sent)
        assert answer.status == status, (what, answer.body)
        assert str(secrets) not in answer.error
    assert editor.segment().status == 200


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
    "65 clicks": json.dumps(content([{"x": 0.5, "y": 0.5, "label": 1}] * 65)).encode(),
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
def test_what_is_out_of_bounds_is_refused_in_a_sentence(editor, photo, what):
    answer = editor.send(BODIES[what])
    assert answer.status == 400, answer.body
    assert 10 < len(answer.error) < 300 and "\n" not in answer.error


def test_a_million_points_are_refused_before_they_are_read(editor, photo):
    body = json.dumps(content([{"x": 0.5, "y": 0.5, "label": 1}])).encode()
    point = b'{"x": 0.5, "y": 0.5, "label": 1}'
    answer = editor.send(body.replace(point, b", ".join([point] * 10**6)))
    assert answer.status == 413 and "at most" in answer.error
    assert editor.segment().status == 200


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
def test_only_json_declared_as_such_is_taken(server, editor, photo, kind):
    """A page of another origin may send the others to this server without being asked for permission."""
    answer = editor.send(json.dumps(content()).encode(), {"Content-Type": kind, "Origin": "null"})
    assert answer.status == 415 and "application/json" in answer.error


def test_a_character_set_may_be_declared(editor, photo):
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        assert editor.send(json.dumps(content()).encode(), {"Content-Type": kind}).status == 200


def test_a_form_of_another_origin_gets_nothing(server, editor, photo):
    form = b"image=photo.png&clicks=%5B%5D"
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert editor.send(form, kind | {"Origin": "http://evil.example"}).status == 403  # the host itself
    assert editor.send(form, kind | {"Origin": "null"}).status == 415
    preflight = urllib.request.Request(
        server.url + SEGMENT, method="OPTIONS", headers={"Origin": "null", "Access-Control-Request-Method": "POST"}
    )
    with urllib.request.urlopen(preflight) as answer:
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_compressed_bodies_are_refused_unread(editor, photo):
    answer = editor.send(
        zlib.compress(bytes(10**8)), {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    )
    assert answer.status == 415


def test_reading_has_no_side_effects_and_other_methods_are_refused(server, editor):
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(server.url + SEGMENT, method=method))
        assert refused.value.code in (404, 405)


BROKEN = [
    b"Content-Length: 50\r\n\r\n{",  # and then nothing more
    b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}",
]


def send_broken(server, rest: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        start = f"POST {SEGMENT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n".encode()
        connection.sendall(start + rest)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            assert b" 5" not in connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize("rest", BROKEN)
def test_broken_transfers_leave_the_server_alive(server, editor, photo, rest):
    send_broken(server, rest)
    assert editor.segment().status == 200


def test_nothing_of_all_this_is_an_error_of_the_server(server, editor, secrets):
    """No traceback that goes through the pack stands in the log after it, and the server still answers."""
    before = len((server.folder / "log.txt").read_text())
    for picture, _ in PICTURES.values():
        assert editor.segment(image=picture).status < 500
    for body in BODIES.values():
        assert editor.send(body).status < 500
    for rest in BROKEN:
        send_broken(server, rest)
    assert editor.segment().status == 200
    assert "followclick-under-test/nodes/" not in (server.folder / "log.txt").read_text()[before:]
