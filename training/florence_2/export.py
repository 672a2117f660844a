"""Writes a finished run as a checkpoint folder that loads like the published model.

python -m training.florence_2.export runs/florence-2/final.pt labeling_pipeline/models/checkpoints/tiny-florence-2
"""  # noqa: E501

import argparse
import shutil
from pathlib import Path

import torch

from labeling_pipeline.models.cards import CARD_FILE
from labeling_pipeline.models.registry import find_card
from training.florence_2.architecture import initialize, make_config
from training.florence_2.tokenizer import build_processor

NAME = "tiny-florence-2"


def export(weights: Path, folder: Path) -> None:
    """Save float16 weights, tokenizer, image rules and prompts into `folder`."""
    processor = build_processor()
    tokenizer = processor.tokenizer
    config = make_config(tokenizer)
    model = initialize(config, tokenizer, seed=0)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.tie_weights()
    generation = model.generation_config
    assert generation is not None
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        setattr(generation, name, getattr(config.text_config, name))
    generation.forced_eos_token_id = None
    generation.do_sample = False
    generation.num_beams = 1
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    # What the checkpoint knows and wants does not depend on how well it was trained.
    card = Path(find_card(NAME).checkpoint) / CARD_FILE
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
