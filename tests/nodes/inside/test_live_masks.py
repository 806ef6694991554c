"""The masks of the click editor: the run's own, from remembered pictures, in turns, and gone when the host says so."""

import asyncio
import functools
import gc
import io
import json
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import comfy.model_management
import execution
import numpy as np
import pytest
import server
import torch
from PIL import Image

import nodes

EDITOR = "0b5ff1b0-1111-2222-3333-444455556666"
TWO = [{"x": 0.2, "y": 0.2, "label": 1}, {"x": 0.8, "y": 0.8, "label": 1, "object": 4}]


@pytest.fixture
def masks(pack, demo, folders):
    """The module, with nothing remembered."""
    comfy.model_management.unload_all_models()
    pack.module("nodes.host_segmenters")._seen.clear()
    return pack.module("nodes.live_masks")


@pytest.fixture
def segmenters(pack, masks):
    return pack.module("nodes.host_segmenters")


@pytest.fixture
def photo(folders, picture):
    Image.fromarray((picture[0] * 255).round().to(torch.uint8).numpy()).save(folders / "input" / "photo.png")
    return nodes.LoadImage().load_image("photo.png")[0]


def wait_for(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def asked(pack, clicks=TWO, image="photo.png", **more):
    """The request as it comes over the wire."""
    named = {"filename": image, "subfolder": "", "type": "input"}
    content = {"image": named, "clicks": {"image_size": [128, 96], "clicks": clicks}, "editor": EDITOR} | more
    return pack.module("nodes.live_request").parse_request(json.dumps(content).encode())


def answer(masks, request):
    return asyncio.run(masks.live_masks(request))


def planes(found) -> np.ndarray:
    packed = np.asarray(Image.open(io.BytesIO(found.png)))
    return np.stack([packed >> plane & 1 for plane in range(len(found.objects))])


@pytest.mark.parametrize("grow", [0, 5, -3])
def test_live_masks_are_those_of_the_run(pack, masks, photo, grow):
    found = answer(masks, asked(pack, grow=grow))
    clicks = json.dumps({"image_size": [128, 96], "clicks": TWO})
    run = pack.run("ClickToMask", image=photo, clicks=clicks, grow=grow, feather=0.0)[0]
    assert [each["object"] for each in found.objects] == [1, 4]
    np.testing.assert_array_equal(planes(found), run)


def test_a_live_mask_refines_a_drawn_one_as_the_run_does(pack, masks, photo, folders):
    painted = Image.open(folders / "input" / "photo.png").convert("RGBA")
    alpha = np.full((96, 128), 255, np.uint8)
    alpha[20:60, 20:70], alpha[70:90, 100:120], alpha[0:9, 0:9] = 0, 127, 128
    painted.putalpha(Image.fromarray(alpha))
    painted.save(folders / "input" / "painted.png")
    drawn = {"filename": "painted.png", "subfolder": "", "type": "input"}
    clicks = [{"x": 0.3, "y": 0.4, "label": 0, "candidate": 1}, {"x": 0.9, "y": 0.1, "label": 1, "candidate": 2}]
    found = answer(masks, asked(pack, clicks, image="painted.png", drawn_mask=drawn))
    image, mask = nodes.LoadImage().load_image("painted.png")
    run = pack.run("ClickToMask", image=image, clicks=json.dumps(clicks), grow=0, feather=0.0, drawn_mask=mask)[0]
    np.testing.assert_array_equal(planes(found), run)
    assert found.objects[0]["candidate"] == 2 and found.objects[0]["candidates"] == 3
    alone = answer(masks, asked(pack, [], image="painted.png", drawn_mask=drawn))
    np.testing.assert_array_equal(planes(alone)[0], alpha < 128)
    assert alone.objects == [{"object": 1, "candidates": 0, "candidate": 0, "scores": [], "areas": []}]


def test_the_candidates_can_be_stepped_through(pack, masks, photo):
    seen = []
    for rank in range(3):
        found = answer(masks, asked(pack, [{"x": 0.5, "y": 0.5, "label": 1, "candidate": rank}]))
        (told,) = found.objects
        assert told["candidate"] == rank and told["candidates"] == len(told["scores"]) == len(told["areas"]) == 3
        assert told["scores"] == sorted(told["scores"], reverse=True)
        seen.append(planes(found)[0])
    assert not np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[1], seen[2])


def test_a_mask_can_be_painted_smaller(pack, masks, photo):
    full = planes(answer(masks, asked(pack)))
    small = planes(answer(masks, asked(pack, size=[64, 48])))
    np.testing.assert_array_equal(small, full[:, 1::2, 1::2])


def test_a_picture_without_clicks_is_made_ready(pack, masks, photo, segmenters, monkeypatch):
    assert answer(masks, asked(pack, [])) is None
    monkeypatch.setattr(segmenters.segmenter("demo").segmenter, "embed", lambda _: pytest.fail("embedded again"))
    monkeypatch.setattr(masks, "picture_pixels", lambda _: pytest.fail("decoded again"))
    assert answer(masks, asked(pack)) is not None


def test_a_large_segmenter_is_loaded_for_a_click_only(
    pack, masks, photo, segmenters, other_weights, folders, monkeypatch
):
    monkeypatch.setattr(segmenters, "SMALL_MODEL", 1)
    with monkeypatch.context() as untouched:
        untouched.setattr(segmenters, "load_segmenter", lambda *_: pytest.fail("read"))
        untouched.setattr(comfy.model_management, "load_models_gpu", lambda *_: pytest.fail("loaded"))
        assert answer(masks, asked(pack, [], segmenter=other_weights)) is None
        (folders / "input" / "text.png").write_text("no picture")
        with pytest.raises(ValueError, match="no picture"):
            answer(masks, asked(pack, [], image="text.png", segmenter=other_weights))
        with pytest.raises(ValueError, match="There is no segmenter"):
            answer(masks, asked(pack, [], segmenter="absent.pth"))
    assert answer(masks, asked(pack, segmenter=other_weights)) is not None
    # Now that it is there, the next picture is made ready at once.
    Image.open(folders / "input" / "photo.png").rotate(180).save(folders / "input" / "next.png")
    seen = len(segmenters._seen)
    assert answer(masks, asked(pack, [], image="next.png", segmenter=other_weights)) is None
    assert len(segmenters._seen) == seen + 1


def test_pictures_are_known_by_their_content(pack, masks, photo, folders, segmenters, monkeypatch):
    embedded = []
    model = segmenters.segmenter("demo").segmenter
    real = model.embed
    monkeypatch.setattr(model, "embed", lambda image: embedded.append(image) or real(image))
    first = answer(masks, asked(pack))
    Image.open(folders / "input" / "photo.png").save(folders / "input" / "copy.bmp")
    pack.run("ClickToMask", image=photo, clicks=json.dumps(TWO), grow=0, feather=0.0)
    assert answer(masks, asked(pack, image="copy.bmp")).png == first.png
    assert len(embedded) == 1, "the node, the file and its copy show one picture"
    Image.fromarray(255 - embedded[0]).save(folders / "input" / "photo.png")
    assert answer(masks, asked(pack)).png != first.png
    assert len(embedded) == 2
    np.testing.assert_array_equal(embedded[1], 255 - embedded[0])


def test_only_the_object_that_changed_is_predicted_anew(pack, masks, photo, segmenters):
    predicted = []
    model = segmenters.segmenter("demo").segmenter
    real = model.propose
    patched = pytest.MonkeyPatch()
    patched.setattr(model, "propose", lambda *inputs: predicted.append(inputs[1]) or real(*inputs))
    answer(masks, asked(pack))
    assert len(predicted) == 2
    third = {"x": 0.6, "y": 0.3, "label": 0, "object": 4}
    found = answer(masks, asked(pack, [*TWO, third]))
    assert len(predicted) == 3 and len(predicted[2]) == 2
    chosen = answer(masks, asked(pack, [TWO[0] | {"candidate": 2}, TWO[1], third]))
    assert len(predicted) == 3
    patched.undo()
    segmenters._seen.clear()
    for seen, clicks in ((found, [*TWO, third]), (chosen, [TWO[0] | {"candidate": 2}, TWO[1], third])):
        assert answer(masks, asked(pack, clicks)).png == seen.png
    assert found.png != chosen.png


def test_masks_are_computed_on_one_core_and_all_else_on_as_many_as_before(pack, masks, photo, segmenters, monkeypatch):
    monkeypatch.setattr(segmenters, "_one_core", functools.cache(segmenters._one_core.__wrapped__))
    before, cores = torch.get_num_threads(), []
    model = segmenters.segmenter("demo").segmenter
    real = model.propose
    monkeypatch.setattr(model, "propose", lambda *inputs: cores.append(torch.get_num_threads()) or real(*inputs))
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda image: cores.append(torch.get_num_threads()) or embed(image))
    torch.set_num_threads(3)
    try:
        segmenters._one_core()
        answer(masks, asked(pack))
        with ThreadPoolExecutor(1) as new_thread:
            assert new_thread.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
        assert cores == [1, 1, 1]
    finally:
        torch.set_num_threads(before)


def test_two_pictures_are_remembered(pack, masks, photo, folders, segmenters, monkeypatch):
    model = segmenters.segmenter("demo").segmenter
    embedded, real = [], model.embed
    monkeypatch.setattr(model, "embed", lambda image: embedded.append(image) or real(image))
    for number in range(3):
        Image.open(folders / "input" / "photo.png").rotate(90 * number).save(folders / "input" / f"{number}.png")
    for number in (0, 1, 0, 1, 0):
        answer(masks, asked(pack, image=f"{number}.png"))
    assert len(embedded) == 2
    answer(masks, asked(pack, image="2.png"))  # the oldest one, 1, goes
    answer(masks, asked(pack, image="0.png"))
    assert len(embedded) == 3
    answer(masks, asked(pack, image="1.png"))
    assert len(embedded) == 4


@pytest.fixture
def other_weights(pack, tmp_path, monkeypatch):
    """A second segmenter in models/sams, of the same family and with other weights."""
    module = pack.module("followclick_core.segment.small_sam")
    params = module.SmallSamParams(image_size=128, embed_dim=64, mlp_dim=64)
    torch.manual_seed(5)
    with torch.inference_mode(False):
        module.save_small_sam(tmp_path / "other.safetensors", module.build_small_sam(params), params)
    paths, extensions = nodes.folder_paths.folder_names_and_paths["sams"]
    monkeypatch.setitem(nodes.folder_paths.folder_names_and_paths, "sams", ([*paths, str(tmp_path)], extensions))
    return "other.safetensors"


def test_what_one_segmenter_saw_is_nothing_to_another(pack, masks, photo, other_weights):
    """Both files are called the same by their kind; only the weights tell them apart."""
    own, other = (answer(masks, asked(pack, segmenter=name)) for name in ("demo", other_weights))
    assert own.png != other.png
    (loaded,) = pack.run("LoadSegmenter", name=other_weights)
    clicks = json.dumps({"image_size": [128, 96], "clicks": TWO})
    run = pack.run("ClickToMask", image=photo, segmenter=loaded, clicks=clicks, grow=0, feather=0.0)[0]
    np.testing.assert_array_equal(planes(other), run)


def test_a_file_is_loaded_once_for_the_graph_and_the_editor(pack, segmenters, other_weights):
    (loaded,) = pack.run("LoadSegmenter", name=other_weights)
    assert segmenters.segmenter(other_weights) is loaded


@pytest.mark.parametrize("name", ["absent.pth", "../other.safetensors", "/etc/passwd", ""])
def test_only_listed_segmenters_answer(pack, masks, photo, name, other_weights):
    with pytest.raises(ValueError, match="There is no segmenter"):
        answer(masks, asked(pack, segmenter=name))


def test_unloading_lets_go_of_everything(pack, masks, photo, segmenters, other_weights):
    painted = Image.open(masks.find_picture("photo.png", "", "input").path).convert("RGBA")
    painted.putalpha(0)
    painted.save(masks.find_picture("photo.png", "", "input").path)
    named = {"filename": "photo.png", "subfolder": "", "type": "input"}
    answer(masks, asked(pack, segmenter=other_weights, drawn_mask=named))
    held = weakref.ref(segmenters.segmenter(other_weights).segmenter.sam)
    assert segmenters._seen and masks._drawn._values
    comfy.model_management.unload_all_models()
    assert not segmenters._seen and not masks._drawn._values
    wait_for(lambda: gc.collect() is not None and held() is None)
    assert comfy.model_management.current_loaded_models == []
    assert answer(masks, asked(pack, segmenter=other_weights)) is not None


@pytest.fixture
def queue(monkeypatch):
    """The host's queue of prompts, with nothing in it, and a worker that waits for the first one."""
    host = SimpleNamespace(queue_updated=lambda: None)
    host.prompt_queue = execution.PromptQueue(host)
    monkeypatch.setattr(server.PromptServer, "instance", host, raising=False)
    wait_for_prompt(host.prompt_queue)
    return host.prompt_queue


def wait_for_prompt(queue) -> None:
    threading.Thread(target=queue.get, daemon=True).start()
    wait_for(lambda: queue.not_empty._waiters)


def start_prompt(queue) -> None:
    queue.put((0, "some-id", {}, {}, []))
    wait_for(lambda: queue.currently_running)


def end_prompt(queue) -> None:
    """The worker is awake still, as while it unloads models."""
    queue.currently_running.clear()


def is_held(lock) -> bool:
    """Whether this thread has it, so that another one would wait."""
    taken = []
    other = threading.Thread(target=lambda: taken.append(lock.acquire(blocking=False) and not lock.release()))
    other.start()
    other.join()
    return not taken[0]


@pytest.mark.parametrize("moment", ["running", "tidying up"])
def test_the_hosts_worker_does_not_stop_the_cpu(pack, masks, photo, queue, segmenters, moment):
    start_prompt(queue)
    if moment == "tidying up":
        end_prompt(queue)
    assert answer(masks, asked(pack)) is not None
    hosted = segmenters.segmenter("demo")
    assert not any(each.model is hosted.patcher for each in comfy.model_management.current_loaded_models), (
        "the host's list of models belongs to the worker while it is awake"
    )
    end_prompt(queue)
    wait_for_prompt(queue)
    answer(masks, asked(pack))
    assert any(each.model is hosted.patcher for each in comfy.model_management.current_loaded_models)


def test_unloading_lets_go_of_what_was_made_beside_a_prompt(pack, masks, photo, queue, segmenters, demo, other_weights):
    """The host does not know that segmenter; it unloads the models of the prompt."""
    comfy.model_management.load_models_gpu([demo.motion_model.patcher])
    start_prompt(queue)
    answer(masks, asked(pack, segmenter=other_weights))
    held = weakref.ref(segmenters.segmenter(other_weights).segmenter.sam)
    assert segmenters._seen
    end_prompt(queue)
    comfy.model_management.unload_all_models()
    assert not segmenters._seen
    wait_for(lambda: gc.collect() is not None and held() is None)


def test_unloading_another_model_leaves_what_the_host_knows(pack, masks, photo, queue, segmenters, demo):
    comfy.model_management.load_models_gpu([demo.motion_model.patcher])
    answer(masks, asked(pack))
    demo.motion_model.patcher.detach()
    assert segmenters._seen and segmenters._kept


@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_running_prompt_has_the_gpu_for_itself(pack, masks, photo, queue, segmenters, loaded_before, monkeypatch):
    if loaded_before:
        assert answer(masks, asked(pack)) is not None
    monkeypatch.setattr(segmenters.segmenter("demo").patcher, "load_device", torch.device("cuda"))
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *_: pytest.fail("loaded"))
    start_prompt(queue)
    with pytest.raises(pack.module("nodes.host_server").PromptRunsError, match="try again when it ends"):
        answer(masks, asked(pack))


def test_a_click_waits_while_the_worker_tidies_up_after_a_prompt(pack, masks, photo, queue, segmenters, monkeypatch):
    hosted = segmenters.segmenter("demo")
    answer(masks, asked(pack))  # so that nothing is to be loaded onto the device that is only called a GPU
    start_prompt(queue)
    end_prompt(queue)
    monkeypatch.setattr(hosted.patcher, "load_device", torch.device("cuda"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(answer, masks, asked(pack))
        time.sleep(0.2)
        assert not waiting.done()
        # Meanwhile the worker may unload a model, which needs the segmenters' lock.
        assert not is_held(segmenters._turn) and not is_held(queue.mutex)
        wait_for_prompt(queue)
        assert waiting.result(10) is not None


def test_a_worker_that_tidies_up_for_long_is_not_waited_for(pack, masks, photo, queue, segmenters, monkeypatch):
    module = pack.module("nodes.host_server")
    start_prompt(queue)
    end_prompt(queue)
    monkeypatch.setattr(segmenters.segmenter("demo").patcher, "load_device", torch.device("cuda"))
    monkeypatch.setattr(module, "TIDYING_SECONDS", 0.1)
    with pytest.raises(module.PromptRunsError):
        answer(masks, asked(pack))


def test_no_prompt_starts_while_the_segmenter_is_loaded(pack, masks, photo, queue, monkeypatch):
    real = comfy.model_management.load_models_gpu

    def load(models):
        assert is_held(queue.mutex)
        real(models)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load)
    assert answer(masks, asked(pack)) is not None
    assert not is_held(queue.mutex)


def test_another_segmenter_takes_the_place_of_the_last_one(pack, masks, photo, queue, segmenters, other_weights):
    answer(masks, asked(pack, segmenter=other_weights))
    held = weakref.ref(segmenters.segmenter(other_weights).segmenter.sam)
    start_prompt(queue)
    answer(masks, asked(pack))
    gc.collect()
    assert held() is not None, "a model that dies changes the host's list of models"
    end_prompt(queue)
    wait_for_prompt(queue)
    answer(masks, asked(pack))
    gc.collect()
    assert held() is None


def test_unloading_waits_for_the_mask_at_hand(pack, masks, photo, segmenters):
    """In the host's thread; else a mask would be half computed with weights that are gone."""
    hosted = segmenters.segmenter("demo")

    async def scene():
        with segmenters.live(hosted):
            unloading = asyncio.get_running_loop().run_in_executor(None, comfy.model_management.unload_all_models)
            done, _ = await asyncio.wait([unloading], timeout=0.3)
            assert not done
        await asyncio.wait_for(unloading, 10)

    asyncio.run(scene())


def test_an_interrupt_of_the_queue_is_not_eaten(pack, masks, photo):
    comfy.model_management.interrupt_current_processing()
    try:
        assert answer(masks, asked(pack)) is not None
        assert comfy.model_management.processing_interrupted()
    finally:
        comfy.model_management.interrupt_current_processing(False)
