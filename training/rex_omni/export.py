"""Writes a finished run as a checkpoint folder that loads like the published model.

python -m training.rex_omni.export runs/rex-omni/final.pt labeling_pipeline/models/checkpoints/tiny-rex-omni
"""  # noqa: E501

import argparse
import shutil
from pathlib import Path

import torch
from transformers import Qwen2VLImageProcessorPil

from labeling_pipeline.models.cards import CARD_FILE
from labeling_pipeline.models.registry import EMBEDDED, find_card
from training.rex_omni.architecture import MAX_PIXELS, MIN_PIXELS, initialize, make_config
from training.rex_omni.tokenizer import build_tokenizer


def export(weights: Path, folder: Path) -> None:
    """Save float16 weights, tokenizer and image rules into `folder`."""
    tokenizer = build_tokenizer()
    model = initialize(make_config(tokenizer), tokenizer, seed=0)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.tie_weights()
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    generation = model.generation_config
    assert generation is not None
    generation.eos_token_id = [end, pad]
    generation.pad_token_id = generation.bos_token_id = pad
    generation.do_sample = False
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS).save_pretrained(folder)
    # What the checkpoint knows and wants does not depend on how well it was trained.
    card = Path(find_card(EMBEDDED).checkpoint) / CARD_FILE
    if card.parent.resolve() != folder.resolve():
        shutil.copyfile(card, folder / CARD_FILE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="final.pt of a run")
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    options = parser.parse_args()
    export(options.weights, options.folder)


if __name__ == "__main__":
    main()
