"""Reading stored answers again: all of it, and how much of that is the parser.

The bare loop parses answers that are in memory already. Re-derivation fetches the same ones from
the store, concludes, and writes outcomes and annotations. Both take turns.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np

from labeling_pipeline.annotations import Generation
from labeling_pipeline.asking.questions import Question
from labeling_pipeline.asking.rounds import conclude
from labeling_pipeline.asks import EntryAsks
from labeling_pipeline.labeling import read_answer
from labeling_pipeline.models import rex_omni_protocol as protocol
from labeling_pipeline.models.scripted import ScriptedModel, generation_of
from labeling_pipeline.plan import parse_plan
from labeling_pipeline.records import Asked, model_row
from labeling_pipeline.rederivation import rederive
from labeling_pipeline.store.annotation_store import AnnotationStore

ANSWERS, BATCH = 10_000, 5_000
ROUNDS = 2
LABELS = ("cat", "dog", "cow")
BOXES_PER_LABEL = 2
SIZE_PX = (640, 480)


def measure() -> Iterator[tuple[str, str, str]]:
    """Rows of (what, rate, ratio)."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.json"
        script.write_text(json.dumps({}))
        plan = parse_plan(
            f"model: 'scripted:{script}'\nentries: [{{name: object, task: detection}}]"
        )
        store = AnnotationStore(Path(folder) / "annotations.duckdb")
        with store.transaction() as tx:
            tx.insert("classes", [{"class": name, "display_name": name} for name in LABELS])
        asks = EntryAsks(store, plan, plan.entries[0])
        answers = _fill(store, asks)
        bare = full = 0.0
        for version in range(1, ROUNDS + 1):
            bare += _parse(asks, answers)
            newer = protocol.PARSER_VERSION + version
            with patch.object(ScriptedModel, "parser_version", newer):
                summary = rederive(store, plan, f"benchmark-{version}")
            assert summary.read == ANSWERS
            full += summary.seconds
    yield "bare loop over the parser", f"{ROUNDS * ANSWERS / bare:,.0f} answers/s", "1.00"
    yield (
        "re-derivation, store to store",
        f"{ROUNDS * ANSWERS / full:,.0f} answers/s",
        f"{bare / full:.2f} of the bare loop",
    )


def _fill(store: AnnotationStore, asks: EntryAsks) -> list[Generation]:
    """Answers about images that nobody ever saw, recorded as the labeling loop does."""
    rng = np.random.default_rng(5)
    entry, group, model = asks.entry, asks.requests.groups[0], asks.model
    question = Question(entry.task, group.labels)
    answers: list[Generation] = []
    for start in range(0, ANSWERS, BATCH):
        images, generations, outcomes, annotations = [], [], [], []
        for number in range(start, start + BATCH):
            image_id = f"{number:064x}"
            size = {"width_px": SIZE_PX[0], "height_px": SIZE_PX[1]}
            images.append({"image_id": image_id, **size, "status": "accepted"})
            asked = Asked(image_id, 1, entry.name, model.model_key, group.request_hash, "asked")
            answer = generation_of(_text(rng), SIZE_PX)
            answers.append(answer)
            generations.append(asked.generation(0, question, answer))
            answered = [read_answer(model, entry, question, answer, SIZE_PX)]
            said = conclude(entry, group, answered, SIZE_PX)
            version = model.parser_version
            outcomes += [asked.concluded(*pair, said, version) for pair in group.classes.items()]
            annotations += asked.annotations(said, version)
        with store.transaction() as tx:
            tx.insert("models", [model_row(model)], replace=True)
            tx.insert("images", images)
            tx.insert("generations", generations)
            tx.insert("outcomes", outcomes)
            tx.insert("annotations", annotations)
    return answers


def _text(rng: np.random.Generator) -> str:
    parts = []
    for label in LABELS:
        corners = rng.integers(0, 700, (BOXES_PER_LABEL, 2))
        boxes = np.hstack([corners, corners + rng.integers(20, 299, (BOXES_PER_LABEL, 2))])
        said = ", ".join("".join(f"<{bin_}>" for bin_ in box) for box in boxes)
        parts.append(
            f"{protocol.REF_START}{label}{protocol.REF_END}"
            f"{protocol.BOX_START}{said}{protocol.BOX_END}"
        )
    return ", ".join(parts)


def _parse(asks: EntryAsks, answers: list[Generation]) -> float:
    """Seconds that the parser takes for all of them."""
    started = time.perf_counter()
    for answer in answers:
        asks.model.parse(answer, asks.entry.task, LABELS, SIZE_PX)
    return time.perf_counter() - started
