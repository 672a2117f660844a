"""What is written to the store of one image: rows of value types, ids and provenance."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from labeling_pipeline.annotations import Annotation, Generation, State
from labeling_pipeline.asking.questions import Question
from labeling_pipeline.models.base import Model

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What all rows about one image and prompt have in common.

    attempt: counted from 1. request_hash: of the prompt and its group.
    """

    image_id: str
    attempt: int
    entry: str
    model_key: str
    request_hash: str
    run_id: str
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC).replace(tzinfo=None))

    def generation_id(self, position: int = 0) -> str:
        """The same in every home. position: in the order of asking; 0 is the group's prompt."""
        identity = [self.image_id, self.request_hash, self.model_key, self.attempt]
        if position:
            identity.append(position)
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]

    def outcome(
        self,
        slug: str,
        label: str,
        state: State,
        *,
        presence: float | None = None,
        error: str | None = None,
        generation_id: str | None = None,
        parser_version: int = 0,
        dropped: int = 0,
    ) -> Row:
        """What came of one class. parser_version: that read the answer; 0 without one."""
        return {
            "image_id": self.image_id,
            "entry": self.entry,
            "class": slug,
            "model_key": self.model_key,
            "attempt": self.attempt,
            "parser_version": parser_version,
            "label": label,
            "request_hash": self.request_hash,
            "state": state,
            "presence": presence,
            "error": error,
            "generation_id": generation_id,
            "dropped": dropped,
            "run_id": self.run_id,
            "created_at": self.created_at,
        }

    def generation(self, position: int, question: Question, answer: Generation) -> Row:
        """One raw answer; any but the first says which one it follows."""
        return {
            "generation_id": self.generation_id(position),
            "follows": self.generation_id() if position else None,
            "image_id": self.image_id,
            "entry": self.entry,
            "request_hash": self.request_hash,
            "model_key": self.model_key,
            "task": question.task,
            "labels": list(question.labels),
            "crop_px": list(question.crop_px) if question.crop_px else None,
            "region": question.region.annotation_id if question.region else None,
            "prompt": answer.prompt,
            "raw_text": answer.raw_text,
            "tokens": list(answer.tokens),
            "token_logprobs": list(answer.token_logprobs),
            "token_window_mass": list(answer.token_window_mass),
            "none_probs": list(answer.none_probs),
            "finish_reason": answer.finish_reason,
            "frame_width_px": answer.frame_size_px[0],
            "frame_height_px": answer.frame_size_px[1],
            "latency_s": answer.latency_s,
            "attempt": self.attempt,
            "run_id": self.run_id,
            "created_at": self.created_at,
        }

    def annotation(
        self, position: int, annotation: Annotation, source: int, parser_version: int
    ) -> Row:
        """One annotation. source: position of the generation that it stands in."""
        x0, y0, x1, y1 = annotation.bbox or (None,) * 4
        scores = annotation.token_scores
        return {
            "annotation_id": f"{self.generation_id()}-{parser_version}-{position}",
            "generation_id": self.generation_id(),
            "answered_in": self.generation_id(source),
            "image_id": self.image_id,
            "entry": self.entry,
            "label": annotation.label,
            "parser_version": parser_version,
            "position": position,
            "x0_px": x0,
            "y0_px": y0,
            "x1_px": x1,
            "y1_px": y1,
            "point": _xy(annotation.point) if annotation.point else None,
            "polygon": [_xy(corner) for corner in annotation.polygon] or None,
            "text": annotation.text,
            "score": annotation.score,
            "geometric_mean": scores.geometric_mean if scores else None,
            "window_mass": scores.window_mass if scores else None,
            "keypoints": [
                {"name": k.name, "x_px": k.x_px, "y_px": k.y_px, "score": k.score}
                for k in annotation.keypoints
            ]
            or None,
        }


def model_row(model: Model) -> Row:
    """What a model key stands for."""
    return {
        "model_key": model.model_key,
        "name": model.card.name,
        "checkpoint": model.card.checkpoint,
        "revision": str(model.parameters["revision"]),
        "licence": model.card.licence,
        "parameters": json.dumps(model.parameters, sort_keys=True),
    }


def _xy(point: tuple[float, float]) -> Mapping[str, float]:
    return {"x_px": point[0], "y_px": point[1]}
