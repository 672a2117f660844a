"""The tiny model: Florence-2's own class with small numbers, and a forward pass for training it.

`TrainingForward` computes what ``Florence2ForConditionalGeneration.forward`` computes, over the
same modules. It is faster on a CPU: channels stand last throughout, attention is plain matrix
products, and one run of the vision part serves every prompt about a picture. ``test_forward.py``
holds the two against each other.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Florence2Config, PreTrainedTokenizerBase
from transformers import Florence2ForConditionalGeneration as TinyFlorence2

from training.coordinates import COORDINATES, fourier_features
from training.florence_2.tokenizer import GRID, IMAGE_MEAN, IMAGE_STD

WIDTH = 128

_PATCH_PX = 8
_PATCH_WIDTH = 64
_HEADS = 4


def make_config(tokenizer: PreTrainedTokenizerBase) -> Florence2Config:
    """Two DaViT stages, 20 x 20 patches of 8 px and 10 x 10 cells, under a small BART.

    The window of the second stage is the whole picture.
    """
    ids = tokenizer.convert_tokens_to_ids
    special = {
        "bos_token_id": ids("<s>"),
        "eos_token_id": ids("</s>"),
        "pad_token_id": ids("<pad>"),
        "decoder_start_token_id": ids("</s>"),
    }
    vision = {
        "depths": (1, 3),
        "patch_size": (_PATCH_PX, 2),
        "patch_stride": (_PATCH_PX, 2),
        "patch_padding": (0, 0),
        "patch_prenorm": (False, True),
        "embed_dim": (_PATCH_WIDTH, WIDTH),
        "num_heads": (2, _HEADS),
        "num_groups": (2, _HEADS),
        "window_size": GRID,
        "mlp_ratio": 2.0,
        "projection_dim": WIDTH,
        "drop_path_rate": 0.0,
        "max_position_embeddings": GRID,
        "max_temporal_embeddings": 4,
    }
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer) + -len(tokenizer) % 8,
        "d_model": WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": _HEADS,
        "decoder_attention_heads": _HEADS,
        "encoder_ffn_dim": 2 * WIDTH,
        "decoder_ffn_dim": 2 * WIDTH,
        "max_position_embeddings": 512,
        "dropout": 0.0,
        # BART would end every answer at the length limit as if the model had said so.
        "forced_eos_token_id": None,
    }
    return Florence2Config(
        vision_config=vision,
        text_config=text | special,
        image_token_id=ids("<image>"),
        **special,
    )


def initialize(
    config: Florence2Config, tokenizer: PreTrainedTokenizerBase, seed: int
) -> TinyFlorence2:
    """A model with fresh float32 weights.

    Embeddings of locations and of rows and columns start as Fourier features of what they stand
    for: neighbours start out similar instead of having to become so.
    """
    torch.manual_seed(seed)
    model = TinyFlorence2(config).float()
    language = model.model.language_model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and not any(s in name for s in ("embed", "shared", "lm_head")):
                ends_branch = any(s in name for s in ("out_proj", "fc2", ".proj."))
                weight.normal_(0, (0.5 if ends_branch else 0.8) / math.sqrt(weight[0].numel()))
        language.shared.weight.normal_(0, 0.05)
        first = tokenizer.convert_tokens_to_ids("<loc_0>")
        position = torch.arange(COORDINATES) / COORDINATES
        language.shared.weight[first : first + COORDINATES] = 0.7 * fourier_features(
            position, WIDTH
        )
        places = model.model.multi_modal_projector.image_position_embed
        for embedding in (places.row_embeddings, places.column_embeddings):
            width = embedding.weight.shape[1]
            center = (torch.arange(GRID) + 0.5) / GRID
            embedding.weight.copy_(
                0.7 * math.sqrt(width) * fourier_features(center, width, highest=5.0)
            )
        for part in (language.encoder, language.decoder):
            part.embed_positions.weight.normal_(0, 0.05)
    model.tie_weights()
    return model


def normalize(images: np.ndarray) -> Tensor:
    """(n, height, width, 3) float32, as the image processor normalizes uint8 RGB."""
    mean = np.array(IMAGE_MEAN, np.float32) * 255
    deviation = np.array(IMAGE_STD, np.float32) * 255
    return torch.from_numpy((images.astype(np.float32) - mean) / deviation)


class TrainingForward:
    """Forward pass over the modules of a `TinyFlorence2`."""

    def __init__(self, model: TinyFlorence2):
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.language_model = model.model.language_model
        self.embeddings = model.model.language_model.shared.weight

    def vision(self, pixels: Tensor) -> Tensor:
        """Image tokens (n, 101, width) of pictures (n, 160, 160, 3): their mean, then the cells."""
        hidden = pixels.to(self.embeddings.dtype)
        for conv, blocks in zip(self.tower.convs, self.tower.blocks, strict=True):
            hidden = _embed_patches(hidden, conv)
            for block in blocks:
                hidden = _channel_block(
                    _spatial_block(hidden, block.spatial_block), block.channel_block
                )
        n, rows, columns, width = hidden.shape
        places = self.projector.image_position_embed
        column = places.column_embeddings.weight[None, :columns].expand(rows, -1, -1)
        row = places.row_embeddings.weight[:rows, None].expand(-1, columns, -1)
        still = self.projector.visual_temporal_embed.pos_idx_to_embed[0].to(hidden.dtype)
        cells = (hidden + torch.cat([column, row], dim=-1) + still).reshape(n, -1, width)
        tokens = torch.cat([cells.mean(1, keepdim=True), cells], dim=1)
        return self.projector.image_proj_norm(self.projector.image_projection(tokens))

    def language(
        self, vision: Tensor, prompts: Tensor, is_prompt: Tensor, answers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode pictures with prompts, and run the decoder over answers.

        Args:
            vision: (n, tokens, width), the picture of every prompt.
            prompts: (n, length) int64, padded on the right.
            is_prompt: (n, length) bool, False on padding.
            answers: (n, steps) int64, what the decoder has said so far at every step.

        Returns:
            Final decoder states (n, steps, width), and encoder states of the image (n, tokens,
            width).
        """
        encoder, decoder = self.language_model.encoder, self.language_model.decoder
        tokens = vision.shape[1]
        hidden = torch.cat([vision, F.embedding(prompts, self.embeddings)], dim=1)
        hidden = _with_positions(hidden, encoder)
        seen = torch.zeros(len(prompts), 1, 1, hidden.shape[1], dtype=hidden.dtype)
        seen[:, 0, 0, tokens:].masked_fill_(~is_prompt, float("-inf"))
        for layer in encoder.layers:
            hidden = layer.self_attn_layer_norm(
                hidden + _attend(layer.self_attn, hidden, hidden, seen)
            )
            hidden = layer.final_layer_norm(hidden + layer.fc2(F.gelu(layer.fc1(hidden))))

        steps = answers.shape[1]
        said = _with_positions(F.embedding(answers, self.embeddings), decoder)
        past = torch.full((steps, steps), float("-inf"), dtype=said.dtype).triu(1)
        for layer in decoder.layers:
            said = layer.self_attn_layer_norm(said + _attend(layer.self_attn, said, said, past))
            said = layer.encoder_attn_layer_norm(
                said + _attend(layer.encoder_attn, said, hidden, seen)
            )
            said = layer.final_layer_norm(said + layer.fc2(F.gelu(layer.fc1(said))))
        return said, hidden[:, :tokens]


def _embed_patches(hidden: Tensor, conv: nn.Module) -> Tensor:
    """Patches that do not overlap, as one matrix product."""
    if conv.pre_norm:
        hidden = conv.norm(hidden)
    n, height, width, channels = hidden.shape
    side = conv.patch_size
    rows, columns = height // side, width // side
    patches = hidden.view(n, rows, side, columns, side, channels).transpose(2, 3)
    kernel = conv.conv.weight.permute(0, 2, 3, 1).flatten(1)
    hidden = patches.reshape(n, rows, columns, -1) @ kernel.T + conv.conv.bias
    return hidden if conv.pre_norm else conv.norm(hidden)


def _spatial_block(hidden: Tensor, block: nn.Module) -> Tensor:
    n, height, width, channels = hidden.shape
    hidden = _depthwise(hidden, block.conv1)
    attention = block.window_attn
    side = attention.window_size
    rows, columns = height // side, width // side
    windows = block.norm1(hidden).view(n, rows, side, columns, side, channels).transpose(2, 3)
    windows = windows.reshape(-1, side * side, channels)
    qkv = attention.qkv(windows).view(len(windows), side * side, 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = (q * attention.scale @ k.transpose(-1, -2)).softmax(-1) @ v
    mixed = attention.proj(mixed.transpose(1, 2).flatten(2))
    mixed = mixed.view(n, rows, columns, side, side, channels).transpose(2, 3)
    hidden = hidden + mixed.reshape(n, height, width, channels)
    hidden = _depthwise(hidden, block.conv2)
    return hidden + block.ffn(block.norm2(hidden))


def _channel_block(hidden: Tensor, block: nn.Module) -> Tensor:
    n, height, width, channels = hidden.shape
    hidden = _depthwise(hidden, block.conv1)
    attention = block.channel_attn
    places = height * width
    qkv = attention.qkv(block.norm1(hidden)).view(n, places, 3, attention.groups, -1)
    q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)
    mixed = (q * places**-0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
    mixed = mixed.permute(0, 3, 1, 2).reshape(n, height, width, channels)
    hidden = hidden + attention.proj(mixed)
    hidden = _depthwise(hidden, block.conv2)
    return hidden + block.ffn(block.norm2(hidden))


def _depthwise(hidden: Tensor, conv: nn.Conv2d) -> Tensor:
    channels_first = hidden.permute(0, 3, 1, 2)
    mixed = F.conv2d(channels_first, conv.weight, conv.bias, padding=1, groups=conv.groups)
    return mixed.permute(0, 2, 3, 1) + hidden


def _with_positions(hidden: Tensor, part: nn.Module) -> Tensor:
    # BART's positions start at 2.
    positions = part.embed_positions.weight[2 : 2 + hidden.shape[1]]
    return part.layernorm_embedding(hidden + positions)


def _attend(attention: nn.Module, hidden: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    """Multi-head attention in plain matrix products: on a CPU the fused kernel's backward pass is
    slow in bfloat16."""
    n, length, width = hidden.shape

    def heads(x: Tensor) -> Tensor:
        return x.view(n, -1, attention.num_heads, attention.head_dim).transpose(1, 2)

    q = heads(attention.q_proj(hidden) * attention.scaling)
    k, v = heads(attention.k_proj(context)), heads(attention.v_proj(context))
    mixed = (q @ k.transpose(-1, -2) + mask).softmax(-1) @ v
    return attention.out_proj(mixed.transpose(1, 2).reshape(n, length, width))
