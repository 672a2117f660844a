"""The labeling plan: YAML in, validated objects out.

A plan names entries; each entry becomes one asset ``<name>_annotations``. What an entry asks is a
pure function of the plan, the classes and the model card, never of what is still due: the same
image always gets the same prompt.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from labeling_pipeline.annotations import Box
from labeling_pipeline.errors import PlanError
from labeling_pipeline.images.quality import CleaningRules
from labeling_pipeline.images.sources import SourceSettings
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import EMBEDDED, find_card, model_for, require_task
from labeling_pipeline.tasks import PERSON, RULES, SKELETONS, Geometry, Skeleton, Task
from labeling_pipeline.yaml_files import YamlDocument, read_text

EVERY_CLASS = "*"
"""Key of ``ask`` that stands for every class without a key of its own."""

NAMED_BY_ANOTHER = "object"
"""What an entry that takes its labels from another one yields, where the plan says nothing."""

# Folders are registered under their NFC names, whatever the file system or an editor writes.
ClassName = Annotated[str, AfterValidator(lambda name: unicodedata.normalize("NFC", name))]


class Tiling(BaseModel):
    """How large images are cut: squares of ``size_px`` pixels that share ``overlap`` of a side."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_px: Annotated[int, Field(ge=64)] = 1024
    overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.2


class Entry(BaseModel):
    """One line of work: a task, a model and what it is asked for each class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    task: Task
    model: str | None = Field(None, description="a model name; default: the plan's")
    classes: tuple[ClassName, ...] | None = Field(None, description="display names; default: all")
    ask: dict[ClassName, str] = Field(
        default_factory=dict, description="class -> label; '*' for all others; default: its name"
    )
    keypoints: Literal["person", "animal", "hand", "face"] = Field(
        "person", description="whose keypoints, for the task keypoint"
    )
    top_down: bool = Field(
        False,
        description="for the task keypoint: detect, ask again on a crop of each instance, keep "
        "the keypoints that the model is surer of",
    )
    tiles: Tiling | None = Field(
        None, description="ask large images also tile by tile, for what is small in them"
    )
    regions: str | None = Field(
        None, description="an earlier entry: ask about each box that it found, on a crop"
    )
    labels_from: str | None = Field(
        None, description="an earlier entry: ask for the names that it gave to what it found"
    )
    references: dict[str, tuple[Box, ...]] = Field(
        default_factory=dict,
        description="image path -> reference boxes in pixels, for tasks that need them",
    )
    distractors: tuple[str, ...] = ()
    # Measured, see benchmarks/grouping.py: most of the speed is gained by five, and company of any
    # size keeps the model from seeing what is not there.
    group_size: Annotated[int, Field(ge=1)] = 5
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _check_top_down(self) -> Self:
        if self.top_down and self.task is not Task.KEYPOINT:
            raise ValueError(
                f"expected top_down only with task keypoint, got it with {self.task}: drop it, or "
                "ask for keypoints"
            )
        return self

    @model_validator(mode="after")
    def _check_tiles(self) -> Self:
        if self.tiles is not None and not RULES[self.task].can_be_tiled:
            raise ValueError(
                f"expected no tiles with {self.task}, got some: drop them"
                + (", and use top_down" if self.task is Task.KEYPOINT else "")
            )
        return self

    @property
    def asset(self) -> str:
        """Name of the asset that this entry becomes."""
        return f"{self.name}_annotations"

    @property
    def skeleton(self) -> Skeleton | None:
        """Which keypoints are asked for."""
        return SKELETONS[self.keypoints] if self.task is Task.KEYPOINT else None

    @property
    def source(self) -> str | None:
        """The entry that this one goes on from."""
        return self.regions or self.labels_from

    @property
    def describes(self) -> bool:
        """Whether the text of an annotation names or describes a thing, see ``TaskRule``."""
        return RULES[self.task].describes or self.labels_from is not None

    @property
    def tells_presences(self) -> bool:
        """Whether one answer about an image says of several labels how sure it is that they are
        there."""
        rule = RULES[self.task]
        is_listing = rule.labels_per_prompt is None and rule.geometry in (
            Geometry.BOX,
            Geometry.POINT,
        )
        return is_listing and self.source is None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is asked of the model."""
        return (self.task, Task.DETECTION) if self.top_down else (self.task,)

    @property
    def labels_per_prompt(self) -> int:
        """At most so many labels share a prompt."""
        at_most = 1 if self.source else RULES[self.task].labels_per_prompt
        return min(self.group_size, at_most or self.group_size)

    def covers(self, display_name: str) -> bool:
        """Whether a class is labeled by this entry."""
        return self.classes is None or display_name in self.classes

    def label_for(self, display_name: str) -> str:
        """What is asked for a class."""
        named = self.ask.get(display_name) or self.ask.get(EVERY_CLASS)
        if self.labels_from and not named:
            return NAMED_BY_ANOTHER
        return named or RULES[self.task].default_label or display_name


class Actions(BaseModel):
    """Human-action recognition: what it goes by, and how it is judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entry: str | None = Field(
        None,
        description="whose keypoints a classifier reads; default: the first that has a person's",
    )
    zero_shot: str | None = Field(
        None, description="an entry that asks for each action: its presences are the prediction"
    )
    folds: Annotated[int, Field(ge=2)] = 5
    seed: int = 0
    top_k: int = Field(
        3, ge=1, description="an image counts as right in the top k if its action is among so many"
    )
    target_accuracy: float = Field(
        0.95,
        gt=0,
        le=1,
        description="of the predictions kept by the threshold below which one should abstain",
    )
    test_folder: ClassName | None = Field(
        None,
        description="a top folder of the images whose sub-folders are called like the classes: "
        "labeled like all others, never trained on",
    )

    @field_validator("test_folder")
    @classmethod
    def _check_test_folder(cls, name: str | None) -> str | None:
        if name is not None and (not name or "/" in name or name.startswith(".")):
            raise ValueError(f"expected the name of a top folder of the images, got {name!r}")
        return name


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value or ()


Share = Annotated[float, Field(ge=0, le=1)]


class Checks(BaseModel):
    """From where on the checks of images and labels warn. Shares and distances, 0..1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_rejected_share: Share = Field(
        0.5, description="of all images, those that were rejected but are no duplicates"
    )
    max_duplicate_share: Share = Field(0.5, description="of all images, those that are duplicates")
    empty_rate_change: Share = Field(
        0.2,
        description="by how much the share of images on which a class was not found may differ "
        "between its newest run and those before",
    )
    score_drift: Share = Field(
        0.3,
        description="how far the scores of a model may lie from those of the model before, on the "
        "same images: Kolmogorov-Smirnov distance",
    )


class Calibration(BaseModel):
    """How scores are calibrated and thresholds chosen, where there is ground truth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_precision: float = Field(
        0.95, gt=0, lt=1, description="what the threshold of each label aims at"
    )
    folds: Annotated[int, Field(ge=2)] = 5


class Audit(BaseModel):
    """The sample that a person checks by hand."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_label: Annotated[int, Field(ge=2)] = Field(
        30, description="rows for each label of an entry, half of them where it was not found"
    )
    seed: int = 0


class Drift(BaseModel):
    """Which other model's answers those of the plan's models are compared with, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    against: str | None = Field(
        None, description="a model key or a model's name; default: whichever else answered last"
    )
    iou: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="boxes that overlap so much are one"
    )
    moved_iou: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="if they overlap less than this, it has moved"
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.moved_iou < self.iou:
            raise ValueError(
                f"expected moved_iou to be at least iou ({self.iou:g}), got {self.moved_iou:g}"
            )
        return self


class Review(BaseModel):
    """The queue of images that a person should look at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pictures: Annotated[int, Field(ge=0)] = Field(
        50, description="of the images that come first, so many are drawn"
    )


Cron = Annotated[str, Field(pattern=r"^\S+( +\S+){4}$", description="five fields")]


class Automation(BaseModel):
    """When Dagster looks for work by itself. Both ways are off until they are switched on there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    relabel: Cron = Field("0 3 * * *", description="when the schedule labels what is due")
    check: Cron = Field("0 * * * *", description="when the schedule checks what stands")
    time_zone: str = Field("UTC", description="of both, by its IANA name")
    watch_every_s: int = Field(
        60, ge=5, description="seconds between two looks of the sensor at the image root"
    )


class Plan(BaseModel):
    """A validated labeling plan. ``file`` is what it was read from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entries: tuple[Entry, ...]
    model: str = EMBEDDED
    runtime: ModelSettings = Field(default_factory=ModelSettings)  # type: ignore[arg-type]
    source: SourceSettings = Field(default_factory=SourceSettings)  # type: ignore[arg-type]
    cleaning: CleaningRules = Field(default_factory=CleaningRules)  # type: ignore[arg-type]
    ground_truth: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        (), description="COCO files and YOLO's data.yaml, relative to the images"
    )
    actions: Actions = Field(default_factory=Actions)  # type: ignore[arg-type]
    calibration: Calibration = Field(default_factory=Calibration)  # type: ignore[arg-type]
    thresholds: str | None = Field(
        None, description="file that `calibration` wrote, relative to the plan; default: none holds"
    )
    audit: Audit = Field(default_factory=Audit)  # type: ignore[arg-type]
    checks: Checks = Field(default_factory=Checks)  # type: ignore[arg-type]
    drift: Drift = Field(default_factory=Drift)  # type: ignore[arg-type]
    review: Review = Field(default_factory=Review)  # type: ignore[arg-type]
    automation: Automation = Field(default_factory=Automation)  # type: ignore[arg-type]
    file: str = "plan"

    @field_validator("entries")
    @classmethod
    def _check_entries(cls, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        if not entries:
            raise ValueError("expected at least one entry, got none")
        names = [entry.name for entry in entries]
        if len(set(names)) < len(names):
            raise ValueError(f"expected every entry to have a name of its own, got {names}")
        for number, entry in enumerate(entries):
            _check_source(entry, entries[:number], f"expected entries[{number}]")
        return entries

    @model_validator(mode="after")
    def _check_actions(self) -> Self:
        keypoint_entries = [e.name for e in self.entries if e.task is Task.KEYPOINT]
        if self.actions.entry is not None and self.actions.entry not in keypoint_entries:
            raise ValueError(
                "expected actions.entry to be a keypoint entry "
                f"({', '.join(keypoint_entries) or 'there is none'}), got {self.actions.entry!r}"
            )
        asking = [e.name for e in self.entries if e.tells_presences]
        if self.actions.zero_shot is not None and self.actions.zero_shot not in asking:
            raise ValueError(
                "expected actions.zero_shot to be an entry that asks whole images for boxes or "
                f"points of several labels at once ({', '.join(asking) or 'there is none'}), got "
                f"{self.actions.zero_shot!r}"
            )
        return self

    @model_validator(mode="after")
    def _check_test_folder(self) -> Self:
        folder = self.actions.test_folder
        if folder is None:
            return self
        if self.source.layout == "flat":
            raise ValueError(
                "expected actions.test_folder with classes from folders or a manifest, got source."
                "layout flat: there no image has an action of its own"
            )
        if folder in self.class_names:
            raise ValueError(
                f"expected actions.test_folder to be no class, got {folder!r}, which an entry names"
            )
        return self

    @model_validator(mode="after")
    def _check_flat(self) -> Self:
        if self.source.layout == "flat" and not self.class_names:
            raise ValueError(
                "expected source.layout flat with classes, got none: name them under `classes` or "
                "`ask` of an entry"
            )
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Display names that the plan spells out, in order of first mention."""
        named: dict[str, None] = {}
        for entry in self.entries:
            named.update(dict.fromkeys(entry.classes or ()))
            named.update(dict.fromkeys(key for key in entry.ask if key != EVERY_CLASS))
        return tuple(named)

    @property
    def thresholds_path(self) -> Path | None:
        """Where the thresholds file lies, if the plan names one."""
        return None if self.thresholds is None else Path(self.file).parent / self.thresholds

    def entry(self, name: str) -> Entry:
        """Raises PlanError if no entry has that name."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        known = ", ".join(entry.name for entry in self.entries)
        raise PlanError(f"{self.file}: no entry is called {name!r}; there are: {known}")

    def source_of(self, entry: Entry) -> Entry | None:
        """The entry that another one goes on from."""
        return self.entry(entry.source) if entry.source else None

    def model_of(self, entry: Entry) -> str:
        """Name of the model that an entry asks: its own, else the plan's if that can do the task,
        else the task's default on this hardware.

        Raises:
            ConfigurationError: the plan's model does not exist.
        """
        return entry.model or model_for(entry.task, self.model, self.runtime.device)

    def action_entry(self) -> Entry | None:
        """The entry whose keypoints tell actions apart, if the plan has one."""
        if self.actions.entry is not None:
            return self.entry(self.actions.entry)
        return next((e for e in self.entries if e.skeleton is PERSON), None)

    def zero_shot_entry(self) -> Entry | None:
        """The entry whose presences tell actions apart, if the plan has one."""
        return self.entry(self.actions.zero_shot) if self.actions.zero_shot else None

    def with_model(self, model: str | None, **runtime: str | None) -> "Plan":
        """The same plan with every entry on one model and settings from the environment."""
        chosen = {key: value for key, value in runtime.items() if value is not None}
        settings = ModelSettings.model_validate(self.runtime.model_dump() | chosen)
        entries = self.entries
        if model is not None:
            entries = tuple(entry.model_copy(update={"model": None}) for entry in entries)
        return self.model_copy(
            update={"entries": entries, "model": model or self.model, "runtime": settings}
        )

    def check_models(self) -> None:
        """Every entry's model exists and can do its task.

        Raises:
            ConfigurationError: names the entry's model, what it can do and which models can.
        """
        for entry in self.entries:
            for task in entry.tasks:
                require_task(find_card(self.model_of(entry)), task)


def _check_source(entry: Entry, earlier: Sequence[Entry], expected: str) -> None:
    """An entry goes on from an earlier one, in one way only."""
    if entry.source is None:
        return
    field = "regions" if entry.regions else "labels_from"
    others = [name for name in ("labels_from", "top_down", "tiles", "references") if name != field]
    both = [name for name in others if getattr(entry, name)]
    if both:
        raise ValueError(f"{expected}.{field} without {', '.join(others)}, got {both[0]}: drop one")
    if entry.regions:
        without_boxes = (Geometry.POINT, Geometry.NONE)
        fitting = [one for one in earlier if RULES[one.task].geometry not in without_boxes]
        what = "yields boxes"
    else:
        if RULES[entry.task].labels_per_prompt or entry.skeleton:
            raise ValueError(
                f"{expected}.labels_from with a task that asks for names, got {entry.task}"
            )
        fitting = [one for one in earlier if RULES[one.task].reads_text]
        what = "names what it finds"
    names = [one.name for one in fitting]
    if entry.source not in names:
        raise ValueError(
            f"{expected}.{field} to be an earlier entry that {what} "
            f"({', '.join(names) or 'there is none'}), got {entry.source!r}"
        )


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        PlanError: names the file, the line, what was expected and what came.
    """
    return parse_plan(read_text(path, "a plan in YAML", PlanError), str(path))


def parse_plan(text: str, file: str = "plan") -> Plan:
    """Read a plan from a string; ``file`` is what errors call it.

    Raises:
        PlanError: as ``load_plan``.
    """
    document = YamlDocument(text, file, "entries", PlanError)
    return document.validated(Plan, _SECTIONS, file=file)


_SECTIONS: dict[str, type[BaseModel]] = {
    "entries": Entry,
    "tiles": Tiling,
    "actions": Actions,
    "audit": Audit,
    "automation": Automation,
    "calibration": Calibration,
    "checks": Checks,
    "drift": Drift,
    "review": Review,
    "source": SourceSettings,
    "cleaning": CleaningRules,
    "runtime": ModelSettings,
}


def class_slug(display_name: str) -> str:
    """Partition key of a class: the name itself if it is ``[a-z0-9_-]+``, else its ASCII letters
    and 6 hex digits of the SHA-256 of its NFC form."""
    name = unicodedata.normalize("NFC", display_name)
    if re.fullmatch(r"[a-z0-9_-]+", name):
        return name
    letters = re.sub(r"[^a-z]", "", name.lower())
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{letters}-{digest}" if letters else digest


@dataclass(frozen=True)
class Group:
    """Labels asked in one prompt of an entry.

    labels: asked, distractors last; never empty.
    classes: slug -> label of every class this prompt answers.
    request_hash: of entry, task and prompt; another prompt has another.
    """

    labels: tuple[str, ...]
    classes: dict[str, str]
    request_hash: str


@dataclass(frozen=True)
class EntryRequests:
    """All that an entry asks. ``unsupported``: slug -> (label, why it is never asked)."""

    groups: tuple[Group, ...]
    unsupported: dict[str, tuple[str, str]]

    def group_of(self, class_slug: str) -> Group | None:
        """The group that answers a class, or ``None`` if its label is never asked."""
        return next((group for group in self.groups if class_slug in group.classes), None)


def entry_requests(
    entry: Entry, classes: Mapping[str, str], model: Model, source: Entry | None = None
) -> EntryRequests:
    """Cut an entry's labels into groups.

    classes: slug -> display name of all classes, in order of registration. Classes that the entry
        names come first, in the entry's order, so that a new folder never moves a label.
    source: the entry whose regions are looked at; classes that ask one label about regions of
        different labels are asked apart.
    """
    covered = {slug: name for slug, name in classes.items() if entry.covers(name)}
    order = {name: i for i, name in enumerate(entry.classes or tuple(entry.ask))}
    slugs = sorted(covered, key=lambda slug: order.get(covered[slug], len(order)))
    label_of = {slug: entry.label_for(covered[slug]) for slug in slugs}
    # Labels that come from another entry stand in no plan: whoever asks them looks at each.
    reasons = {
        label: None if entry.labels_from else model.why_unsupported(label, entry.task)
        for label in label_of.values()
    }
    unsupported = {
        slug: (label, reason) for slug, label in label_of.items() if (reason := reasons[label])
    }
    asked_of = {
        slug: (label, source.label_for(covered[slug]) if source else None)
        for slug, label in label_of.items()
    }
    units = list(dict.fromkeys(asked_of.values()))
    groups = []
    for start in range(0, len(units), entry.labels_per_prompt):
        stop = start + entry.labels_per_prompt
        cut = [unit for unit in units[start:stop] if not reasons[unit[0]]]
        if not cut:
            continue
        labels = tuple(dict.fromkeys(label for label, _ in cut))
        # A task that takes one label a prompt has no room for others beside it.
        alone = RULES[entry.task].labels_per_prompt == 1
        distractors = () if alone else dict.fromkeys(entry.distractors)
        extra = [
            d for d in distractors if d not in labels and not model.why_unsupported(d, entry.task)
        ]
        asked = (*labels, *extra)
        text = model.prompt(entry.task, asked, entry.skeleton)
        identity: list[Any] = [entry.name, entry.task, text, asked]
        identity += [sorted(entry.references.items())] if entry.references else []
        identity += ["top_down"] if entry.top_down else []
        identity += [entry.tiles.model_dump()] if entry.tiles else []
        identity += [["regions", entry.regions, *cut]] if entry.regions else []
        identity += (
            [["names", entry.labels_from, entry.group_size, *cut, *entry.distractors]]
            if entry.labels_from
            else []
        )
        groups.append(
            Group(
                labels=asked,
                classes={slug: unit[0] for slug, unit in asked_of.items() if unit in cut},
                request_hash=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
            )
        )
    return EntryRequests(tuple(groups), unsupported)
