"""The click editor in a real Chromium, over a real ComfyUI, in each front end that users have.

One server per front end and one page per set-up serve all tests; each test loads a graph of its own into the page.
The browser is closed after the last test here: while it is open, playwright's event loop runs in this thread, and no
test elsewhere could call asyncio.run().
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TESTS = Path(__file__).parents[1]
PACK = TESTS.parent
NEW_FRONTEND = PACK / "build" / "frontend-1.58.1" / "comfyui_frontend_package" / "static"


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMFYUI, REASON = _load("find_comfyui").find_comfyui()
_comfyui_server = _load("comfyui_server")
_editor_page = _load("browser/editor_page")
# SwiftShader draws where there is no GPU, and the sandbox wants rights that a container lacks.
FLAGS = ["--no-sandbox", "--force-color-profile=srgb", "--hide-scrollbars"]


@dataclass(frozen=True)
class Setup:
    """A front end, and whether it draws nodes as HTML."""

    name: str
    frontend: Path | None  # None: the one that this ComfyUI pins
    nodes_2: bool


SETUPS = [
    Setup("1.27.10", None, False),
    Setup("1.58.1-classic", NEW_FRONTEND, False),
    Setup("1.58.1-nodes-2", NEW_FRONTEND, True),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A front end of others' making, a browser and a server share few cores: ask up to twice more what fails there."""
    for item in items:
        if item.path.is_relative_to(TESTS / "browser"):
            item.add_marker(pytest.mark.flaky(reruns=2))


def find_chromium() -> str | None:
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _missing() -> str:
    """Why there can be no browser tests, in a line; "" if there can."""
    if COMFYUI is None:
        return REASON
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed; run make test"
    return "" if find_chromium() else "there is no Chromium on the PATH; install one or set CHROMIUM"


MISSING = _missing()


def pytest_addoption(parser):
    parser.addoption("--take-pictures", action="store_true", help="write the screenshots and the recording in docs/")


def pytest_ignore_collect(collection_path, config):
    taking = config.getoption("--take-pictures", default=False)
    return True if collection_path.name == "test_pictures.py" and not taking else None


def pytest_terminal_summary(terminalreporter):
    if MISSING:
        terminalreporter.write_line(f"SKIPPED ALL BROWSER TESTS: {MISSING}", red=True, bold=True)
    elif not NEW_FRONTEND.is_dir():
        line = f"SKIPPED THE BROWSER TESTS OF A NEW FRONT END: it is not in {NEW_FRONTEND}; run make test"
        terminalreporter.write_line(line, red=True, bold=True)


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Start a server with a front end when it is first asked for."""
    running = {}
    with ExitStack() as stack:

        def server_of(frontend: Path | None):
            if frontend not in running:
                options = [] if frontend is None else ["--front-end-root", str(frontend)]
                folder = tmp_path_factory.mktemp("comfyui-browser")
                running[frontend] = stack.enter_context(_comfyui_server.running_server(COMFYUI, folder, *options))
                _make_pictures(folder / "input")
            return running[frontend]

        yield server_of


@pytest.fixture(scope="package")
def chromium():
    if MISSING:
        pytest.skip(f"browser tests cannot run: {MISSING}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session", params=SETUPS, ids=[setup.name for setup in SETUPS])
def setup(request) -> Setup:
    if MISSING:
        pytest.skip(f"browser tests cannot run: {MISSING}")
    if request.param.frontend and not request.param.frontend.is_dir():
        pytest.skip(f"there is no front end in {request.param.frontend}; run make test")
    return request.param


@pytest.fixture(scope="session")
def server(setup, servers):
    return servers(setup.frontend)


@pytest.fixture(scope="package")
def session_page(setup, server, chromium) -> Iterator:
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    page = _editor_page.EditorPage(context.new_page(), server, setup.nodes_2)
    page.open()
    yield page
    context.close()


@pytest.fixture
def page(session_page):
    """The page of this set-up; at the end nothing of ours may have been complained about."""
    session_page.reset()
    yield session_page
    assert session_page.complaints() == []


def _make_pictures(folder: Path) -> None:
    """What the tests load: a photo, one of other proportions, one with a mask drawn in its transparency."""
    shutil.copy(PACK / "web" / "examples" / "rocket.jpg", folder / "rocket.jpg")
    photo = np.asarray(Image.open(folder / "rocket.jpg"))
    Image.fromarray(photo[:, 100:420]).save(folder / "narrow.png")
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    alpha[250:330, 40:140] = 0
    Image.fromarray(np.dstack([photo, alpha])).save(folder / "drawn.png")


@pytest.fixture(scope="session")
def kit():
    """The helpers of editor_page.py, which tests cannot import."""
    return _editor_page


@pytest.fixture
def editor(page, kit):
    """An editor (node 2) on the photo that Load Image (node 1) has."""
    page.load([kit.load_image(1, "rocket.jpg", {0: [1]}), kit.click_to_mask(2, 1)], [[1, 1, 0, 2, 0, "IMAGE"]])
    return page.editor(2).wait_for_picture()
