"""A small Florence-2 tokenizer and processor: the published special tokens over few words.

It has the control tokens and the location tokens ``<loc_0>`` to ``<loc_999>`` of the published
tokenizer over a byte-level vocabulary of a few hundred entries: any text can be encoded, and the
words of the prompts and captions are single tokens. Capital letters stay letters, since words of
any letters are read.
"""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Florence2Processor, RobertaTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from labeling_pipeline.models.florence2_protocol import BINS, prompt
from labeling_pipeline.models.florence2_protocol import TASKS as ASKABLE_TASKS
from labeling_pipeline.sample.scenes import SHAPES
from training.florence_2.wording import LABELS, NUMBERS

IMAGE_SIDE_PX = 160
GRID = 10
"""Image cells along a side after the vision part."""

IMAGE_TOKENS = GRID * GRID + 1

# The published processor's numbers.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

_BYTE_PAIR_VOCABULARY = 700

_TASK_TOKENS = (
    *("<od>", "</od>", "<ocr>", "</ocr>", "<cap>", "</cap>", "<ncap>", "</ncap>"),
    *("<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>", "<sep>"),
    *("<poly>", "</poly>", "<region_cap>", "</region_cap>", "<proposal>", "</proposal>", "<and>"),
)

_CAPTION_WORDS = (
    *("The", "image", "shows", "object", "objects", "There", "is", "large", "small"),
    *("on", "in", "the", "left", "middle", "right"),
)

# Which part of an answer the published post-processing reads; it raises where a key is missing.
_POST_PROCESSING: dict[str, dict] = {
    "ocr": {"PATTERN": r"(.+?)" + r"<loc_(\d+)>" * 8, "AREA_THRESHOLD": 0.0},
    "phrase_grounding": {"banned_grounding_tokens": ["it", "the image"]},
    "pure_text": {},
    "description_with_bboxes": {},
    "description_with_polygons": {},
    "polygons": {},
    "bboxes": {},
    "description_with_bboxes_or_polygons": {},
}


def build_processor() -> Florence2Processor:
    """Tokenizer and image rules joined; equal in every run."""
    side = {"height": IMAGE_SIDE_PX, "width": IMAGE_SIDE_PX}
    image_processor = CLIPImageProcessorPil(
        size=side,
        crop_size=side,
        do_center_crop=False,
        image_seq_length=IMAGE_TOKENS,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    return Florence2Processor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        post_processor_config=_POST_PROCESSING,
    )


def build_tokenizer() -> RobertaTokenizer:
    """The tokenizer, trained on the prompts and the words of captions; equal in every run."""
    vocabulary, merges = _byte_pairs()
    tokenizer = RobertaTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=512,
        # Set by hand afterwards, it would be lost on loading.
        extra_special_tokens={"image_token": "<image>"},
    )
    tokenizer.add_tokens([*(f"<loc_{i}>" for i in range(BINS)), *_TASK_TOKENS])
    return tokenizer


def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level model of the prompts and captions."""
    words = {word for label in LABELS for word in label.split()}
    words |= {f"{shape}s" for shape in SHAPES} | {*NUMBERS, "a", "people", "and"}
    words |= set(_CAPTION_WORDS)
    sentences = [prompt(task, ["circle"], (0, 0, 0, 0)) for task in ASKABLE_TASKS]
    sentences += [
        f"{before}{word}{after}"
        for word in words
        for before in ("", " ")
        for after in (" ", ", ", ".")
    ]
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_BYTE_PAIR_VOCABULARY,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    model.train_from_iterator(sorted(set(sentences)) * 2, trainer)
    state = json.loads(model.to_str())["model"]
    return state["vocab"], [tuple(merge) for merge in state["merges"]]
