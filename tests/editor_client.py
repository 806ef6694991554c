"""A client for the click editor's routes.

Loaded by path from the conftest files: the tests' folder is on no import path.
"""

import io
import json
import urllib.error
import urllib.request
from dataclasses import dataclass

import numpy as np
from PIL import Image

SEGMENT = "/followclick/segment"
TWO = [{"x": 0.5, "y": 0.5, "label": 1}, {"x": 0.1, "y": 0.9, "label": 1, "object": 2}]


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


def request_body(
    clicks: list = TWO, image: str | dict = "photo.png", editor: str = "editor-1", **more: object
) -> bytes:
    """What the editor asks; `image` names a file of the input folder, or is sent as it is."""
    named = {"filename": image, "subfolder": "", "type": "input"} if isinstance(image, str) else image
    content = {"image": named, "clicks": {"image_size": [4, 3], "clicks": clicks}, "editor": editor}
    return json.dumps(content | more).encode()


@dataclass(frozen=True)
class EditorClient:
    """Sends what the click editor sends, and what it never would.

    Args:
        url: Of the server.
    """

    url: str

    def send(self, body: bytes, headers: dict[str, str] | None = None, path: str = SEGMENT) -> Answer:
        headers = {"Content-Type": "application/json"} if headers is None else headers
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=60) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, dict(error.headers), error.read())

    def segment(self, *args: object, **more: object) -> Answer:
        return self.send(request_body(*args, **more))
