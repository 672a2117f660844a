"""What can be asked of a model: tasks, keypoint skeletons and the request that carries them."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Task(StrEnum):
    """What kind of answer is wanted."""

    DETECTION = "detection"
    KEYPOINT = "keypoint"


@dataclass(frozen=True)
class Skeleton:
    """Named keypoints and the pairs that are drawn as limbs.

    ``edges`` holds index pairs into ``keypoints``, counted from 0.
    """

    name: str
    keypoints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]


# The 17 keypoints of COCO in COCO's order, spelled with spaces as Rex-Omni was trained.
PERSON = Skeleton(
    name="person",
    keypoints=(
        "nose",
        "left eye",
        "right eye",
        "left ear",
        "right ear",
        "left shoulder",
        "right shoulder",
        "left elbow",
        "right elbow",
        "left wrist",
        "right wrist",
        "left hip",
        "right hip",
        "left knee",
        "right knee",
        "left ankle",
        "right ankle",
    ),
    edges=(
        *((0, 1), (0, 2), (1, 3), (2, 4)),
        *((5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
        *((5, 11), (6, 12), (11, 12)),
        *((11, 13), (13, 15), (12, 14), (14, 16)),
    ),
)

SKELETONS: dict[str, Skeleton] = {PERSON.name: PERSON}


@dataclass(frozen=True)
class Request:
    """One question about one image.

    image: ``(height, width, 3)`` uint8 RGB, EXIF-upright.
    labels: what is asked for, in the order of the prompt.
    skeleton: for ``Task.KEYPOINT`` only.
    """

    image: np.ndarray
    task: Task
    labels: tuple[str, ...]
    skeleton: Skeleton | None = None

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of the image."""
        return self.image.shape[1], self.image.shape[0]
