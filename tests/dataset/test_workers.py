"""Ray on real clips: driver and worker killed, and the shards are those of an untroubled build."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from followclick_core.__main__ import main
from followclick_core.data.shards import ShardClips, ShardParams
from followclick_core.dataset.workers import WorkerPool, _own_signals

from .conftest import run_here

CAPTIONS = {
    "carphone_pristine": "A man talks in a driving car",
    "bikes": "People riding bikes through a city",
    "bigbuckbunny": "A big rabbit stretches in the meadow",
}
# The clips are hand-held; what a build for training would leave out as panning is kept here. Parts of one video.
FLAGS = ["--size", "96", "--clips-per-video", "2", "--max-camera", "30", "--max-border", "30", "--max-area", "1"]
FLAGS += ["--videos-per-part", "1", "--quiet"]


@pytest.fixture
def videos(tmp_path, real_clips) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for copy in range(2):
        for name, caption in CAPTIONS.items():
            (folder / f"{name}_{copy}.mp4").symlink_to(real_clips / f"{name}.mp4")
            (folder / f"{name}_{copy}.txt").write_text(caption)
    return folder


def start(videos, out, *more) -> subprocess.Popen:
    command = [sys.executable, "-m", "followclick_core", "build-dataset", videos, "--out", out, *FLAGS, *more]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process: subprocess.Popen, seconds=300):
    """The first true answer of `condition`, asked while the process runs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("It did not come to pass.")


def worker_at_work(out: Path) -> int | None:
    """The process that takes clips right now, if one does."""
    for path in out.glob("clips/*.attempts"):
        try:
            process = int(path.read_text().split()[-1].rpartition(":")[2])
            command = Path(f"/proc/{process}/cmdline").read_text()
        # Between two looks a part may be finished, a line half written, or the process gone.
        except (FileNotFoundError, IndexError, ValueError):
            continue
        if command.startswith("ray::"):
            return process
    return None


def kill_with_ray(driver: subprocess.Popen) -> None:
    """Kill a driver of a local Ray, and wait until the processes it had started have followed."""
    started = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.communicate()
    end_all(started)


def end_all(processes: list[psutil.Process]) -> None:
    """Ray's processes end with the one that started them, but in their own time."""
    for process in psutil.wait_procs(processes, timeout=30)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert not psutil.wait_procs(processes, timeout=30)[1]


@pytest.fixture
def cluster():
    """A function that starts a Ray cluster of two processors, at free ports; no process of it outlives the test."""
    from ray.cluster_utils import Cluster

    before, clusters = set(psutil.Process().children(recursive=True)), []

    def start_cluster() -> Cluster:
        arguments = {"num_cpus": 2, "object_store_memory": 100 << 20}
        arguments |= {"include_dashboard": False, "dashboard_agent_listen_port": 0}
        clusters.append(Cluster(initialize_head=True, head_node_args=arguments))
        return clusters[-1]

    yield start_cluster
    started = set(psutil.Process().children(recursive=True)) - before
    for each in clusters:
        each.shutdown()
    end_all(list(started))


def shards_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").glob("*.tar"))}


def test_killed_drivers_and_workers_lose_nothing(videos, tmp_path, monkeypatch, cluster):
    out = tmp_path / "out"
    # The driver, in the midst of a local run: what is done stays done.
    driver = start(videos, out)
    wait_for(lambda: len(list(out.glob("clips/*.json"))) >= 2, driver)
    kill_with_ray(driver)
    done = {path: path.stat().st_mtime_ns for path in out.glob("clips/*.json")}
    assert 2 <= len(done) < 6 and not (out / "report.json").exists()
    # What its worker has noted must not be taken for the next one's.
    for path in out.glob("clips/*.attempts"):
        path.unlink()
    # A worker, in the midst of a run on a cluster: Ray replaces it, and its part is begun again.
    address = cluster().address
    driver = start(videos, out, "--address", address)
    try:
        victim = wait_for(lambda: worker_at_work(out), driver)
        os.kill(victim, signal.SIGKILL)
        output, errors = driver.communicate(timeout=480)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == 0, output + errors
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())
    # The same, by one process that nothing happens to.
    monkeypatch.setattr(WorkerPool, "run", run_here)
    assert main(["build-dataset", str(videos), "--out", str(tmp_path / "calm"), *FLAGS]) == 0
    assert shards_of(out) == shards_of(tmp_path / "calm") and len(shards_of(out)) == 6
    assert_learnable(out)


def assert_learnable(out: Path) -> None:
    clips = ShardClips(out, ShardParams(size=64))
    batch = clips.take(range(len(clips)))
    # Rabbit 2, bikes 1, telephone 1, of two copies each.
    assert len(clips) == 8
    assert set(batch.motion_prompts) == {"talk", "ride", "stretch"}
    assert batch.frames.shape == (8, 3, 16, 64, 64)
    assert (batch.magnitude > 1).all() and (batch.mask.amax((1, 2, 3)) == 1).all()


def test_starting_ray_leaves_the_command_s_own_answer_to_sigterm_in_place():
    before = signal.getsignal(signal.SIGTERM)
    with _own_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as ray.init does, with a handler of its own
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("address", "message"), [("127.0.0.1:1", "cannot be reached at 127.0.0.1:1 (["), ("head", "'head' is no address")]
)
def test_a_cluster_that_is_not_there_is_answered_by_one_sentence(videos, tmp_path, capsys, address, message):
    assert main(["build-dataset", str(videos), "--out", str(tmp_path / "out"), *FLAGS, "--address", address]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
