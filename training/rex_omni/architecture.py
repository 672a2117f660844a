"""The tiny model: Rex-Omni's own class with small numbers, and a forward pass for training it.

`TrainingForward` computes what ``Qwen2_5_VLForConditionalGeneration.forward`` computes, over the
same modules, for a batch of pictures that share one grid. It is faster on a CPU: pictures are
batched in the vision part instead of run one after another, attention is plain matrix products,
and one run of the vision part serves every prompt about a picture. ``test_forward.py`` holds the
two against each other.

A grid is (rows, columns) of cells. A cell is 28 x 28 px, which is 2 x 2 patches of 14 px and one
image token.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLConfig
from transformers import Qwen2_5_VLForConditionalGeneration as TinyRexOmni
from transformers.vision_utils import get_vision_position_ids

from training.coordinates import COORDINATES, fourier_features

PATCH_PX = 14
CELL_PX = 28
MIN_PIXELS = 112 * 112
MAX_PIXELS = 196 * 196
PATCH_NUMBERS = 3 * PATCH_PX * PATCH_PX

Grid = tuple[int, int]

# The published image processor's numbers.
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def make_config(
    tokenizer: PreTrainedTokenizerBase, width: int = 128, layers: int = 4
) -> Qwen2_5_VLConfig:
    """Configuration with `width` channels and `layers` blocks in both the vision and the text part.

    Every vision block attends to the whole picture: at 16 to 49 cells, windows would only cut
    people apart. The rotary frequencies of the text part are dealt to time, row and column in
    turns, so that each of the three has slow and fast ones, and the base is low because a sequence
    has hundreds of positions, not tens of thousands.
    """
    ids = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 30.0,
            "mrope_section": [1, 2, 2, 1, 2, 2, 1, 2, 3],
        },
    }
    vision = {
        "depth": layers,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_heads": width // 32,
        "out_hidden_size": width,
        "patch_size": PATCH_PX,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": list(range(layers)),
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def initialize(
    config: Qwen2_5_VLConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> TinyRexOmni:
    """A model with fresh float32 weights.

    Coordinate embeddings start as Fourier features of the number they stand for, in a random
    rotation: neighbouring coordinates start out similar instead of having to become so.
    """
    torch.manual_seed(seed)
    model = TinyRexOmni(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name and "lm_head" not in name:
                ends_branch = name.endswith(
                    ("o_proj.weight", "down_proj.weight", "attn.proj.weight")
                )
                weight.normal_(0, (0.4 if ends_branch else 0.8) / math.sqrt(weight.shape[1]))
        model.model.visual.patch_embed.proj.weight.normal_(0, 0.02)
        embeddings = model.model.language_model.embed_tokens.weight.normal_(0, 0.05)
        first = tokenizer.convert_tokens_to_ids("<0>")
        position = torch.arange(COORDINATES) / COORDINATES
        embeddings[first : first + COORDINATES] = 0.7 * fourier_features(
            position, embeddings.shape[1]
        )
    model.tie_weights()
    return model


def to_patches(images: np.ndarray) -> Tensor:
    """Pictures as the image processor would hand them over, less its doubling in time.

    Args:
        images: (n, rows * 28, columns * 28, 3) uint8, RGB.

    Returns:
        (n, rows * columns * 4, 588) float32, normalized; the four patches of a cell follow each
        other, and a patch is channel, row, column.
    """
    normalized = (np.asarray(images, np.float32) / 255 - _MEAN) / _STD
    n, height, width, _ = normalized.shape
    rows, columns = height // CELL_PX, width // CELL_PX
    blocks = normalized.reshape(n, rows, 2, PATCH_PX, columns, 2, PATCH_PX, 3)
    blocks = blocks.transpose(0, 1, 4, 2, 5, 7, 3, 6)
    return torch.from_numpy(np.ascontiguousarray(blocks)).view(n, -1, PATCH_NUMBERS)


class TrainingForward:
    """Forward pass over the modules of a `TinyRexOmni`, batched over pictures of one grid."""

    def __init__(self, model: TinyRexOmni, prefix_length: int):
        """
        Args:
            model: the model whose modules are run; its attention heads are 32 channels wide.
            prefix_length: number of tokens before the first image token.
        """
        self.visual = model.model.visual
        self.text = model.model.language_model
        self.prefix_length = prefix_length
        self.dtype = self.text.embed_tokens.weight.dtype
        self._vision_rotary_of: dict[Grid, tuple[Tensor, Tensor]] = {}

    def vision(self, patches: Tensor, grid: Grid) -> Tensor:
        """Image tokens (n, cells, width) of patches (n, cells * 4, 588)."""
        n, length, _ = patches.shape
        # The processor repeats a still picture in time; summing the kernel over time does the same.
        kernel = self.visual.patch_embed.proj.weight.sum(2).flatten(1)
        hidden = patches.to(self.dtype) @ kernel.T
        rotary = self._vision_rotary(grid)
        for block in self.visual.blocks:
            attention = block.attn
            qkv = attention.qkv(_rms_norm(hidden, block.norm1))
            q, k, v = qkv.view(n, length, 3, attention.num_heads, -1).unbind(2)
            hidden = hidden + attention.proj(_attend(q, k, v, rotary, None))
            hidden = hidden + _swiglu(_rms_norm(hidden, block.norm2), block.mlp)
        merger = self.visual.merger
        cells = _rms_norm(hidden, merger.ln_q).reshape(n, length // 4, -1)
        return merger.mlp(cells)

    def language(
        self, vision: Tensor, tokens: Tensor, grid: Grid, middle_layer: int
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of sequences that start with the same prefix and then show one picture.

        Args:
            vision: (n, cells, width), the picture of every sequence.
            tokens: (n, length) int64, padded on the right, which causal attention never sees.
            grid: the grid of the pictures.
            middle_layer: index of the layer whose output on the picture is wanted too.

        Returns:
            Final hidden states (n, length, width), and the middle layer's output on the image
            tokens and the token after them (n, cells + 1, width).
        """
        n, length = tokens.shape
        start, end = self.prefix_length, self.prefix_length + vision.shape[1]
        embedded = self.text.embed_tokens(tokens)
        hidden = torch.cat([embedded[:, :start], vision, embedded[:, end:]], dim=1)
        rotary = self._text_rotary(grid, length)
        mask = torch.full((length, length), float("-inf"), dtype=self.dtype).triu(1)
        middle = hidden
        for index, layer in enumerate(self.text.layers):
            attention = layer.self_attn
            normed = _rms_norm(hidden, layer.input_layernorm)
            q, k, v = (
                projection(normed).view(n, length, -1, attention.head_dim)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            hidden = hidden + attention.o_proj(_attend(q, k, v, rotary, mask))
            normed = _rms_norm(hidden, layer.post_attention_layernorm)
            hidden = hidden + _swiglu(normed, layer.mlp)
            if index == middle_layer:
                middle = hidden[:, start : end + 1]
        return _rms_norm(hidden, self.text.norm), middle

    def _vision_rotary(self, grid: Grid) -> tuple[Tensor, Tensor]:
        if grid not in self._vision_rotary_of:
            patch_grid = torch.tensor([[1, 2 * grid[0], 2 * grid[1]]])
            positions = get_vision_position_ids(patch_grid, 2)
            cos, sin = self.visual.rotary_pos_emb(torch.zeros(1), positions)
            self._vision_rotary_of[grid] = (
                cos[:, None].to(self.dtype),
                sin[:, None].to(self.dtype),
            )
        return self._vision_rotary_of[grid]

    def _text_rotary(self, grid: Grid, length: int) -> tuple[Tensor, Tensor]:
        """Multimodal rotary embeddings: cells count rows and columns, text goes on after them."""
        rows, columns = grid
        start, end = self.prefix_length, self.prefix_length + rows * columns
        positions = torch.arange(length).repeat(3, 1)
        cell = torch.arange(rows * columns)
        positions[0, start:end] = start
        positions[1, start:end] = start + cell // columns
        positions[2, start:end] = start + cell % columns
        positions[:, end:] += max(rows, columns) - rows * columns
        cos, sin = self.text.rotary_emb(torch.zeros(1, dtype=self.dtype), positions[:, None])
        return cos[0][:, None], sin[0][:, None]


def _rms_norm(hidden: Tensor, norm: nn.Module) -> Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)


def _swiglu(hidden: Tensor, mlp: nn.Module) -> Tensor:
    return mlp.down_proj(F.silu(mlp.gate_proj(hidden)) * mlp.up_proj(hidden))


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * cos + turned * sin


def _attend(
    q: Tensor, k: Tensor, v: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None
) -> Tensor:
    """Multi-head attention of (n, length, heads, channels) inputs, heads joined in the result.

    Plain matrix products: on a CPU the fused kernel's backward pass is slow in bfloat16.
    """
    q = _rotate(q, rotary).transpose(1, 2) * q.shape[-1] ** -0.5
    k = _rotate(k, rotary).permute(0, 2, 3, 1)
    scores = q @ k
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
