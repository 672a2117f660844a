"""A model that answers from a script: real prompts, real answer format, real parsing, no weights.

It speaks Rex-Omni's protocol, and Florence-2's for the tasks that only Florence-2 has.

For tests that need a model's exact words, its failures or its slowness. The script is a JSON file,
every key optional:

    {"vocabulary": ["cat", "dog"],              default: open
     "revision": "v2",                          default: script; another one is another model key
     "boxes": {"cat": [[100, 100, 500, 500]]},  label -> boxes in bins 0..999; the rest is absent
     "raw_text": "...",                         the whole answer, instead of boxes
     "loops": {"cat": 2},                       asked with so many labels or more, the answer says
                                                "cat" and its first box over and over till stopped
     "finish_reason": "length",                 default: stop
     "fail_size_px": [640, 480],                a batch with an image of this size raises
     "out_of_memory_above": 8,                  a forward of more images raises MemoryError
     "interrupt_batch": 3,                      the third batch raises KeyboardInterrupt, once
     "delay_s": 0.5,                            what a batch takes
     "log": "asked.jsonl"}                      every request is appended here, one line each
"""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labeling_pipeline.annotations import FinishReason, Generation, ParsedAnswer
from labeling_pipeline.models import florence2_protocol
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.batching import BatchLimit
from labeling_pipeline.models.cards import ModelCard, ModelSettings, key_of
from labeling_pipeline.models.rex_omni import CPU_LIMIT, RexOmni
from labeling_pipeline.tasks import Request, Skeleton, Task

_PIECES = re.compile(r"<\|[a-z_]+\|>|<(?:loc_)?[0-9]{1,3}>|<sep>|</s>|[^<]+|<")
_COORDINATE = re.compile(r"<(?:loc_)?[0-9]{1,3}>")
_PROBABILITY, _MASS = 0.8, 0.9
_ANSWER_KEYS = ("boxes", "raw_text", "loops", "finish_reason")
_MAX_REPEATS = 1000


class ScriptedModel(RexOmni):
    """Speaks the protocols of real models with words from a file."""

    def __init__(self, card: ModelCard, settings: ModelSettings) -> None:
        super().__init__(card, settings)
        self.script: dict[str, Any] = json.loads(Path(card.checkpoint).read_text())
        # Where a script lies changes no answer.
        self.parameters |= {"checkpoint": "script"}
        self.parameters |= {key: self.script.get(key) for key in _ANSWER_KEYS}
        self.model_key = key_of(self.parameters)
        self._asked_batches = 0

    def prepare(self, request: Request) -> Request:
        """A script needs nothing prepared."""
        return request

    def forward(self, prepared: Sequence[Request]) -> list[Generation]:
        """Answer from the script, in pieces where it says that memory does not suffice.

        Raises:
            RuntimeError: the script says that an image of this size breaks the batch.
            KeyboardInterrupt: the script says that somebody stops the run here.
        """
        self._asked_batches += 1
        if self._asked_batches == self.script.get("interrupt_batch"):
            raise KeyboardInterrupt
        lengths = [self.input_tokens(request.size_px) for request in prepared]
        return self._sizer().run(prepared, lengths, self._answer_all)

    def _start_limit(self) -> BatchLimit:
        return CPU_LIMIT

    def _answer_all(self, prepared: Sequence[Request]) -> list[Generation]:
        if len(prepared) > self.script.get("out_of_memory_above", len(prepared)):
            raise MemoryError(f"scripted: no memory for {len(prepared)} images")
        time.sleep(self.script.get("delay_s", 0.0))
        poison = self.script.get("fail_size_px")
        for request in prepared:
            if poison is not None and list(request.size_px) == list(poison):
                raise RuntimeError(f"scripted failure on an image of {poison} px")
        if log := self.script.get("log"):
            lines = [json.dumps({"size_px": r.size_px, "labels": r.labels}) for r in prepared]
            with Path(log).open("a") as file:
                file.write("".join(f"{line}\n" for line in lines))
        return [self._scripted(request) for request in prepared]

    def prompt(self, task: Task, labels: Sequence[str], skeleton: Skeleton | None = None) -> str:
        """What a real model would be asked."""
        if task in protocol.TASKS:
            return super().prompt(task, labels, skeleton)
        return florence2_protocol.prompt(task, labels)

    def parse(
        self,
        generation: Generation,
        task: Task,
        labels: Sequence[str],
        image_size_px: tuple[int, int],
        skeleton: Skeleton | None = None,
    ) -> ParsedAnswer:
        """Read an answer as a real model's would be."""
        if task in protocol.TASKS:
            return super().parse(generation, task, labels, image_size_px, skeleton)
        return florence2_protocol.parse(generation, task, labels, image_size_px)

    def _prompt_of(self, request: Request) -> str:
        if request.task in protocol.TASKS:
            return self.prompt(request.task, request.labels, request.skeleton)
        return florence2_protocol.END.join(
            florence2_protocol.prompts(
                request.task, request.labels, request.reference_boxes, request.size_px
            )
        )

    def _scripted(self, request: Request) -> Generation:
        text = self.script.get("raw_text")
        finish_reason = FinishReason(self.script.get("finish_reason", FinishReason.STOP))
        if text is None:
            boxes = dict(self.script.get("boxes", {}))
            for label, company in self.script.get("loops", {}).items():
                if label in request.labels and len(request.labels) >= company:
                    boxes[label] = boxes[label][:1] * _MAX_REPEATS
            text = _answer(request, boxes)
            until = _where_it_loops(text, request.task)
            if until is not None:
                text, finish_reason = text[:until], FinishReason.LOOP
        return generation_of(
            text,
            request.size_px,
            prompt=self._prompt_of(request),
            finish_reason=finish_reason,
        )


def _where_it_loops(text: str, task: Task) -> int | None:
    """Where generation would have been stopped, if anywhere."""
    watch = protocol.LoopWatch(task)
    for piece in _PIECES.finditer(text):
        watch.add([piece[0]])
        if watch.looping:
            return piece.end()
    return None


def generation_of(
    text: str,
    frame_size_px: tuple[int, int],
    *,
    prompt: str = "",
    finish_reason: FinishReason = FinishReason.STOP,
) -> Generation:
    """An answer with this text, cut into tokens as a real vocabulary would cut coordinates.

    Every token has probability 0.8 and every coordinate a window mass of 0.9; P(None) is 0.9 where
    the answer says None and 0.1 elsewhere.
    """
    tokens = tuple(_PIECES.findall(text))
    none_probs = [
        0.9 if text.startswith(protocol.ABSENT, match.end()) else 0.1
        for match in re.finditer(re.escape(protocol.BOX_START), text)
    ]
    return Generation(
        prompt=prompt,
        tokens=tokens,
        token_logprobs=(math.log(_PROBABILITY),) * len(tokens),
        token_window_mass=tuple(
            _MASS if _COORDINATE.fullmatch(token) else math.nan for token in tokens
        ),
        none_probs=tuple(none_probs),
        finish_reason=finish_reason,
        frame_size_px=frame_size_px,
        latency_s=0.0,
    )


def _answer(request: Request, boxes: Mapping[str, Sequence[Sequence[int]]]) -> str:
    if request.task is Task.KEYPOINT:
        points = request.skeleton.keypoints if request.skeleton else ()
        instances = {
            f"{label}{number}": {
                "bbox": _spaced(box),
                "keypoints": {name: _spaced(_centre(box)) for name in points},
            }
            for label in request.labels
            for number, box in enumerate(boxes.get(label, ()), 1)
        }
        return f"```json\n{json.dumps(instances)}\n```"
    parts = []
    for label in request.labels:
        runs = ["".join(f"<{b}>" for b in box) for box in boxes.get(label, ())]
        body = ", ".join(runs) or protocol.ABSENT
        parts.append(
            f"{protocol.REF_START}{label}{protocol.REF_END}"
            f"{protocol.BOX_START}{body}{protocol.BOX_END}"
        )
    return ", ".join(parts)


def _centre(box: Sequence[int]) -> tuple[int, int]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


def _spaced(bins: Sequence[int]) -> str:
    return " " + " ".join(f"<{b}>" for b in bins) + " "
