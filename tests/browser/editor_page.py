"""A page of the host's front end as a user meets it, and the click editors in it. Loaded by path from conftest.py."""

import io
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

OURS = "/extensions/followclick-under-test/"
ROUTE = "/followclick/"
START_MS, WAIT_MS = 60_000, 30_000
MARGIN = 10  # CSS pixels around the picture in the editor

# Counts what our modules leave on things that outlive a node, and the frames they ask for.
WATCH = """
(() => {
  const ours = () => new Error().stack.includes(OURS);
  const watch = (window.watched = { listeners: new Map(), frames: 0, timers: 0 });
  const { addEventListener, removeEventListener } = EventTarget.prototype;
  const outlives = (target) => !(target instanceof Node) || target === document || target === document.body;
  EventTarget.prototype.addEventListener = function (type, listener, ...rest) {
    if (outlives(this ?? window) && ours()) watch.listeners.set(listener, type);
    return addEventListener.call(this ?? window, type, listener, ...rest);
  };
  EventTarget.prototype.removeEventListener = function (type, listener, ...rest) {
    watch.listeners.delete(listener);
    return removeEventListener.call(this ?? window, type, listener, ...rest);
  };
  const request = window.requestAnimationFrame;
  window.requestAnimationFrame = (callback) => {
    if (ours()) watch.frames++;
    return request.call(window, callback);
  };
  for (const name of ['setTimeout', 'setInterval']) {
    const timer = window[name];
    window[name] = (...args) => {
      if (ours()) watch.timers++;
      return timer.apply(window, args);
    };
  }
})()
""".replace("OURS", json.dumps(OURS))


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float


@dataclass
class Masks:
    """An answer of the live mask route."""

    request: dict
    info: list[dict]
    bits: np.ndarray

    def of(self, number: int) -> np.ndarray:
        (index,) = (index for index, info in enumerate(self.info) if info["object"] == number)
        return self.bits >> index & 1 == 1


@dataclass
class EditorPage:
    page: object
    server: object
    nodes_2: bool
    messages: list = field(default_factory=list)
    requests: list = field(default_factory=list)

    def open(self) -> None:
        settings = {
            "Comfy.VueNodes.Enabled": self.nodes_2,
            "Comfy.TutorialCompleted": True,
            "Comfy.Workflow.Persist": False,
            "Comfy.Minimap.Visible": False,
            "Comfy.Graph.CanvasInfo": False,
            "Comfy.NodeBadge.NodeSourceBadgeMode": "None",  # it would show the folder's name in this test
        }
        for name, value in settings.items():
            self.server.post(f"/settings/{name}", value)
        self.page.set_default_timeout(WAIT_MS)
        self.page.add_init_script(WATCH)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.messages.append(f"error: {error.stack}"))
        self.page.on("request", lambda request: self.requests.append(request))
        self.reload()

    def reload(self) -> None:
        self.page.goto(self.server.url)
        ready = "window.app?.graph && window.app.extensions?.some(({ name }) => name === 'FollowClick.ClickEditor')"
        self.page.wait_for_function(f"{ready} && window.app.canvas?.ds", timeout=START_MS)
        # The front end loads a graph of its own at the start, or shows its templates.
        self.page.wait_for_timeout(1500)
        self.page.keyboard.press("Escape")

    def reset(self) -> None:
        """Forget the last test; each loads a graph of its own."""
        self.messages.clear()
        self.requests.clear()
        self.page.unroute_all()
        self.page.mouse.move(700, 5)
        self.run_js("() => { for (const open of document.querySelectorAll('dialog.followclick-large')) open.close(); }")

    def _heard(self, message) -> None:
        text = f"{message.type}: {message.text} {message.location.get('url', '')}"
        if message.type in ("error", "warning"):
            self.messages.append(text)

    def complaints(self) -> list[str]:
        return [message for message in self.messages if OURS in message or ROUTE in message]

    def run_js(self, script: str, argument: object = None) -> object:
        return self.page.evaluate(script, argument)

    def wait_for_js(self, script: str, argument: object = None) -> None:
        self.page.wait_for_function(script, arg=argument)

    def load(self, nodes: list[dict], links: list[list], scale: float = 1, offset: tuple = (80, 80)) -> None:
        """Load a graph and look at it so that its (0, 0) lies at `offset`, zoomed by `scale`."""
        workflow = {
            "version": 0.4,
            "last_node_id": max((node["id"] for node in nodes), default=0),
            "last_link_id": max((link[0] for link in links), default=0),
            "nodes": nodes,
            "links": links,
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": scale, "offset": list(offset)}},
        }
        self.load_workflow(workflow)
        self.look(scale, offset)

    def load_workflow(self, workflow: dict) -> None:
        # In the tab that is open: a new one for each test would fill the page. A new one would show no pictures that
        # nodes of the same numbers made in the graph before.
        self.run_js(
            """async (workflow) => {
              const tab = app.extensionManager.workflow.activeWorkflow;
              if (tab?.changeTracker) tab.changeTracker.nodeOutputs = {};
              app.nodeOutputs = {};
              await app.loadGraphData(workflow, true, true, tab);
            }""",
            workflow,
        )

    def look(self, scale: float, offset: tuple) -> None:
        self.run_js(
            """([scale, offset]) => {
              app.canvas.ds.scale = scale;
              app.canvas.ds.offset[0] = offset[0];
              app.canvas.ds.offset[1] = offset[1];
              app.canvas.setDirty(true, true);
            }""",
            [scale, list(offset)],
        )
        self.wait_for_frames(3)

    def wait_until(self, condition: Callable[[], object], what: object = "") -> None:
        """Until the condition holds; the machine may be slow and busy with other tests."""
        deadline = time.monotonic() + WAIT_MS / 1000
        while not condition():
            assert time.monotonic() < deadline, what() if callable(what) else what
            self.page.wait_for_timeout(30)

    def wait_for_frames(self, count: int = 2) -> None:
        """Until so many frames were shown: what was asked for before is drawn and laid out by then."""
        self.run_js(
            """async (count) => {
              while (count--) await new Promise((shown) => requestAnimationFrame(shown));
            }""",
            count,
        )

    def serialize(self) -> dict:
        return self.run_js("() => JSON.parse(JSON.stringify((app.rootGraph ?? app.graph).serialize()))")

    def api_form(self) -> dict:
        return self.run_js("async () => (await app.graphToPrompt()).output")

    def editor(self, node_id: int, graph: str = "(app.canvas.graph)") -> "Editor":
        return Editor(self, node_id, graph)

    def asked(self, path: str) -> list:
        return [request for request in self.requests if path in request.url]

    def asked_for_masks(self) -> list:
        """The requests of masks; one without clicks only lets the server look at the picture ahead."""
        return [request for request in self.asked("/segment") if request.post_data_json["clicks"]["clicks"]]

    def run(self) -> None:
        """Queue the graph as the Run button does, and wait for its end."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/prompt") and answer.ok) as queued:
            self.run_js("() => { app.queuePrompt(0); }")
        self.server.wait(queued.value.json()["prompt_id"])


@dataclass
class Editor:
    """One click editor, by the node it belongs to."""

    on: EditorPage
    node_id: int
    graph: str

    @property
    def node_js(self) -> str:
        return f"[...{self.graph}.nodes].find((node) => String(node.id) === '{self.node_id}')"

    @property
    def root(self):
        handle = self.on.page.evaluate_handle(
            f"() => {self.node_js}.widgets.find(({{ name }}) => name === 'clicks').element"
        )
        return handle.as_element()

    def find(self, selector: str):
        # Opened large, the body is elsewhere on the page.
        return self.root.query_selector(selector) or self.on.page.query_selector(f".followclick-large {selector}")

    def use_device_pixels(self, ratio: float) -> None:
        """Have the page shown on a screen of this density."""
        metrics = {"width": 1400, "height": 900, "mobile": False, "deviceScaleFactor": ratio}
        self.on.page.context.new_cdp_session(self.on.page).send("Emulation.setDeviceMetricsOverride", metrics)
        # A real change of screen sends an event, which this emulation does not.
        self.on.run_js("() => { app.canvas.setDirty(true, true); }")
        self.on.page.wait_for_timeout(300)

    @property
    def canvas(self):
        return self.find("canvas")

    @property
    def text(self) -> str:
        return self.on.run_js(f"() => {self.node_js}.widgets.find(({{ name }}) => name === 'clicks').value")

    @property
    def value(self) -> dict:
        value = json.loads(self.text)
        return value if isinstance(value, dict) else {"clicks": value}

    @property
    def clicks(self) -> list[dict]:
        return self.value["clicks"]

    @property
    def message(self) -> str:
        return self.find(".followclick-message").text_content()

    @property
    def hint(self) -> str:
        return self.find(".followclick-hint").text_content()

    @property
    def stage(self) -> Box:
        return Box(**self.canvas.bounding_box())

    def wait_until(self, condition: Callable[["Editor"], object], what: str = "") -> None:
        self.on.wait_until(lambda: condition(self), what or (lambda: f"{self.text} {self.message} {self.hint}"))

    def wait_for_picture(self) -> "Editor":
        self.wait_until(lambda editor: editor.canvas.get_attribute("class").find("followclick-ready") >= 0)
        self.on.wait_for_frames()
        return self

    def place(self, x: float, y: float, size: tuple[int, int] = (640, 427)) -> tuple[float, float]:
        return self.places([(x, y)], size)[0]

    def places(self, points: list[tuple[float, float]], size: tuple[int, int]) -> list[tuple[float, float]]:
        """Where on the screen points of the picture lie, which is fitted into the canvas with a margin."""
        stage, inner = self.stage, self.canvas.evaluate("(canvas) => [canvas.clientWidth, canvas.clientHeight]")
        zoom = stage.width / inner[0]
        fit = min((inner[0] - 2 * MARGIN) / size[0], (inner[1] - 2 * MARGIN) / size[1])
        left, top = (inner[0] - size[0] * fit) / 2, (inner[1] - size[1] * fit) / 2
        return [
            (stage.x + (left + x * size[0] * fit) * zoom, stage.y + (top + y * size[1] * fit) * zoom) for x, y in points
        ]

    def click(self, x: float, y: float, button: str = "left", alt: bool = False, **options) -> None:
        if alt:
            self.on.page.keyboard.down("Alt")
        self.on.page.mouse.click(*self.place(x, y, **options), button=button)
        if alt:
            self.on.page.keyboard.up("Alt")

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 8) -> None:
        mouse = self.on.page.mouse
        mouse.move(*self.place(*start))
        mouse.down()
        mouse.move(*self.place(*end), steps=steps)
        mouse.up()

    def press(self, button: str) -> None:
        """A button of the editor by the beginning of its name."""
        found = self.find(f'button[aria-label^="{button}"]')
        assert found, f"there is no button {button!r}"
        found.click()

    def key(self, *keys: str) -> None:
        for key in keys:
            self.on.page.keyboard.press(key)

    @contextmanager
    def next_masks(self):
        """The masks that what is done within the block leads to, once they are painted."""
        found: list[Masks] = []
        with self.on.page.expect_response(
            lambda answer: answer.url.endswith("/segment") and answer.status == 200
        ) as response:
            yield found
        answer = response.value
        info = json.loads(answer.headers["x-followclick-objects"])
        bits = np.asarray(Image.open(io.BytesIO(answer.body())))
        found.append(Masks(answer.request.post_data_json, info, bits))
        self.wait_until(lambda editor: not editor.find(".followclick-working"))
        self.on.wait_for_frames()

    def colour_at(self, x: float, y: float, **options) -> np.ndarray:
        """What is painted at a point of the picture, read from the canvas."""
        return self.colours_at([(x, y)], **options)[0]

    def colours_at(self, points: list[tuple[float, float]], size: tuple[int, int] = (640, 427)) -> list[np.ndarray]:
        stage, found = self.stage, self.places(points, size)
        shares = [[(x - stage.x) / stage.width, (y - stage.y) / stage.height] for x, y in found]
        pixels = self.canvas.evaluate(
            """(canvas, shares) => {
              const { width, height } = canvas;
              const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
              return shares.map(([x, y]) => {
                const start = 4 * (Math.floor(y * height) * width + Math.floor(x * width));
                return [...data.slice(start, start + 3)];
              });
            }""",
            shares,
        )
        return [np.array(pixel, dtype=float) for pixel in pixels]

    def wire(self, source: int, slot: int, name: str) -> None:
        self.on.run_js(
            f"""([source, slot, name]) => {{
              const node = {self.node_js};
              const from = [...{self.graph}.nodes].find((other) => String(other.id) === String(source));
              from.connect(slot, node, node.inputs.findIndex((input) => input.name === name));
            }}""",
            [source, slot, name],
        )


def load_image(node_id: int, file: str, links: dict[int, list[int]], at: tuple = (0, 0)) -> dict:
    """A Load Image node as a workflow file has it; `links` by output slot."""
    return {
        "id": node_id,
        "type": "LoadImage",
        "pos": list(at),
        "size": [270, 330],
        "flags": {},
        "order": node_id,
        "mode": 0,
        "inputs": [],
        "outputs": [
            {"name": name, "type": name, "links": links.get(slot, [])} for slot, name in enumerate(("IMAGE", "MASK"))
        ],
        "widgets_values": [file, "image"],
        "properties": {},
    }


def click_to_mask(node_id: int, link: int | None, value: object = "[]", at: tuple = (330, 0)) -> dict:
    """A Click to Mask node as a workflow file has it, its picture wired by `link`."""
    return {
        "id": node_id,
        "type": "FollowClick_ClickToMask",
        "pos": list(at),
        "size": [420, 560],
        "flags": {},
        "order": node_id,
        "mode": 0,
        "inputs": [{"name": "image", "type": "IMAGE", "link": link}],
        "outputs": [],
        "widgets_values": [value if isinstance(value, str) else json.dumps(value), 0, 0.0],
        "properties": {},
    }


def node(node_id: int, kind: str, inputs: dict, outputs: dict, values: list = (), mode: int = 0, at: tuple = (0, 0)):
    """Any node; inputs name: (type, link), outputs name: (type, links)."""
    return {
        "id": node_id,
        "type": kind,
        "pos": list(at),
        "size": [200, 60],
        "flags": {},
        "order": node_id,
        "mode": mode,
        "inputs": [{"name": name, "type": type_, "link": link} for name, (type_, link) in inputs.items()],
        "outputs": [{"name": name, "type": type_, "links": links} for name, (type_, links) in outputs.items()],
        "widgets_values": list(values),
        "properties": {},
    }
