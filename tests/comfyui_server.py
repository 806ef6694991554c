"""A real ComfyUI server on the CPU with nothing but this pack in it, and a small client for it.

Loaded by path from the conftest files: the tests' folder is on no import path.
"""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

PACK = Path(__file__).parents[1]
# Not the name of an installed copy of the pack, so that only this one is let in.
NAME = "followclick-under-test"
MODEL_FOLDERS = ("loras", "controlnet", "followclick", "animatediff_models")
START_SECONDS, RUN_SECONDS = 180, 600


class ExecutionError(RuntimeError):
    """A graph did not run through; the text is what the node shows."""


@dataclass(frozen=True)
class Run:
    """A graph that ran: what its output nodes wrote, by node id, and which nodes were not run again."""

    outputs: dict[str, list[Path]]
    cached: set[str]


@dataclass(frozen=True)
class Server:
    url: str
    folder: Path  # of what it writes

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def post(self, path: str, content: dict) -> dict:
        request = urllib.request.Request(
            self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise ExecutionError(error.read().decode()) from error

    def queue(self, graph: dict) -> str:
        return self.post("/prompt", {"prompt": graph})["prompt_id"]

    def wait(self, prompt_id: str) -> Run:
        deadline = time.monotonic() + RUN_SECONDS
        while not (entry := json.loads(self.get(f"/history/{prompt_id}")).get(prompt_id)):
            assert time.monotonic() < deadline, "the graph did not finish"
            time.sleep(0.2)
        messages = dict(entry["status"]["messages"])
        if entry["status"]["status_str"] != "success":
            failure = messages.get("execution_error", {"exception_message": "interrupted"})
            raise ExecutionError(failure["exception_message"])
        outputs = {
            node: [
                self.folder / file["type"] / file["subfolder"] / file["filename"]
                for files in out.values()
                for file in files
            ]
            for node, out in ((node, _files(out)) for node, out in entry["outputs"].items())
        }
        return Run(outputs, set(messages["execution_cached"]["nodes"]))

    def run(self, graph: dict) -> Run:
        return self.wait(self.queue(graph))


def _files(output: dict) -> dict[str, list]:
    """Of what a node reports, the files; others are flags such as "animated"."""
    return {key: [file for file in files if isinstance(file, dict)] for key, files in output.items()}


@contextmanager
def running_server(
    comfyui: Any, folder: Path, *options: str, packs: Mapping[str, Path] = MappingProxyType({})
) -> Iterator[Server]:
    """A server that writes into `folder` only and ends with the block.

    It finds models in `folder`/models as a user's server does in its own.

    Args:
        comfyui: What find_comfyui found.
        options: Further ones of ComfyUI's command line.
        packs: Packs beside this one, by name.
    """
    for name in ("packs", "input", "output", "user"):
        (folder / name).mkdir()
    packs = {NAME: PACK, **packs}
    for name, place in packs.items():
        (folder / "packs" / name).symlink_to(place)
    paths = {"custom_nodes": folder / "packs"} | {name: folder / "models" / name for name in MODEL_FOLDERS}
    for name in MODEL_FOLDERS:
        (folder / "models" / name).mkdir(parents=True)
    lines = [f"  {name}: {place}\n" for name, place in paths.items()]
    (folder / "paths.yaml").write_text("test:\n" + "".join(lines))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [comfyui.python, "main.py", "--port", str(port)]
    command += [] if os.environ.get("FOLLOWCLICK_TEST_CUDA") else ["--cpu"]
    command += ["--extra-model-paths-config", str(folder / "paths.yaml")]
    command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", *packs]
    command += ["--input-directory", str(folder / "input"), "--output-directory", str(folder / "output")]
    command += ["--user-directory", str(folder / "user")]
    # The host adds "temp" to its temporary folder by itself.
    command += ["--temp-directory", str(folder), "--database-url", f"sqlite:///{folder / 'comfyui.db'}"]
    log = (folder / "log.txt").open("w")
    # On a machine that is busy otherwise, threads that share small steps wait for each other: 4 s were seen for 0.1.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *options], cwd=comfyui.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    server = Server(f"http://127.0.0.1:{port}", folder)
    try:
        _wait_until_up(server, process, folder / "log.txt")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def _wait_until_up(server: Server, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server.get("/system_stats")
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
