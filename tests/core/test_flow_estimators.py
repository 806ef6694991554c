"""Flow estimators: DIS against a known shift, RAFT from weight files (random ones) of both sizes."""

import numpy as np
import pytest
import torch

from followclick_core.checkpoint import CheckpointError, save_safetensors
from followclick_core.flow import dis_flow, load_raft


def textured(width=128, height=96, seed=0):
    """Smooth noise, so that a shift by whole pixels can be recognised."""
    noise = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic")[0].clamp(0, 1)
    return (image.permute(1, 2, 0) * 255).byte().numpy()


@pytest.fixture(scope="module")
def raft_small_tensors():
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    return raft_small(weights=None).state_dict()


def test_dis_measures_a_shift_right_and_down():
    image = textured()
    shifted = np.roll(image, (2, 5), axis=(0, 1))
    flow = dis_flow()(image, shifted)
    assert flow.shape == (96, 128, 2)
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), [5, 2], atol=0.1)


def test_dis_gives_the_same_flow_again():
    first, second = textured(seed=1), textured(seed=2)
    np.testing.assert_array_equal(dis_flow()(first, second), dis_flow()(first, second))


def test_frames_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="differ in size"):
        dis_flow()(textured(128), textured(64))


def test_float_frames_are_refused():
    frame = textured().astype(np.float32)
    with pytest.raises(ValueError, match="uint8"):
        dis_flow()(frame, frame)


def test_frames_too_small_for_dis_are_refused():
    frame = np.zeros((8, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="too small"):
        dis_flow()(frame, frame)


def test_raft_takes_a_frame_size_that_its_stride_does_not_divide(tmp_path, raft_small_tensors):
    torch.save(raft_small_tensors, tmp_path / "raft_small.pth")
    flow = load_raft(tmp_path / "raft_small.pth")(textured(100, 52), textured(100, 52, seed=1))
    assert flow.shape == (52, 100, 2)
    assert flow.dtype == np.float32
    assert np.isfinite(flow).all()


def test_raft_agrees_with_torchvision_on_frames_of_its_own_stride(tmp_path, raft_small_tensors):
    from torchvision.models.optical_flow import raft_small

    save_safetensors(tmp_path / "raft.safetensors", raft_small_tensors)
    model = raft_small(weights=None).eval()
    model.load_state_dict(raft_small_tensors)
    first, second = textured(136, 128), textured(136, 128, seed=1)
    batch = [torch.from_numpy(frame).permute(2, 0, 1)[None] / 127.5 - 1 for frame in (first, second)]
    with torch.inference_mode():
        reference = model(*batch)[-1][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(load_raft(tmp_path / "raft.safetensors")(first, second), reference, atol=1e-4)


def test_raft_large_is_told_from_small_by_its_first_layer(tmp_path):
    from torchvision.models.optical_flow import raft_large

    torch.save(raft_large(weights=None).state_dict(), tmp_path / "anything.pth")
    flow = load_raft(tmp_path / "anything.pth")(textured(128, 128), textured(128, 128, seed=1))
    assert flow.shape == (128, 128, 2)


def test_a_file_of_another_model_is_refused(tmp_path):
    save_safetensors(tmp_path / "unet.safetensors", {"input_blocks.0.0.weight": torch.zeros(4)})
    with pytest.raises(CheckpointError, match="no RAFT weights"):
        load_raft(tmp_path / "unet.safetensors")


def test_raft_weights_with_a_layer_missing_are_refused(tmp_path, raft_small_tensors):
    tensors = dict(raft_small_tensors)
    del tensors["update_block.flow_head.conv2.bias"]
    save_safetensors(tmp_path / "raft.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"1 missing \(update_block.flow_head.conv2.bias\)"):
        load_raft(tmp_path / "raft.safetensors")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("this must not run",)

    torch.save({"feature_encoder.convnormrelu.0.weight": Evil()}, tmp_path / "raft.pth")
    with pytest.raises(CheckpointError, match="run code"):
        load_raft(tmp_path / "raft.pth")


def test_a_missing_weights_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="raft.pth"):
        load_raft(tmp_path / "raft.pth")
