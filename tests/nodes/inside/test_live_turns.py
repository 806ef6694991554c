"""Whose turn it is to have a mask made, and what a request may say."""

import asyncio
import json

import pytest

GOOD = {
    "image": {"filename": "photo.png", "subfolder": "a", "type": "temp"},
    "segmenter": "demo",
    "clicks": {"image_size": [4, 3], "clicks": [{"x": 0.5, "y": 0.4, "label": 1, "object": 1}]},
    "grow": -3,
    "drawn_mask": None,
    "editor": "0b5ff1b0-1111-2222-3333-444455556666",
    "size": [320, 200],
}


@pytest.fixture
def module(pack):
    return pack.module("nodes.live_masks")


@pytest.fixture
def parse(pack):
    return pack.module("nodes.live_request").parse_request


async def job(turns, editor: str, log: list, gate: asyncio.Event | None = None) -> None:
    try:
        async with turns.turn(editor) as turn:
            log.append(f"{editor} runs")
            if gate is not None:
                await gate.wait()
            log.append(f"{editor} {'stale' if turn.superseded else 'wanted'}")
    except RuntimeError as error:
        log.append(f"{editor} {type(error).__name__}")


def scene(play):
    """Run a play of jobs; all that they start is over at its end."""
    return asyncio.run(asyncio.wait_for(play(), 5))


def test_one_runs_at_a_time_in_the_order_of_asking(module):
    async def play():
        turns, log, gate = module.TurnTaking(), [], asyncio.Event()
        jobs = [asyncio.create_task(job(turns, name, log, gate)) for name in "abc"]
        await asyncio.sleep(0.01)
        assert log == ["a runs"]
        gate.set()
        await asyncio.gather(*jobs)
        assert log == [f"{name} {what}" for name in "abc" for what in ("runs", "wanted")]
        await job(turns, "d", log)
        assert log[-1] == "d wanted"

    scene(play)


def test_of_an_editors_waiting_requests_the_newest_runs(module):
    async def play():
        turns, log, gate = module.TurnTaking(), [], asyncio.Event()
        jobs = [asyncio.create_task(job(turns, name, log, gate)) for name in "abbbc"]
        await asyncio.sleep(0.01)
        assert log == ["a runs", "b SupersededError", "b SupersededError"], "they need not wait to be refused"
        gate.set()
        await asyncio.gather(*jobs)
        assert [entry for entry in log if entry.endswith("runs")] == ["a runs", "b runs", "c runs"]

    scene(play)


def test_a_running_request_learns_that_its_editor_asked_anew(module):
    async def play():
        turns, log, gate = module.TurnTaking(), [], asyncio.Event()
        first = asyncio.create_task(job(turns, "a", log, gate))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(job(turns, "a", log))
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(first, second)
        assert log == ["a runs", "a stale", "a runs", "a wanted"]

    scene(play)


def test_the_number_that_wait_is_bounded(module):
    async def play():
        turns, log, gate = module.TurnTaking(most_waiting=2), [], asyncio.Event()
        jobs = [asyncio.create_task(job(turns, name, log, gate)) for name in "abcd"]
        await asyncio.sleep(0.01)
        assert log == ["a runs", "d CrowdedError"]
        gate.set()
        await asyncio.gather(*jobs)
        assert log[-1] == "c wanted"

    scene(play)


@pytest.mark.parametrize("moment", ["waiting", "running", "called"])
def test_who_goes_away_leaves_the_turn_to_the_next(module, moment):
    async def play():
        turns, log, gate = module.TurnTaking(), [], asyncio.Event()
        first, second, third = (asyncio.create_task(job(turns, name, log, gate)) for name in "abc")
        await asyncio.sleep(0.01)
        if moment == "called":  # its turn has come, but it has not run yet
            turns._hand_over()
            second.cancel()
            await asyncio.sleep(0.01)
            assert log == ["a runs", "c runs"]
            gate.set()
            await asyncio.gather(first, third)
            return
        (second if moment == "waiting" else first).cancel()
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert log[-1] == "c wanted" and ("b runs" in log) == (moment == "running")

    scene(play)


def test_a_superseded_request_that_just_went_away_does_no_harm(module):
    async def play():
        turns, log, gate = module.TurnTaking(), [], asyncio.Event()
        first, older = (asyncio.create_task(job(turns, name, log, gate)) for name in "ab")
        await asyncio.sleep(0.01)
        older.cancel()
        newer = asyncio.create_task(job(turns, "b", log))
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(first, newer)
        assert log[-1] == "b wanted"

    scene(play)


def test_a_superseded_request_is_given_up_before_its_mask(module, pack, folders, demo, monkeypatch):
    """A newer one came while the picture was embedded: the embedding stays, the mask is not made."""
    segmenters = pack.module("nodes.host_segmenters")
    segmenters._seen.clear()
    request = pack.module("nodes.live_request").parse_request(
        json.dumps(GOOD | {"image": {"example": "rocket"}}).encode()
    )
    turn = module.Turn("a")
    see = module.seen_picture

    def superseding(*arguments):
        turn.superseded = True
        return see(*arguments)

    monkeypatch.setattr(module, "seen_picture", superseding)
    monkeypatch.setattr(segmenters.SeenPicture, "select", lambda *_: pytest.fail("made"))
    with pytest.raises(module.SupersededError):
        module._make_masks(request, turn)
    assert len(segmenters._seen) == 1


def test_a_request_is_read_as_it_was_sent(parse):
    request = parse(json.dumps(GOOD).encode())
    assert (request.image.filename, request.image.subfolder, request.image.folder_type) == ("photo.png", "a", "temp")
    assert request.clicks == GOOD["clicks"] and request.size == (320, 200) and request.grow == -3
    short = {"image": {"example": "rocket"}, "clicks": GOOD["clicks"], "editor": "1"}
    request = parse(json.dumps(short).encode())
    assert request.image.name == "rocket"
    assert (request.segmenter, request.grow, request.drawn_mask, request.size) == ("demo", 0, None, None)


def clicks(number: int = 1, objects: int = 1) -> dict:
    entries = [{"x": 0.5, "y": 0.5, "label": 1, "object": 1 + index % objects} for index in range(number)]
    return {"image_size": [4, 3], "clicks": entries}


def test_64_clicks_on_8_objects_are_taken(parse):
    assert len(parse(json.dumps(GOOD | {"clicks": clicks(64, 8)}).encode()).clicks["clicks"]) == 64


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"clicks": clicks(65)}, "at most 64"),
        ({"clicks": clicks(9, 9)}, "at most 8"),
        ({"clicks": []}, "The clicks come as"),
        ({"clicks": {"clicks": "[]"}}, "The clicks come as"),
        ({"clicks": None}, "The clicks come as"),
        ({"image": None}, "image is named by"),
        ({"image": "photo.png"}, "image is named by"),
        ({"image": {}}, "filename is a text"),
        ({"image": {"filename": 7}}, "filename is a text"),
        ({"image": {"filename": "x" * 2000}}, "filename is a text"),
        ({"image": {"filename": "x", "subfolder": []}}, "subfolder is a text"),
        ({"image": {"filename": "x", "type": None}}, "type is a text"),
        ({"image": {"example": ["rocket"]}}, "example is a text"),
        ({"drawn_mask": "photo.png"}, "drawn_mask is named by"),
        ({"drawn_mask": {"example": "rocket"}}, "filename is a text"),
        ({"segmenter": None}, "segmenter is a text"),
        ({"grow": 65}, "whole number from -64 to 64"),
        ({"grow": 0.5}, "whole number from -64 to 64"),
        ({"grow": True}, "whole number from -64 to 64"),
        ({"size": [0, 5]}, "from 1 to 4096"),
        ({"size": [5000, 5]}, "from 1 to 4096"),
        ({"size": [5]}, "The size is"),
        ({"size": "5x5"}, "The size is"),
        ({"editor": ""}, "UUID"),
        ({"editor": "x" * 65}, "UUID"),
        ({"editor": "a\nb"}, "UUID"),
        ({"editor": None}, "UUID"),
    ],
)
def test_what_is_out_of_bounds_is_refused_in_one_sentence(parse, part, said):
    with pytest.raises(ValueError, match=said) as refused:
        parse(json.dumps(GOOD | part).encode())
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'"text"',
        b'{"image": ',
        b'{"grow": NaN}',
        b'{"grow": -Infinity}',
        b"[" * 60_000,
        b"1" * 60_000,
    ],
)
def test_what_is_no_json_object_is_refused(parse, body):
    with pytest.raises(ValueError, match="The body is no JSON"):
        parse(body)
