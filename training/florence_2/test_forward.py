"""Training computes what the published classes compute, from prompt and pixels on."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Florence2Processor

from labeling_pipeline.models import florence2_protocol as protocol
from training.florence_2.architecture import TrainingForward, initialize, make_config, normalize
from training.florence_2.tokenizer import IMAGE_SIDE_PX, IMAGE_TOKENS, build_processor

pytestmark = pytest.mark.checkpoint


@pytest.fixture(scope="module")
def processor() -> Florence2Processor:
    return build_processor()


def test_pixels_are_those_of_the_image_processor(processor: Florence2Processor) -> None:
    images = pictures(2)
    expected = processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalize(images).permute(0, 3, 1, 2), expected, atol=1e-5, rtol=0)


def test_logits_are_those_of_the_published_class_whatever_the_padding(
    processor: Florence2Processor,
) -> None:
    tokenizer = processor.tokenizer
    model = initialize(make_config(tokenizer), tokenizer, seed=0).eval()
    images = pictures(2)
    inputs = processor(
        text=["<OD>", "<CAPTION_TO_PHRASE_GROUNDING>two circles and a star"],
        images=[Image.fromarray(image) for image in images],
        padding=True,
        return_tensors="pt",
    )
    answers = torch.randint(5, len(tokenizer), (2, 9))
    forward = TrainingForward(model)
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=answers).logits
        states, _ = forward.language(
            forward.vision(normalize(images)),
            inputs["input_ids"][:, IMAGE_TOKENS:],
            inputs["attention_mask"][:, IMAGE_TOKENS:].bool(),
            answers,
        )
        actual = states @ forward.embeddings.T
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)


def test_every_word_of_a_caption_is_one_token(processor: Florence2Processor) -> None:
    text = "The image shows two objects. There is a large sitting person on the left."
    tokens = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert len(tokens) == len(text.split()) + text.count(".")


def test_prompts_about_regions_are_location_tokens(processor: Florence2Processor) -> None:
    text = protocol.prompt(protocol.Task.REGION_TO_CATEGORY, (), (0, 12, 996, 999))
    tokens = processor.tokenizer.tokenize(text)
    assert tokens[-5:] == ["<loc_0>", "<loc_12>", "<loc_996>", "<loc_999>", "?"]


def pictures(n: int) -> np.ndarray:
    shape = (n, IMAGE_SIDE_PX, IMAGE_SIDE_PX, 3)
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)
