"""The tokenizer against CLIP's published tokens, the transformer against PyTorch's own, and files with few words."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from followclick_core.checkpoint import CheckpointError, load_safetensors, save_safetensors
from followclick_core.data.verbs import SYNONYMS
from followclick_core.models.text_encoder import (
    END,
    MAX_TOKENS,
    START,
    UNKNOWN,
    VOCABULARY,
    TextEncoder,
    TextEncoderParams,
    load_text_encoder,
    save_text_encoder,
    tokenize,
)
from followclick_core.presets import get_preset

TINY = TextEncoderParams(width=16, layers=2, num_heads=2)
SENTENCES = [
    "a photo of a cat",
    "Flap  the\twings!",
    "it's 2024, isn't it?",
    "the dog's ears aren't you're I've we'll I'd I'm",
    "Überraschung: café, naïve, smörgåsbord",
    "日本語 и русский",
    "🐶 runs... fast!!! (very) #1",
    "100%  don't-stop_me @50.5",
    "",
    "  ",
    "antidisestablishmentarianism xqzzkv",
    "cafe\u0301",
    *(phrase for phrases in SYNONYMS.values() for phrase in phrases),
]


def words(text):
    """Tokens of a text without start and end marks."""
    row = tokenize([text])[0].tolist()
    assert row[0] == START
    return row[1 : row.index(END)]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    model = TextEncoder(TINY).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("a photo of a dog", [320, 1125, 539, 320, 1929]),
        ("hello world", [3306, 1002]),
        ("A Photo  of\na CAT ", [320, 1125, 539, 320, 2368]),
        ("a diagram", [320, 22697]),
        ("2024", [273, 271, 273, 275]),  # digits one by one
        ("it's", [585, 568]),
        ("", []),
        (" ", []),
    ],
)
def test_tokens_are_clips_published_ones(text, ids):
    assert words(text) == ids


def test_a_row_is_start_text_end_and_end_marks_to_the_full_length():
    row = tokenize(["a photo of a cat"])[0]
    assert row.dtype == torch.int64
    assert row.tolist() == [49406, 320, 1125, 539, 320, 2368] + [49407] * 71


def test_a_long_text_is_cut_at_77_tokens_with_its_end_mark():
    row = tokenize(["cat " * 200])[0].tolist()
    assert row == [START] + [2368] * 75 + [END]
    assert tokenize(["cat " * 75])[0].tolist() == row
    assert tokenize(["cat " * 74])[0].tolist() == [START] + [2368] * 74 + [END, END]


def test_each_text_of_a_batch_has_a_row_of_its_own():
    batch = tokenize(SENTENCES[:6])
    assert batch.shape == (6, MAX_TOKENS)
    for row, text in zip(batch, SENTENCES[:6], strict=True):
        assert torch.equal(row, tokenize([text])[0])
    assert tokenize([*SENTENCES]).max() < VOCABULARY


def test_tokens_are_the_hosts(tmp_path):
    """Of every phrase that the demo learned, of signs, accents and other scripts: as ComfyUI has them."""
    path = Path(__file__).parents[1] / "find_comfyui.py"
    spec = importlib.util.spec_from_file_location("find_comfyui_for_tokens", path)
    finder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(finder)
    comfyui, reason = finder.find_comfyui()
    if comfyui is None:
        pytest.skip(f"the host's tokenizer needs ComfyUI, and {reason}")
    (tmp_path / "texts.json").write_text(json.dumps(SENTENCES))
    program = (
        "import json, sys; from transformers import CLIPTokenizer; "
        "tokenizer = CLIPTokenizer.from_pretrained(sys.argv[1]); "
        "print(json.dumps([tokenizer(text)['input_ids'] for text in json.load(open(sys.argv[2]))]))"
    )
    folder = comfyui.folder / "comfy" / "sd1_tokenizer"
    command = [comfyui.python, "-c", program, str(folder), str(tmp_path / "texts.json")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    for text, theirs in zip(SENTENCES, json.loads(out.splitlines()[-1]), strict=True):
        assert [START, *words(text), END] == theirs, text


def test_the_transformer_is_clips(encoder):
    """By PyTorch's encoder layers: pre-norm, causal, quick GELU."""
    tokens = tokenize(["a photo of a cat", "flap the wings"])
    state = encoder.state_dict()
    h = state["text_model.embeddings.token_embedding.weight"][tokens]
    h = h + state["text_model.embeddings.position_embedding.weight"]
    for index in range(TINY.layers):
        own = {key.split(f"layers.{index}.")[1]: v for key, v in state.items() if f"layers.{index}." in key}
        layer = nn.TransformerEncoderLayer(
            16, 2, 64, dropout=0, activation=lambda x: x * torch.sigmoid(1.702 * x), batch_first=True, norm_first=True
        ).eval()
        names = {"linear1": "mlp.fc1", "linear2": "mlp.fc2", "norm1": "layer_norm1", "norm2": "layer_norm2"}
        names["self_attn.out_proj"] = "self_attn.out_proj"
        weights = {f"{new}.{p}": own[f"{old}.{p}"] for new, old in names.items() for p in ("weight", "bias")}
        for p in ("weight", "bias"):
            weights[f"self_attn.in_proj_{p}"] = torch.cat([own[f"self_attn.{x}_proj.{p}"] for x in "qkv"])
        layer.load_state_dict(weights)
        h = layer(h, src_mask=nn.Transformer.generate_square_subsequent_mask(MAX_TOKENS))
    norm = "text_model.final_layer_norm"
    h = nn.functional.layer_norm(h, (16,), state[f"{norm}.weight"], state[f"{norm}.bias"])
    torch.testing.assert_close(encoder(tokens), h, atol=1e-5, rtol=1e-4)


def test_a_token_sees_only_what_stands_before_it(encoder):
    one, other = encoder.encode(["a photo of a cat"])[0], encoder.encode(["a photo of a dog"])[0]
    assert torch.equal(one[:5], other[:5]) and (one[5:] - other[5:]).abs().amax(1).min() > 1e-4


def test_sd15s_text_encoder_has_the_keys_of_huggingfaces_clip():
    """196 tensors and 123,060,480 parameters, as openai/clip-vit-large-patch14's CLIPTextModel."""
    with torch.device("meta"):
        state = TextEncoder(get_preset("sd15").text).state_dict()
    assert len(state) == 196 and sum(value.numel() for value in state.values()) == 123_060_480
    assert state["text_model.embeddings.position_embedding.weight"].shape == (77, 768)
    assert state["text_model.encoder.layers.11.mlp.fc1.weight"].shape == (3072, 768)


def test_unknown_words_get_the_unknown_embedding_after_a_round_trip(encoder, tmp_path):
    path = tmp_path / "text.safetensors"
    known = tokenize(["a photo of a cat"])[0].unique()
    save_text_encoder(path, encoder, known, {"preset": "tiny"})
    assert path.stat().st_size < 60_000  # not all of the 49,408 rows
    loaded = load_text_encoder(path)
    assert loaded.params == TINY
    table = loaded.text_model.embeddings.token_embedding.weight
    original = encoder.text_model.embeddings.token_embedding.weight.half().float()
    assert torch.equal(table[known], original[known])
    strange = torch.ones(VOCABULARY, dtype=torch.bool)
    strange[known] = False
    assert (table[strange] == original[UNKNOWN]).all()
    torch.testing.assert_close(
        loaded.encode(["a photo of a cat"]), encoder.encode(["a photo of a cat"]), atol=1e-2, rtol=1e-2
    )
    assert torch.equal(loaded.encode(["a dog"]), loaded.encode(["a horse"]))
    assert not torch.equal(loaded.encode(["a dog"]), loaded.encode(["a cat"]))


def test_another_file_is_refused(tmp_path):
    save_safetensors(tmp_path / "x.safetensors", {"text_model.x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="x.safetensors is no text encoder of this pack"):
        load_text_encoder(tmp_path / "x.safetensors")


def test_a_text_encoder_without_one_of_its_tensors_is_refused(encoder, tmp_path):
    path = tmp_path / "x.safetensors"
    save_text_encoder(path, encoder, torch.arange(4))
    tensors, metadata = load_safetensors(path)
    for key in ("text_model.final_layer_norm.bias", "text_model.embeddings.token_embedding.rows"):
        save_safetensors(path, {name: value for name, value in tensors.items() if name != key}, metadata)
        with pytest.raises(CheckpointError, match="x.safetensors"):
            load_text_encoder(path)
