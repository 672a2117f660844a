"""A small Qwen2 tokenizer that knows the words of the protocol and little else.

It has the special tokens, the chat template and the coordinate tokens ``<0>`` to ``<999>`` of the
published tokenizer, the coordinates last, over a byte-level vocabulary of a few hundred entries:
any text can be encoded, the protocol's own words in few tokens.

Labels and keypoint names are single tokens wherever they stand, in prompt and answer alike. A
model this small binds one embedding to what it sees far sooner than a sequence of word pieces.
"""

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from labeling_pipeline.models.rex_omni_protocol import SYSTEM_PROMPT, prompt
from labeling_pipeline.sample.scenes import PERSON_KEYPOINTS, POSTURE_LABELS, SHAPES
from labeling_pipeline.tasks import PERSON, Task

BASE_LABELS = (*SHAPES, "person")
LABELS = (*BASE_LABELS, *POSTURE_LABELS.values())

_BYTE_PAIR_VOCABULARY = 512

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# The published template without its video numbering and image numbering options.
_CHAT_TEMPLATE = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}\
<|vision_start|><|image_pad|><|vision_end|>\
{% elif content['type'] == 'video' or 'video' in content %}\
<|vision_start|><|video_pad|><|vision_end|>\
{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def build_tokenizer() -> Qwen2Tokenizer:
    """The tokenizer, trained on the protocol's own sentences; equal in every run."""
    vocabulary, merges = _byte_pairs()
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token="<|endoftext|>",
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=32768,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT_TEMPLATE,
    )
    words = (*LABELS, *PERSON_KEYPOINTS)
    coordinates = [f"<{i}>" for i in range(1000)]
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in _SPECIAL_TOKENS])
    for plain in (words, coordinates):
        tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    return tokenizer


def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level model of the prompts and the answers' punctuation."""
    spaced = ", ".join(PERSON_KEYPOINTS)
    sentences = [
        SYSTEM_PROMPT,
        f"{SYSTEM_PROMPT}.",
        "system\n",
        "user\n",
        "assistant\n",
        "None",
        "unvisible",
        "Point to ",
        "Detect all ",
        "```json\n{}\n```",
    ]
    for label in (*LABELS, "people", "object", "objects"):
        sentences += [prompt(Task.DETECTION, [label]), prompt(Task.KEYPOINT, [label], PERSON)]
        sentences += [label, f" {label}", f"{label}1", spaced]
    # What separates numbers in a keypoint answer. Whether the object, the list of objects or
    # neither ends after a number is then one token, one decision.
    sentences += [
        ' ", "',
        '": " ',
        ' "}}, "',
        ' "}}}\n```',
        '```json\n{"',
        '1": {"bbox": " ',
        ' ", "keypoints": {"',
    ]
    model = Tokenizer(models.BPE())
    model.normalizer = normalizers.NFC()
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_BYTE_PAIR_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    model.train_from_iterator(sentences * 2, trainer)
    state = json.loads(model.to_str())["model"]
    return state["vocab"], [tuple(merge) for merge in state["merges"]]
