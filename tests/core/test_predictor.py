"""The segmenter on small, real Sam models: against SamPredictor, and its own promises."""

import io
import pickle
import sys

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import PromptEncoder
from torch.nn import functional as F

from followclick_core.checkpoint import CheckpointError, save_safetensors
from followclick_core.segment import (
    Click,
    MaskCandidates,
    Segmenter,
    clicks_from_pixels,
    load_segmenter,
    predict_masks,
)
from followclick_core.segment.params import SmallSamParams
from followclick_core.segment.parts import keep_clicked_parts
from followclick_core.segment.small_sam import build_small_sam, save_small_sam
from followclick_core.segment.vit_sam import ViTSamParams, infer_params
from followclick_core.segment.vit_sam import _build as build_vit_sam

TINY_VIT = ViTSamParams(
    embed_dim=32,
    depth=3,
    num_heads=2,
    mlp_ratio=2.0,
    patch_size=16,
    grid=8,
    window_size=3,
    global_blocks=(1,),
    prompt_dim=32,
    mask_in_chans=8,
    decoder_depth=2,
    decoder_mlp_dim=48,
    iou_hidden_dim=24,
)
TINY_SMALL = SmallSamParams(image_size=64, embed_dim=32, num_heads=2, mlp_dim=32, iou_hidden_dim=16, trunk_width=0.25)


def randomised(sam):
    """Every parameter of some size: several of Sam's start at zero, which would hide errors."""
    generator = torch.Generator().manual_seed(1)
    for parameter in sam.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
        else:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return sam.eval()


def vit_sam():
    torch.manual_seed(0)
    return randomised(build_vit_sam(TINY_VIT))


def small_sam(params=TINY_SMALL):
    torch.manual_seed(0)
    return randomised(build_small_sam(params))


@pytest.fixture(params=[vit_sam, small_sam], ids=["vit", "small"])
def segmenter(request):
    return Segmenter(request.param())


@pytest.mark.parametrize("pixels", [[(40, 30, 1)], [(40, 30, 1), (100, 80, 0), (20, 90, 1)]])
@pytest.mark.parametrize("tall", [False, True])
def test_masks_and_scores_are_those_of_sam_predictor(segmenter, photo, pixels, tall):
    if tall:
        photo, pixels = photo.transpose(1, 0, 2).copy(), [(y, x, label) for x, y, label in pixels]
    reference = SamPredictor(segmenter.sam)
    reference.set_image(photo)
    coords, labels = np.array(pixels)[:, :2], np.array(pixels)[:, 2]
    masks, scores, logits = reference.predict(coords, labels, multimask_output=len(pixels) == 1)
    order = np.argsort(-scores)

    embedding = segmenter.embed(photo)
    found = segmenter.predict(embedding, clicks_from_pixels(pixels, photo.shape[1::-1]))
    np.testing.assert_array_equal(embedding.features, reference.get_image_embedding())
    np.testing.assert_allclose(found.scores, scores[order], rtol=1e-5, atol=1e-6)
    # A click's way through 0..1 may change its last bit, and with it a pixel whose logit is all but zero.
    assert (found.masks != masks[order]).mean() < 1e-4
    assert 0.01 < masks.mean() < 0.99 and np.ptp(logits) > 0.5


def test_a_single_click_offers_three_masks_best_first(segmenter, photo):
    found = segmenter.predict(segmenter.embed(photo), [Click(0.4, 0.6)])
    assert found.masks.shape == (3, *photo.shape[:2]) and found.masks.dtype == np.bool_
    assert len(found) == 3 and (np.diff(found.scores) <= 0).all()
    np.testing.assert_array_equal(found.best, found.masks[0])
    np.testing.assert_array_equal(found.pick(None), found.masks[0])
    np.testing.assert_array_equal(found.pick(2), found.masks[2])
    with pytest.raises(ValueError, match="Mask candidate 3 was asked for, but there are 3; give 0 to 2"):
        found.pick(3)


def test_several_clicks_mean_one_mask(segmenter, photo):
    found = segmenter.predict(segmenter.embed(photo), [Click(0.4, 0.6), Click(0.1, 0.2, 0)])
    assert found.masks.shape == (1, *photo.shape[:2])


def test_one_embedding_answers_many_clicks_without_being_encoded_again(segmenter, photo, monkeypatch):
    calls = []
    forward = segmenter.sam.image_encoder.forward
    monkeypatch.setattr(segmenter.sam.image_encoder, "forward", lambda x: calls.append(1) or forward(x))
    embedding = segmenter.embed(photo)
    first = segmenter.predict(embedding, [Click(0.4, 0.6)])
    segmenter.embed(255 - photo)
    segmenter.predict(embedding, [Click(0.9, 0.1)])
    again = segmenter.predict(embedding, [Click(0.4, 0.6)])
    np.testing.assert_array_equal(first.masks, again.masks)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert len(calls) == 2


def test_each_object_gets_its_own_mask_and_the_candidate_that_was_picked(segmenter, photo):
    embedding = segmenter.embed(photo)
    masks = predict_masks(segmenter, embedding, [Click(0.4, 0.6, 1, 5, candidate=1), Click(0.8, 0.2, 1, 2)])
    assert list(masks) == [2, 5]
    np.testing.assert_array_equal(masks[5], segmenter.predict(embedding, [Click(0.4, 0.6)]).masks[1])
    np.testing.assert_array_equal(masks[2], segmenter.predict(embedding, [Click(0.8, 0.2)]).best)


@pytest.mark.parametrize("shape", [(16, 16), (1, 1), (300, 20), (17, 411)])
def test_masks_have_the_size_of_the_picture_whatever_its_aspect(segmenter, shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    assert segmenter.predict(segmenter.embed(image), [Click(1.0, 0.0)]).masks.shape[1:] == shape


def test_half_precision_in_the_encoder_changes_little(segmenter, photo):
    exact = segmenter.predict(segmenter.embed(photo), [Click(0.4, 0.6)])
    half = segmenter.to(dtype=torch.bfloat16)
    rounded = half.predict(half.embed(photo), [Click(0.4, 0.6)])
    assert half.sam.prompt_encoder.no_mask_embed.weight.dtype == torch.float32
    assert rounded.scores.dtype == np.float32
    np.testing.assert_allclose(rounded.scores, exact.scores, atol=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_finds_the_same_masks(segmenter, photo):
    on_cpu = segmenter.predict(segmenter.embed(photo), [Click(0.4, 0.6)])
    embedding = segmenter.embed(photo)
    on_gpu = segmenter.to("cuda").predict(embedding, [Click(0.4, 0.6)])
    assert segmenter.device.type == "cuda"
    assert (on_gpu.masks != on_cpu.masks).mean() < 0.01


@pytest.mark.parametrize(
    ("clicks", "complaint"),
    [
        ([], "There is no click"),
        ([Click(0.5, 0.5, 0)], "only excluding clicks"),
        ([Click(0.5, 0.5), Click(0.2, 0.2, 1, 2)], "several objects"),
    ],
)
def test_clicks_that_select_nothing_are_refused(segmenter, photo, clicks, complaint):
    with pytest.raises(ValueError, match=complaint):
        segmenter.predict(segmenter.embed(photo), clicks)


def test_a_line_is_no_picture(segmenter):
    with pytest.raises(ValueError, match="20000x10 pixels is too narrow"):
        segmenter.embed(np.zeros((10, 20000, 3), np.uint8))


def test_other_arrays_than_uint8_rgb_are_refused(segmenter, photo, unchecked):
    for image in (photo.astype(np.float32), photo[..., 0], np.dstack((photo, photo[..., :1]))):
        with pytest.raises(ValueError, match="uint8 images h w 3"):
            segmenter.embed(image)


def test_small_prompt_encoder_agrees_with_the_original():
    torch.manual_seed(0)
    original = randomised(PromptEncoder(32, (8, 8), (64, 64), 8))
    own = small_sam().prompt_encoder
    own.load_state_dict(PromptEncoder(32, (8, 8), (64, 64), 16).state_dict())
    own.load_state_dict({k: v for k, v in original.state_dict().items() if "mask_down" not in k}, strict=False)
    points, labels = 64 * torch.rand(2, 5, 2), torch.tensor([[1.0, 0, -1, 1, 0], [0, 0, 1, 1, -1]])
    for boxes in (None, torch.tensor([[1.0, 2, 30, 40], [5, 6, 7, 8]])):
        expected = original((points, labels), boxes, None)[0]
        torch.testing.assert_close(own((points, labels), boxes, None)[0], expected)


def test_a_batch_of_pictures_decodes_as_each_alone():
    sam = small_sam()
    pixels = torch.randn(3, 3, 64, 64)
    points, labels = 64 * torch.rand(3, 2, 2), torch.ones(3, 2)

    def decode(features, points, labels):
        sparse, dense = sam.prompt_encoder((points, labels), None, None)
        return sam.mask_decoder(features, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True)

    with torch.no_grad():
        features = sam.image_encoder(pixels)
        masks, scores = decode(features, points, labels)
        for index in range(3):
            alone = decode(features[index : index + 1], points[index : index + 1], labels[index : index + 1])
            torch.testing.assert_close(masks[index : index + 1], alone[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(scores[index : index + 1], alone[1], rtol=1e-4, atol=1e-4)
        # Several prompts on one picture, as in Sam's own use.
        many, _ = decode(features[:1], points, labels)
        torch.testing.assert_close(many[:1], masks[:1], rtol=1e-4, atol=1e-4)


def test_fine_features_reach_the_mask():
    sam = small_sam()
    with torch.no_grad():
        features = sam.image_encoder(torch.randn(1, 3, 64, 64))
        sparse, dense = sam.prompt_encoder((torch.tensor([[[20.0, 20]]]), torch.ones(1, 1)), None, None)
        prompt = (sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
        masks, _ = sam.mask_decoder(features, *prompt)
        assert masks.shape[-2:] == (32, 32)
        # A change in a single folded stride-2 channel moves one pixel of the logits, in its place.
        features[0, 2 * 32, 3, 5] += 1
        changed = (sam.mask_decoder(features, *prompt)[0] != masks).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[12, 20]]


def test_small_weights_come_back_from_their_file(tmp_path, photo):
    sam = small_sam()
    save_small_sam(tmp_path / "own.safetensors", sam, TINY_SMALL, {"note": "kept"})
    loaded = load_segmenter(tmp_path / "own.safetensors", device="cpu")
    assert loaded.predict(loaded.embed(photo), [Click(0.4, 0.6)]).masks.shape == (3, *photo.shape[:2])
    assert loaded.name == "own" and loaded.sam.image_encoder.img_size == 64
    for key, value in loaded.sam.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64)
        torch.testing.assert_close(value, sam.state_dict()[key], rtol=1e-3, atol=1e-4)
    exact = Segmenter(sam).predict(Segmenter(sam).embed(photo), [Click(0.4, 0.6)])
    found = loaded.predict(loaded.embed(photo), [Click(0.4, 0.6)])
    np.testing.assert_allclose(found.scores, exact.scores, atol=0.02)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_vit_is_recognised_by_its_shapes_alone(tmp_path, photo, suffix):
    sam = vit_sam()
    path = tmp_path / f"renamed{suffix}"
    if suffix == ".pth":
        torch.save(sam.state_dict(), path)
    else:
        save_safetensors(path, sam.state_dict())
    assert infer_params(sam.state_dict(), "x") == TINY_VIT
    loaded = load_segmenter(path, device="cpu")
    expected = Segmenter(sam).predict(Segmenter(sam).embed(photo), [Click(0.3, 0.3)])
    found = loaded.predict(loaded.embed(photo), [Click(0.3, 0.3)])
    np.testing.assert_array_equal(found.masks, expected.masks)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize(
    ("kind", "width", "depth", "heads", "global_blocks"),
    [
        ("vit_b", 768, 12, 12, (2, 5, 8, 11)),
        ("vit_l", 1024, 24, 16, (5, 11, 17, 23)),
        ("vit_h", 1280, 32, 16, (7, 15, 23, 31)),
    ],
)
def test_the_published_sizes_are_told_apart(kind, width, depth, heads, global_blocks):
    """Against segment_anything.build_sam, on the meta device: ViT-H has 2.5 GB of weights."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        reference = sam_model_registry[kind]()
        params = infer_params(reference.state_dict(), kind)
        own = build_vit_sam(params)
    assert (params.kind, params.embed_dim, params.depth) == (kind, width, depth)
    assert (params.num_heads, params.global_blocks, params.window_size) == (heads, global_blocks, 14)
    shapes = {key: value.shape for key, value in reference.state_dict().items()}
    assert {key: value.shape for key, value in own.state_dict().items()} == shapes
    assert str(own) == str(reference)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="sam_vit_b.pth"):
        load_segmenter("nowhere/sam_vit_b.pth")


def test_a_truncated_file_is_refused(tmp_path):
    content = io.BytesIO()
    torch.save(vit_sam().state_dict(), content)
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(content.getvalue()[:5000])
        with pytest.raises(CheckpointError, match=name):
            load_segmenter(tmp_path / name)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "sam.pth").write_bytes(pickle.dumps({"image_encoder.pos_embed": Attack()}))
    with pytest.raises(CheckpointError, match="would run code"):
        load_segmenter(tmp_path / "sam.pth")
    assert not (tmp_path / "ran").exists()


def test_other_models_are_refused(tmp_path):
    save_safetensors(tmp_path / "unet.safetensors", {"input_blocks.0.0.weight": torch.zeros(4)})
    with pytest.raises(CheckpointError, match="no SAM model of the kinds ViT-B, ViT-L or ViT-H"):
        load_segmenter(tmp_path / "unet.safetensors")


def test_a_vit_with_keys_beyond_sam_is_refused(tmp_path):
    tensors = {**vit_sam().state_dict(), "mask_decoder.hf_token.weight": torch.zeros(1, 32)}
    save_safetensors(tmp_path / "hq.safetensors", tensors)
    with pytest.raises(CheckpointError, match="1 unexpected .mask_decoder.hf_token.weight"):
        load_segmenter(tmp_path / "hq.safetensors")


def test_small_weights_of_another_version_are_refused(tmp_path):
    own = {"family": "followclick_segmenter"}
    for params in ('{"wings": 2}', "[", '{"image_size": 100}'):
        save_safetensors(tmp_path / "future.safetensors", {"a": torch.zeros(1)}, {**own, "params": params})
        with pytest.raises(ValueError, match=r"this version does not know|multiple of 32"):
            load_segmenter(tmp_path / "future.safetensors")


def test_candidates_are_values():
    found = MaskCandidates(np.zeros((2, 4, 4), bool), np.array([0.9, 0.1], np.float32))
    with pytest.raises(AttributeError):
        found.scores = found.masks


@pytest.mark.parametrize("opencv", [True, False])
def test_only_the_parts_under_including_clicks_are_kept(opencv, monkeypatch):
    if not opencv:
        monkeypatch.setitem(sys.modules, "cv2", None)
    logits = torch.full((1, 2, 16, 16), -1.0)
    logits[:, :, 2:5, 2:5] = 2  # three parts of which two are clicked, one of them by an excluding click
    logits[:, :, 2:5, 8:11] = 3
    logits[:, 0, 10:14, 2:14] = 4
    logits[:, 1, 3, 4:9] = 1  # in the second mask the first two are one
    points = torch.tensor([[[3.5 / 16, 3.5 / 16], [9.5 / 16, 3.5 / 16], [1.0, 1.0]]])
    kept = keep_clicked_parts(logits, points, torch.tensor([[1.0, 0.0, 1.0]]))[0] > 0
    expected = torch.zeros(2, 16, 16, dtype=torch.bool)
    expected[:, 2:5, 2:5] = True
    expected[1, 2:5, 8:11] = True
    expected[1, 3, 4:9] = True
    assert torch.equal(kept, expected)


def test_a_mask_beside_the_click_is_left_as_it_is():
    logits = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    logits[0, 0, 8, 8] = -1
    points = torch.tensor([[[8.5 / 16, 8.5 / 16]]])
    assert torch.equal(keep_clicked_parts(logits, points, torch.ones(1, 1)), logits)


def test_small_model_fits_in_eight_megabytes():
    sam = build_small_sam(SmallSamParams())
    assert sum(value.numel() for value in sam.state_dict().values()) * 2 < 8e6


def test_any_side_that_32_divides_is_an_input():
    for size in (256, 320, 512):
        sam = build_small_sam(SmallSamParams(image_size=size, embed_dim=32, num_heads=2, trunk_width=0.25))
        features = sam.image_encoder(torch.zeros(1, 3, size, size))
        assert F.pixel_shuffle(features[:, 64:], 4).shape[-2:] == (size // 2, size // 2)
