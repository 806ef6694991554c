"""CLIP's text transformer at any size, with Stable Diffusion 1's tokenizer.

Keys are those of Hugging Face's CLIPTextModel, so that the host's text encoder class takes them.
"""

import functools
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..checkpoint import (
    WEIGHTS_DIR,
    CheckpointError,
    load_safetensors,
    load_strict,
    load_tensors,
    params_from,
    save_safetensors,
)
from ..shapes import Tokens

MAX_TOKENS = 77
VOCABULARY = 49_408
START, END = 49_406, 49_407
# A rare symbol's token stands for every word that training never saw.
UNKNOWN = 49_405
EMBEDDING = "text_model.embeddings.token_embedding"


@dataclass(frozen=True)
class TextEncoderParams:
    width: int = 768
    layers: int = 12
    num_heads: int = 12


class CLIPAttention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tokens) -> Tokens:
        q, k, v = (
            rearrange(layer(x), "b n (heads d) -> b heads n d", heads=self.num_heads)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(rearrange(h, "b heads n d -> b n (heads d)"))


class CLIPMLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))  # CLIP's quick GELU


class CLIPLayer(nn.Module):
    def __init__(self, params: TextEncoderParams):
        super().__init__()
        self.self_attn = CLIPAttention(params.width, params.num_heads)
        self.layer_norm1 = nn.LayerNorm(params.width)
        self.mlp = CLIPMLP(params.width)
        self.layer_norm2 = nn.LayerNorm(params.width)

    def forward(self, x: Tokens) -> Tokens:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEmbeddings(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.position_embedding = nn.Embedding(MAX_TOKENS, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, tokens: Tensor) -> Tokens:
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class CLIPEncoder(nn.Module):
    def __init__(self, params: TextEncoderParams):
        super().__init__()
        self.layers = nn.ModuleList(CLIPLayer(params) for _ in range(params.layers))


class CLIPTextTransformer(nn.Module):
    def __init__(self, params: TextEncoderParams):
        super().__init__()
        self.embeddings = CLIPEmbeddings(params.width)
        self.encoder = CLIPEncoder(params)
        self.final_layer_norm = nn.LayerNorm(params.width)

    def forward(self, tokens: Tensor) -> Tokens:
        x = self.embeddings(tokens)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.final_layer_norm(x)


class TextEncoder(nn.Module):
    """Text to 77 tokens' embeddings, b 77 width: the `context` of cross-attention."""

    def __init__(self, params: TextEncoderParams):
        super().__init__()
        self.params = params
        self.text_model = CLIPTextTransformer(params)

    def forward(self, tokens: Tensor) -> Tokens:
        return self.text_model(tokens)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Embed texts; what goes beyond 75 tokens is cut, as in Stable Diffusion."""
        device = self.text_model.final_layer_norm.weight.device
        return self(tokenize(texts).to(device))


def tokenize(texts: Sequence[str]) -> Tensor:
    """Token numbers, int64 [b, 77]: start, the text, then end marks to the full length."""
    rows = []
    for encoding in _tokenizer().encode_batch(list(texts)):
        ids = [START, *encoding.ids[: MAX_TOKENS - 2], END]
        rows.append(ids + [END] * (MAX_TOKENS - len(ids)))
    return torch.tensor(rows, dtype=torch.long)


@functools.lru_cache(maxsize=1)
def _tokenizer():
    """CLIP's byte-pair encoding (Radford et al. 2021), rebuilt from its list of merges."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    with gzip.open(WEIGHTS_DIR / "clip_merges.txt.gz", "rt", encoding="utf-8") as file:
        merges = [(first, second) for first, second in map(str.split, file.read().splitlines())]
    # CLIP's own order of the bytes: printable ones first, then the rest moved to free code points.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words_and_signs = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words_and_signs, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def save_text_encoder(path: str | Path, model: TextEncoder, known: Tensor, notes: dict[str, str] | None = None) -> None:
    """Write as fp16 safetensors with the embeddings of the `known` token numbers only.

    All other words get the embedding of UNKNOWN when the file is loaded, so a phrase with a strange word keeps its
    meaning and the file stays small.
    """
    tensors = {key: value.half() for key, value in model.state_dict().items()}
    table = tensors.pop(f"{EMBEDDING}.weight")
    tensors[f"{EMBEDDING}.known"] = known.cpu()
    tensors[f"{EMBEDDING}.rows"] = table[known]
    tensors[f"{EMBEDDING}.unknown"] = table[UNKNOWN]
    metadata = {"format": "followclick.text_encoder", "params": json.dumps(asdict(model.params)), **(notes or {})}
    save_safetensors(path, tensors, metadata)


def load_text_encoder_tensors(path: str | Path) -> tuple[dict[str, Tensor], TextEncoderParams]:
    """The full CLIP-shaped state dict of a file written by `save_text_encoder`, in float32, and its numbers."""
    tensors, metadata = load_safetensors(path)
    table_parts = {f"{EMBEDDING}.{part}" for part in ("known", "rows", "unknown")}
    if metadata.get("format") != "followclick.text_encoder" or not table_parts <= tensors.keys():
        raise CheckpointError(
            f"{Path(path).name} is no text encoder of this pack; use the demo's text_encoder.safetensors."
        )
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    known, rows = tensors.pop(f"{EMBEDDING}.known"), tensors.pop(f"{EMBEDDING}.rows")
    table = tensors.pop(f"{EMBEDDING}.unknown").repeat(VOCABULARY, 1)
    table[known] = rows
    tensors[f"{EMBEDDING}.weight"] = table
    params = params_from(metadata, lambda text: TextEncoderParams(**json.loads(text)), Path(path).name)
    return tensors, params


def known_tokens(path: str | Path) -> Tensor:
    """Numbers of the words that the encoder in this file has met in training, int64 [n]."""
    return load_safetensors(path)[0][f"{EMBEDDING}.known"]


def load_text_encoder(path: str | Path) -> TextEncoder:
    """Read a text encoder, in float32 on the CPU."""
    tensors, params = load_text_encoder_tensors(path)
    model = TextEncoder(params)
    load_strict(model, tensors, Path(path).name)
    return model.eval()


def load_sd_text_encoder(path: str | Path) -> TextEncoder:
    """The text encoder inside a Stable Diffusion 1 checkpoint (CLIP ViT-L's), in float32 on the CPU.

    Raises:
        CheckpointError: The file has none, or one of another Stable Diffusion.
    """
    prefix, name = "cond_stage_model.transformer.", Path(path).name
    tensors = {
        key.removeprefix(prefix): value.float()
        for key, value in load_tensors(path)[0].items()
        # Older files store the numbers 0 to 76 too.
        if key.startswith(prefix) and not key.endswith("position_ids")
    }
    if not tensors:
        raise CheckpointError(f"{name} holds no text encoder of Stable Diffusion 1; choose a complete checkpoint.")
    with torch.device("meta"):
        model = TextEncoder(TextEncoderParams())
    model.to_empty(device="cpu")
    load_strict(model, tensors, name)
    return model.eval()
