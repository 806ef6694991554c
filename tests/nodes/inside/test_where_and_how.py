"""Clicks to masks, regions, first frame, magnitude; and Animate Region, which does it all."""

import json

import comfy.model_management
import comfy.utils
import pytest
import torch

import nodes

ANIMATED = {"motion_prompt": "run", "motion_magnitude": 6.0, "length": 3, "steps": 2, "cfg": 5.0, "seed": 0}
CENTRE = '[{"x": 0.5, "y": 0.5, "label": 1}]'


def click(pack, demo, picture, clicks=CENTRE, grow=0, feather=0.0, **more) -> tuple:
    """The mask and the clicks that come out."""
    return click_outputs(pack, demo, picture, clicks, grow=grow, feather=feather, **more)[:2]


def click_outputs(pack, demo, picture, clicks=CENTRE, **more) -> tuple:
    inputs = {"segmenter": demo.segmenter, "grow": 0, "feather": 0.0} | more
    return pack.run("ClickToMask", image=picture, clicks=clicks, **inputs)


def test_each_clicked_object_gets_a_mask_of_the_pictures_size(pack, demo, picture):
    two = '[{"x": 0.2, "y": 0.2, "label": 1, "object": 1}, {"x": 0.8, "y": 0.8, "label": 1, "object": 2}]'
    masks, clicks = click(pack, demo, picture, two)
    assert masks.shape == (2, 96, 128) and masks.dtype == torch.float32
    assert json.loads(clicks)["image_size"] == [128, 96] and len(json.loads(clicks)["clicks"]) == 2


def test_clicks_come_out_in_a_form_that_goes_in_again(pack, demo, picture):
    mask, clicks = click(pack, demo, picture, '[{"x": 64, "y": 48}]')
    again, same = click(pack, demo, picture, clicks)
    assert torch.equal(mask, again) and same == clicks


def test_growing_and_feathering_change_the_mask(pack, demo, picture, square, monkeypatch):
    monkeypatch.setattr(demo.segmenter.segmenter, "pick", lambda *_: square[0].numpy() > 0)
    assert torch.equal(click(pack, demo, picture)[0], square)
    grown = click(pack, demo, picture, grow=4)[0]
    assert grown[0, 26:74, 40].all() and not grown[0, 25, 40] and not grown[0, 26, 16]  # corners become round
    assert click(pack, demo, picture, grow=-4)[0].sum() == 32 * 32
    soft = click(pack, demo, picture, feather=3.0)[0]
    assert 0.2 < soft[0, 30, 40] < 0.8 and soft[0, 50, 40] > 0.99


def test_a_second_click_on_the_same_picture_does_not_embed_it_again(pack, demo, picture, monkeypatch):
    click(pack, demo, picture)
    monkeypatch.setattr(demo.segmenter.segmenter, "embed", lambda image: pytest.fail("embedded again"))
    click(pack, demo, picture, '[{"x": 0.1, "y": 0.1, "label": 1}]')


def test_without_a_segmenter_the_packs_own_answers(pack, demo, picture):
    assert torch.equal(click(pack, demo, picture)[0], click(pack, demo, picture, segmenter=None)[0])


def test_a_drawn_mask_is_refined_by_clicks(pack, demo, picture, square):
    under, outside = click(pack, demo, picture)[0], '[{"x": 0.5, "y": 0.5, "label": 0}]'
    assert torch.equal(click(pack, demo, picture, "[]", drawn_mask=square)[0], square)
    assert torch.equal(click(pack, demo, picture, drawn_mask=square)[0], torch.maximum(square, under))
    assert torch.equal(click(pack, demo, picture, outside, drawn_mask=square)[0], square * (1 - under))
    # What Load Image gives for a picture without a mask.
    assert torch.equal(click(pack, demo, picture, drawn_mask=torch.zeros(1, 64, 64))[0], under)
    with pytest.raises(ValueError, match="drawn mask has 64x64 pixels"):
        click(pack, demo, picture, drawn_mask=torch.ones(1, 64, 64))


def test_points_of_other_packs_come_in_and_go_out(pack, demo, picture):
    points = {"positive_points": '[{"x": 64, "y": 48}]', "negative_points": '[{"x": 3, "y": 90}, {"x": 4, "y": 5}]'}
    mask, clicks, _, *out, _ = click_outputs(pack, demo, picture, "[]", **points)
    assert out == list(points.values())
    assert torch.equal(mask, click(pack, demo, picture, clicks)[0])
    both = click_outputs(pack, demo, picture, '[{"x": 0.1, "y": 0.1, "label": 1, "object": 2}]', **points)
    assert len(both[0]) == 2 and len(json.loads(both[1])["clicks"]) == 4


MOVING = """{"image_size": [128, 96], "clicks": [{"x": 0.2, "y": 0.2, "label": 1}, {"x": 0.8, "y": 0.8, "object": 3}],
    "objects": {"1": {"motion_prompt": "jump", "motion_magnitude": 9.5}, "7": {"motion_prompt": "gone"}}}"""


def test_each_object_carries_its_mask_and_motion(pack, demo, picture):
    masks, clicks, objects, _, _, prompts = click_outputs(pack, demo, picture, MOVING, feather=2.0)
    assert [each.number for each in objects] == [1, 3] and prompts == "jump"
    assert [(each.motion_prompt, each.motion_magnitude) for each in objects] == [("jump", 9.5), ("", None)]
    assert torch.equal(torch.cat([each.mask for each in objects]), masks)
    assert click_outputs(pack, demo, picture, clicks, feather=2.0)[2][0].motion_prompt == "jump"


def test_the_objects_of_one_socket_become_regions(pack, demo, picture):
    objects = click_outputs(pack, demo, picture, MOVING)[2]
    inputs = {"clip": demo.clip, "motion_prompt": "run", "motion_magnitude": 6.0}
    (regions,) = pack.run("MotionRegion", objects=objects, **inputs)
    # Where the editor does not say, the node does.
    assert [(region.prompt, region.magnitude) for region in regions] == [("jump", 9.5), ("run", 6.0)]
    assert all(torch.equal(region.mask, each.mask) for region, each in zip(regions, objects, strict=True))
    assert torch.equal(regions[1].context, pack.regions(demo, objects[1].mask)[0].context)
    assert not torch.equal(regions[0].context, regions[1].context)


def test_a_mask_beside_objects_moves_as_the_node_says(pack, demo, picture, square):
    objects = click_outputs(pack, demo, picture, MOVING)[2]
    regions = pack.regions(demo, square, objects=objects, regions=pack.regions(demo, square, prompt="spin left"))
    assert [region.prompt for region in regions] == ["spin left", "run", "jump", "run"]


def test_a_region_needs_a_place(pack, demo):
    with pytest.raises(ValueError, match="connect mask or objects"):
        pack.regions(demo, None)


@pytest.mark.parametrize("node", ["ClickToMask", "AnimateRegion"])
def test_the_frame_that_came_is_shown_to_the_editor(pack, demo, picture, folders, node):
    inputs = {"ClickToMask": {"grow": 0, "feather": 0.0}, "AnimateRegion": ANIMATED}[node]
    result = pack.node(node).EXECUTE_NORMALIZED(image=picture, clicks=CENTRE, **inputs)
    (named,) = result.ui.pop("followclick_frame")
    assert not result.ui
    shown = nodes.LoadImage().load_image(f"{named['filename']} [temp]")[0]
    assert torch.equal(shown, (picture * 255).round() / 255)


def test_bad_clicks_say_what_is_wrong(pack, demo, picture):
    with pytest.raises(ValueError, match="no click"):
        click(pack, demo, picture, "[]")
    with pytest.raises(ValueError, match="not valid JSON"):
        click(pack, demo, picture, "here")
    with pytest.raises(ValueError, match="outside the image"):
        click(pack, demo, picture, '[{"x": 1.5, "y": 0.5, "label": 1}]')
    with pytest.raises(ValueError, match="too small"):
        click(pack, demo, picture[:, :1, :1])


def test_a_region_needs_a_mask_a_verb_and_a_magnitude(pack, demo, square):
    with pytest.raises(ValueError, match="mask is empty"):
        pack.regions(demo, square * 0)
    with pytest.raises(ValueError, match="prompt is empty"):
        pack.regions(demo, square, prompt="  ")
    for magnitude in (float("nan"), -1.0, float("inf")):
        with pytest.raises(ValueError, match="magnitude is"):
            pack.regions(demo, square, magnitude=magnitude)


def test_regions_add_up_and_stay_as_they_are(pack, demo, square):
    first = pack.regions(demo, square)
    both = pack.regions(demo, square.flip(-1), prompt="jump", regions=first)
    assert [region.prompt for region in both] == ["run", "jump"] and len(first) == 1


def test_the_first_frame_keeps_the_pictures_proportions(pack, demo, square):
    for height, width in ((96, 128), (600, 400), (1080, 1920), (500, 500)):
        picture = torch.rand(1, height, width, 3)
        mask = torch.ones(1, height, width)
        latent = pack.first_frame(demo, picture, pack.regions(demo, mask))[2]["samples"]
        frames, channels, rows, columns = latent.shape
        assert (frames, channels) == (4, 4) and not latent.any()
        assert rows % 4 == columns % 4 == 0
        assert 8 * rows * 8 * columns == pytest.approx(128**2, rel=0.3)
        assert columns / rows == pytest.approx(width / height, rel=0.15)


def test_the_first_frame_rides_in_both_conditionings_and_leaves_the_old_ones(pack, demo, picture, square):
    positive = pack.text(demo, "run")
    before = dict(positive[0][1])
    conditioned = pack.first_frame(demo, picture, pack.regions(demo, square), positive=positive)[:2]
    assert positive[0][1] == before
    for conditioning in conditioned:
        carried = conditioning[0][1]["model_conds"]
        assert set(carried) == {"motion_context", "motion_magnitude", "first_frame"}
        columns = carried["first_frame"].cond.shape[-1]
        mask = carried["first_frame"].cond[0, 0]
        # The square lies left of the middle, and it is averaged down, so its mass is kept.
        assert mask[:, : columns // 2].sum() > 0.9 * mask.sum()
        assert float(mask.mean()) == pytest.approx(float(square.mean()), rel=0.2)


def test_a_mask_of_another_picture_is_refused(pack, demo, picture):
    with pytest.raises(ValueError, match="64x64, the image 128x96"):
        pack.first_frame(demo, picture, pack.regions(demo, torch.ones(1, 64, 64)))


def test_a_text_encoder_of_another_width_is_refused(pack, demo, picture, square):
    regions = pack.regions(demo, square)
    sockets = pack.module("nodes.sockets")
    wide = sockets.Region(square, "run", torch.zeros(1, 77, 768), torch.zeros(1, 77, 768), 6.0)
    with pytest.raises(ValueError, match=r"width 768.*reads 96"):
        pack.first_frame(demo, picture, (*regions, wide))


def test_pictures_that_cannot_be_animated_are_refused(pack, demo, square):
    regions = pack.regions(demo, square)
    with pytest.raises(ValueError, match="too small"):
        pack.first_frame(demo, torch.zeros(1, 1, 1, 3), regions)
    with pytest.raises(ValueError, match="at most"):
        pack.first_frame(demo, torch.zeros(1, 20, 4000, 3), regions)


def test_two_regions_move_each_in_its_own_part(pack, demo, graph, picture, square):
    """Where one region is the nearest, changing the other one's verb changes nothing in the first step."""
    right = square.flip(-1)
    left = pack.regions(demo, square)
    results = []
    for prompt in ("jump", "spin left"):
        regions = pack.regions(demo, right, prompt=prompt, magnitude=16.0, regions=left)
        positive, negative, latent = pack.first_frame(demo, picture, regions, region_mode="separate")
        assert len(positive) == len(negative) == 2
        results.append(pack.sample(graph.model, positive, negative, latent, steps=1))
    difference = (results[0] - results[1]).abs().mean(dim=(0, 1, 2))
    assert difference[:4].max() < 0.02 * difference[-4:].max()


def test_flow_magnitude_replaces_the_regions_number(pack, demo, graph, picture, square):
    def conditioned(magnitude, curve=""):
        run = lambda entries: pack.run(  # noqa: E731
            "FlowMagnitude", conditioning=entries, motion_magnitude=magnitude, curve=curve
        )[0]
        return {"positive": run(graph.positive), "negative": run(graph.negative)}

    base = pack.sample_graph(graph)
    torch.testing.assert_close(pack.sample_graph(graph, **conditioned(6.0)), base)
    torch.testing.assert_close(pack.sample_graph(graph, **conditioned(1.0, "6, 6")), base)
    assert not torch.allclose(pack.sample_graph(graph, **conditioned(12.0)), base)
    rising = pack.sample_graph(graph, **conditioned(0.0, "0, 12"))
    assert not torch.allclose(rising, pack.sample_graph(graph, **conditioned(0.0, "12, 0")))
    with pytest.raises(ValueError, match="no list of numbers"):
        conditioned(6.0, "fast")
    with pytest.raises(ValueError, match="magnitude is -1"):
        conditioned(6.0, "4, -1")


def test_a_curve_is_spread_over_the_clip(pack):
    curve = pack.module("nodes.host_motion").CurveCond(torch.tensor([0.0, 8.0]))
    assert curve.process_cond(batch_size=5).cond.tolist() == [0, 2, 4, 6, 8]


def animate(pack, picture, **other) -> tuple:
    return pack.run("AnimateRegion", **{"image": picture, "clicks": CENTRE} | ANIMATED | other)


def test_animate_region_gives_what_the_animator_gives(pack, weights, picture):
    frames, mask = animate(pack, picture, clicks='[{"x": 64, "y": 48}]')
    animator = pack.module("followclick_core.animator").Animator.load(weights, "cpu")
    image = (picture[0] * 255).round().to(torch.uint8).numpy()
    clip = animator.animate(image, [(64, 48, 1)], "run", 6.0, num_frames=3, steps=2, guidance_scale=5.0)
    assert torch.equal(frames, torch.from_numpy(clip.frames).float() / 255)
    assert torch.equal(mask[0] > 0, torch.from_numpy(clip.mask))


def test_animate_region_checks_before_it_samples(pack, weights, picture):
    with pytest.raises(ValueError, match="prompt is empty"):
        animate(pack, picture, motion_prompt="")
    with pytest.raises(ValueError, match="magnitude is nan"):
        animate(pack, picture, motion_magnitude=float("nan"))
    with pytest.raises(ValueError, match="no click"):
        animate(pack, picture, clicks="[]")


def test_animate_region_reports_progress_and_can_be_cancelled(pack, weights, picture, monkeypatch):
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    animate(pack, picture)
    assert (1, 2) in seen and (2, 2) in seen

    def cancel(value, total, *_, **__):
        if (value, total) == (1, 2):
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        animate(pack, picture)
