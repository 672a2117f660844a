import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling_pipeline.errors import ConfigurationError, PlanError
from labeling_pipeline.models.base import Model
from labeling_pipeline.models.cards import ModelSettings
from labeling_pipeline.models.registry import EMBEDDED, load_model
from labeling_pipeline.plan import Entry, class_slug, entry_requests, load_plan, parse_plan
from labeling_pipeline.tasks import PERSON, Task

PLANS = sorted((Path(__file__).parents[1] / "plans").glob("*.yaml"))
E_ACUTE_NFC, E_ACUTE_NFD = "caf\u00e9", "cafe\u0301"


# Valid plans


def test_the_least_plan_takes_every_default():
    plan = parse_plan("entries:\n  - name: object\n    task: detection\n")
    (entry,) = plan.entries
    assert (entry.asset, entry.task, entry.skeleton) == (
        "object_annotations",
        Task.DETECTION,
        None,
    )
    assert plan.model_of(entry) == EMBEDDED
    assert entry.covers("anything")
    assert entry.label_for("anything") == "anything"
    assert plan.class_names == ()
    assert plan.action_entry() is None


FULL = """\
model: rex-omni
ground_truth: ../truth.json
runtime: {device: cpu, batch_size: 2}
cleaning: {min_side_px: 8}
entries:
  - name: posture
    task: keypoint
    model: tiny-rex-omni
    classes: [sitting, lying]
    ask: {"*": person}
    threshold: 0.5
  - name: object_2
    task: detection
    ask: {sitting: chair, "my dog": dog}
    distractors: [table]
    group_size: 3
actions: {entry: posture, folds: 3, seed: 7}
calibration: {target_precision: 0.9}
thresholds: ../thresholds.yaml
"""


def test_a_full_plan_says_everything_it_says():
    plan = parse_plan(FULL, "plans/full.yaml")
    assert (plan.calibration.target_precision, plan.calibration.folds) == (0.9, 5)
    assert plan.thresholds_path == Path("plans/../thresholds.yaml")
    posture, thing = plan.entries
    assert plan.entry("posture") is posture
    assert [plan.model_of(e) for e in plan.entries] == ["tiny-rex-omni", "rex-omni"]
    assert posture.skeleton is PERSON
    assert [posture.covers(name) for name in ("sitting", "my dog")] == [True, False]
    assert posture.label_for("sitting") == "person"
    assert [thing.label_for(name) for name in ("sitting", "my dog", "cup")] == [
        "chair",
        "dog",
        "cup",
    ]
    assert plan.class_names == ("sitting", "lying", "my dog")
    assert plan.action_entry() is posture
    assert (plan.actions.folds, plan.actions.seed) == (3, 7)
    assert (plan.cleaning.min_side_px, plan.runtime.batch_size) == (8, 2)
    assert plan.ground_truth == ("../truth.json",)


@pytest.mark.parametrize(
    ("said", "files"),
    [
        ("", ()),
        ("ground_truth:", ()),
        ("ground_truth: truth.json", ("truth.json",)),
        ("ground_truth: [truth.json, yolo/data.yaml]", ("truth.json", "yolo/data.yaml")),
    ],
)
def test_there_may_be_no_truth_one_or_several(said, files):
    plan = parse_plan(f"{said}\nentries: [{{name: object, task: detection}}]")
    assert plan.ground_truth == files


def test_a_truth_that_is_no_file_name_is_told_with_its_place():
    text = "entries: [{name: object, task: detection}]\nground_truth: [truth.json, 7]"
    with pytest.raises(
        PlanError, match=r"plan:2: ground_truth\[1\]: expected a valid string, got 7"
    ):
        parse_plan(text)


def test_actions_are_told_apart_by_the_first_keypoint_entry_unless_said():
    plan = parse_plan(
        "entries:\n- {name: a, task: detection}\n- {name: b, task: keypoint}\n"
        "- {name: c, task: keypoint}\n"
    )
    entry = plan.action_entry()
    assert entry is not None
    assert entry.name == "b"


@pytest.mark.parametrize("task", ["detection", "referring", "layout", "pointing"])
def test_zero_shot_goes_by_an_entry_that_asks_for_several_labels_at_once(task: str):
    plan = parse_plan(
        f"entries: [{{name: pose, task: keypoint}}, {{name: a, task: {task}}}]\n"
        "actions: {zero_shot: a, test_folder: test, top_k: 2, target_accuracy: 0.9}\n"
    )
    entries = plan.action_entry(), plan.zero_shot_entry()
    assert [entry.name for entry in entries if entry] == ["pose", "a"]
    assert (plan.actions.top_k, plan.actions.target_accuracy) == (2, 0.9)
    assert parse_plan("entries: [{name: a, task: detection}]").zero_shot_entry() is None


def test_another_model_from_outside_is_asked_by_every_entry():
    plan = parse_plan(FULL).with_model("rex-omni", device="cuda")
    assert {plan.model_of(entry) for entry in plan.entries} == {"rex-omni"}
    assert (plan.runtime.device, plan.runtime.batch_size) == ("cuda", 2)


def test_an_entry_that_reads_text_needs_to_name_no_model():
    plan = parse_plan(
        "entries:\n- {name: text, task: ocr_box}\n- {name: object, task: detection}\n"
    )
    assert [plan.model_of(e) for e in plan.entries] == ["rapidocr", EMBEDDED]
    plan.check_models()
    outside = plan.with_model("rex-omni")
    assert {outside.model_of(e) for e in outside.entries} == {"rex-omni"}


def test_a_model_that_only_reads_text_is_refused_for_anything_else():
    plan = parse_plan("entries: [{name: a, task: detection, model: rapidocr}]")
    with pytest.raises(ConfigurationError, match=r"rapidocr cannot do detection.*rex-omni"):
        plan.check_models()


@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_every_plan_that_is_shipped_is_valid_and_names_models_that_exist(path: Path):
    plan = load_plan(path)
    plan.check_models()
    assert plan.file == str(path)
    assert plan.entries


def test_there_are_plans_to_check():
    assert {path.stem for path in PLANS} >= {"faces", "objects", "postures", "sample"}


@pytest.mark.parametrize("spelling", [E_ACUTE_NFC, E_ACUTE_NFD])
def test_a_class_is_found_in_either_unicode_form(spelling: str):
    plan = parse_plan(
        f"entries:\n- name: a\n  task: detection\n  classes: [{spelling}]\n"
        f"  ask: {{{spelling}: coffee house}}\n"
    )
    (entry,) = plan.entries
    assert entry.covers(E_ACUTE_NFC)
    assert entry.label_for(E_ACUTE_NFC) == "coffee house"
    assert plan.class_names == (E_ACUTE_NFC,)


# Mistakes


class Mistake(NamedTuple):
    text: str
    line: int
    where: str
    expected: str
    got: str


def entry_with(*lines: str) -> str:
    """Lines 3 and on are the given ones."""
    return "\n".join(["entries:", "  - name: object", *(f"    {line}" for line in lines), ""])


MISTAKES = {
    "an unknown key": Mistake(
        "modell: x\nentries: [{name: a, task: detection}]\n",
        *(1, "modell", "one of the keys entries, model, .*actions", "'modell'"),
    ),
    "an unknown key of an entry": Mistake(
        entry_with("task: detection", "label: cat"),
        *(4, "entries[0].label", "one of the keys name, task, .*threshold", "'label'"),
    ),
    "an unknown cleaning rule": Mistake(
        "cleaning:\n  min_side: 3\nentries: [{name: a, task: detection}]\n",
        *(2, "cleaning.min_side", "one of the keys min_side_px, ", "'min_side'"),
    ),
    "a box that may move before it is another": Mistake(
        "drift: {iou: 0.6, moved_iou: 0.5}\nentries: [{name: a, task: detection}]\n",
        *(1, "drift", r"moved_iou to be at least iou \(0.6\)", "0.5"),
    ),
    "no overlap at all": Mistake(
        "drift: {iou: 0}\nentries: [{name: a, task: detection}]\n",
        *(1, "drift.iou", "greater than 0", "0"),
    ),
    "an unknown setting of the review": Mistake(
        "review:\n  images: 3\nentries: [{name: a, task: detection}]\n",
        *(2, "review.images", "one of the keys pictures", "'images'"),
    ),
    "an unknown limit of the checks": Mistake(
        "checks:\n  max_rejected: 3\nentries: [{name: a, task: detection}]\n",
        *(2, "checks.max_rejected", "one of the keys max_rejected_share, ", "'max_rejected'"),
    ),
    "a share over 1": Mistake(
        "checks:\n  score_drift: 3\nentries: [{name: a, task: detection}]\n",
        *(2, "checks.score_drift", "less than or equal to 1", "3"),
    ),
    "an unknown runtime setting": Mistake(
        "runtime:\n  gpu: 0\nentries: [{name: a, task: detection}]\n",
        *(2, "runtime.gpu", "one of the keys device, dtype, ", "'gpu'"),
    ),
    "an unknown key of actions": Mistake(
        "actions:\n  fold: 3\nentries: [{name: a, task: keypoint}]\n",
        *(2, "actions.fold", "one of the keys entry, zero_shot, folds, seed", "'fold'"),
    ),
    "a test folder that is no top folder": Mistake(
        "actions:\n  test_folder: data/test\nentries: [{name: a, task: keypoint}]\n",
        *(2, "actions.test_folder", "the name of a top folder of the images", "'data/test'"),
    ),
    "the top 0": Mistake(
        "actions:\n  top_k: 0\nentries: [{name: a, task: keypoint}]\n",
        *(2, "actions.top_k", "greater than or equal to 1", "0"),
    ),
    "an accuracy of more than all": Mistake(
        "actions: {target_accuracy: 95}\nentries: [{name: a, task: keypoint}]\n",
        *(1, "actions.target_accuracy", "less than or equal to 1", "95"),
    ),
    "an unknown key of the audit": Mistake(
        "audit:\n  rows: 3\nentries: [{name: a, task: detection}]\n",
        *(2, "audit.rows", "one of the keys per_label, seed", "'rows'"),
    ),
    "an audit of a single row": Mistake(
        "audit:\n  per_label: 1\nentries: [{name: a, task: detection}]\n",
        *(2, "audit.per_label", "greater than or equal to 2", "1"),
    ),
    "a key that is ours": Mistake(
        "entries: [{name: a, task: detection}]\nfile: me\n",
        *(2, "file", "one of the keys entries, ", "'file'"),
    ),
    "a missing key": Mistake(entry_with(), 2, "entries[0].task", "a value here", "none"),
    "no entries": Mistake("model: rex-omni\n", 1, "entries", "a value here", "none"),
    "an empty list of entries": Mistake(
        "model: rex-omni\nentries: []\n", 2, "entries", "at least one entry", "none"
    ),
    "entries that are no list": Mistake("entries: object\n", 1, "entries", "a list", "'object'"),
    "an entry that is no mapping": Mistake(
        "entries:\n  - object\n", 2, "entries[0]", "a mapping", "'object'"
    ),
    "an unknown task": Mistake(
        entry_with("task: detecting"),
        *(3, "entries[0].task", "'detection', .* or 'region_to_ocr'", "'detecting'"),
    ),
    "a bad name": Mistake(
        "entries:\n  - task: detection\n    name: My Objects\n",
        *(3, "entries[0].name", r"text that should match pattern '\^\[a-z\]", "'My Objects'"),
    ),
    "a name with a line break": Mistake(
        'entries:\n  - name: "a\\n"\n    task: detection\n',
        *(2, "entries[0].name", "text that should match pattern", r"'a\n'"),
    ),
    "two entries of one name": Mistake(
        "model: rex-omni\nentries:\n- {name: a, task: detection}\n- {name: a, task: keypoint}\n",
        *(2, "entries", "every entry to have a name of its own", "['a', 'a']"),
    ),
    "a threshold out of range": Mistake(
        entry_with("task: detection", "threshold: 1.5"),
        *(4, "entries[0].threshold", "less than or equal to 1", "1.5"),
    ),
    "a precision that nothing can have": Mistake(
        "calibration: {target_precision: 1.0}\nentries: [{name: a, task: detection}]\n",
        *(1, "calibration.target_precision", "less than 1", "1.0"),
    ),
    "an unknown key of calibration": Mistake(
        "calibration: {precision: 0.9}\nentries: [{name: a, task: detection}]\n",
        *(1, "calibration.precision", "one of the keys target_precision, folds", "'precision'"),
    ),
    "a group of nothing": Mistake(
        entry_with("task: detection", "group_size: 0"),
        *(4, "entries[0].group_size", "greater than or equal to 1", "0"),
    ),
    "a number where text belongs": Mistake(
        entry_with("task: detection", "ask:", "  cat: 7"),
        *(5, "entries[0].ask.cat", "a valid string", "7"),
    ),
    "classes that are no list": Mistake(
        entry_with("task: detection", "classes: cat"),
        *(4, "entries[0].classes", "a list", "'cat'"),
    ),
    "a second entry": Mistake(
        "entries:\n  - {name: a, task: detection}\n  - name: b\n    task: walk\n",
        *(4, "entries[1].task", "'detection', .* or 'region_to_ocr'", "'walk'"),
    ),
    "a setting out of range": Mistake(
        "runtime: {batch_size: 0}\nentries: [{name: a, task: detection}]\n",
        *(1, "runtime.batch_size", "greater than or equal to 1", "0"),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_by_file_line_place_expected_and_got(tmp_path: Path, mistake: Mistake):
    path = tmp_path / "plan.yaml"
    path.write_text(mistake.text, encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    start = re.escape(f"{path}:{mistake.line}: {mistake.where}: expected ")
    assert re.fullmatch(
        f"{start}{mistake.expected}.*, got {re.escape(mistake.got)}", str(caught.value)
    ), str(caught.value)


def test_every_mistake_is_told_not_only_the_first():
    text = "modell: x\nentries:\n  - name: A\n    task: detect\n    threshold: 3\n"
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "p.yaml")
    places = [line.split(": ")[:2] for line in str(caught.value).splitlines()]
    assert sorted(places) == [
        ["p.yaml:1", "modell"],
        ["p.yaml:3", "entries[0].name"],
        ["p.yaml:4", "entries[0].task"],
        ["p.yaml:5", "entries[0].threshold"],
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", "plan.yaml:1: expected a mapping with `entries`, got nothing", id="empty"),
        pytest.param("# only words\n", "plan.yaml:1: expected a mapping", id="only a comment"),
        pytest.param("- a\n- b\n", "plan.yaml:1: .*mapping.*, got list", id="a list"),
        pytest.param("just text", "plan.yaml:1: .*mapping.*, got str", id="text"),
        pytest.param("entries: [\n- {", "plan.yaml:[23]: expected valid YAML", id="unclosed"),
        pytest.param(
            "entries:\n  - name: a\n   task: b\n",
            "plan.yaml:3: expected valid YAML",
            id="indentation",
        ),
        pytest.param("a: 1\n---\nb: 2\n", "plan.yaml:2: expected valid YAML", id="two documents"),
        pytest.param("entries: !!python/none x\n", "plan.yaml:1: expected valid YAML", id="a tag"),
        pytest.param("entries: \x00", "plan.yaml:1: expected valid YAML", id="control character"),
        pytest.param("model: 2026-13-45", "plan.yaml:1: expected valid YAML", id="no such date"),
        pytest.param(
            "actions: {entry: a}\nentries: [{name: a, task: detection}]",
            r"plan.yaml:\d: expected actions.entry to be a keypoint entry .*, got 'a'",
            id="actions of an entry without keypoints",
        ),
        *(
            pytest.param(
                f"actions: {{zero_shot: a}}\nentries: [{entry}]",
                r"plan.yaml:\d: expected actions.zero_shot to be an entry that asks whole images .*"
                r"\(.*\), got 'a'",
                id=f"zero-shot of {what}",
            )
            for what, entry in {
                "keypoints": "{name: a, task: keypoint}",
                "text": "{name: a, task: ocr_box}",
                "one label a prompt": "{name: a, task: gui_box}",
                "crops": "{name: b, task: detection}, {name: a, task: detection, regions: b}",
                "no entry": "{name: b, task: detection}",
            }.items()
        ),
        pytest.param(
            "actions: {test_folder: cat}\nentries: [{name: a, task: keypoint, classes: [cat]}]",
            r"plan.yaml:\d: expected actions.test_folder to be no class, got 'cat'",
            id="a class for a test folder",
        ),
        pytest.param(
            "actions: {test_folder: test}\nsource: {layout: flat}\n"
            "entries: [{name: a, task: keypoint, classes: [cat]}]",
            r"plan.yaml:\d: expected actions.test_folder with classes from folders .*flat",
            id="a test folder without classes",
        ),
        pytest.param(
            "entries:\n  - {name: a, task: detection, tiles: {side: 3}}",
            r"plan.yaml:2: entries\[0\].tiles.side: expected one of the keys size_px, overlap, got",
            id="a tile that is unknown",
        ),
        pytest.param(
            "entries:\n  - {name: a, task: detection, top_down: true}",
            r"plan.yaml:2: entries\[0\]: expected top_down only with task keypoint",
            id="top-down without keypoints",
        ),
        pytest.param(
            "entries:\n  - {name: a, task: keypoint, regions: b}\n  - {name: b, task: detection}",
            r"plan.yaml:1: entries: expected entries\[0\].regions to be an earlier entry",
            id="regions of a later entry",
        ),
        pytest.param(
            "entries:\n  - {name: b, task: pointing}\n  - {name: a, task: keypoint, regions: b}",
            r"plan.yaml:1: entries: expected entries\[1\].regions .*there is none.*got 'b'",
            id="regions of points",
        ),
        pytest.param(
            "entries:\n  - {name: b, task: detection}\n"
            "  - {name: a, task: keypoint, regions: b, top_down: true}",
            r"plan.yaml:1: entries: expected entries\[1\].regions without .*, got top_down",
            id="regions and top-down",
        ),
        pytest.param(
            "entries:\n  - {name: b, task: detection}\n"
            "  - {name: a, task: detection, labels_from: b}",
            r"plan.yaml:1: entries: expected entries\[1\].labels_from to be an earlier entry that "
            r"names what it finds \(there is none\), got 'b'",
            id="labels from an entry that gives no names",
        ),
        pytest.param(
            "entries:\n  - {name: b, task: ocr_box}\n  - {name: a, task: keypoint, labels_from: b}",
            r"plan.yaml:1: entries: expected entries\[1\].labels_from with a task that asks for",
            id="labels for a task that takes none",
        ),
    ],
)
def test_a_file_that_is_no_plan_is_told_by_file_line_and_expected(text: str, expected: str):
    with pytest.raises(PlanError, match=f"^{expected}"):
        parse_plan(text, "plan.yaml")


def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(PlanError, match=r"missing\.yaml: .*No such file"):
        load_plan(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes("model: caf\u00e9".encode("latin-1"))
    with pytest.raises(PlanError, match=r"latin\.yaml: expected text in UTF-8"):
        load_plan(tmp_path / "latin.yaml")


def test_an_entry_that_is_not_there_lists_those_that_are():
    with pytest.raises(PlanError, match="'faces'; there are: posture, object_2"):
        parse_plan(FULL).entry("faces")


def test_a_model_that_does_not_exist_is_found_before_anything_runs():
    plan = parse_plan("entries: [{name: a, task: detection, model: nonsense}]")
    with pytest.raises(ConfigurationError, match=r"'nonsense'.*tiny-rex-omni"):
        plan.check_models()


# Slugs


def digest(name: str) -> str:
    return hashlib.sha256(unicodedata.normalize("NFC", name).encode()).hexdigest()[:6]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("cats", "cats", id="a slug already"),
        pytest.param("arms_raised-2", "arms_raised-2", id="digits, dash and underscore"),
        pytest.param("Cats", f"cats-{digest('Cats')}", id="case"),
        pytest.param("traffic light", f"trafficlight-{digest('traffic light')}", id="a space"),
        pytest.param("cups, mugs", f"cupsmugs-{digest('cups, mugs')}", id="a comma"),
        pytest.param("a/b\\c", f"abc-{digest('a/b' + chr(92) + 'c')}", id="slashes"),
        pytest.param("...", digest("..."), id="nothing but dots"),
        pytest.param("猫", digest("猫"), id="no ASCII letter at all"),
        pytest.param(E_ACUTE_NFC, f"caf-{digest(E_ACUTE_NFC)}", id="an accent, composed"),
        pytest.param(E_ACUTE_NFD, f"caf-{digest(E_ACUTE_NFC)}", id="an accent, decomposed"),
        pytest.param("cats\n", f"cats-{digest('cats' + chr(10))}", id="a line break"),
        pytest.param("٣", digest("٣"), id="a digit of another script"),
    ],
)
def test_a_class_has_a_slug_that_fits_everywhere(name: str, expected: str):
    assert class_slug(name) == expected


@given(st.text(min_size=1))
def test_a_slug_is_always_a_slug_and_the_same_in_every_unicode_form(name: str):
    name = name.encode("utf-8", "ignore").decode()
    slug = class_slug(name)
    assert re.fullmatch(r"[a-z0-9_-]+", slug)
    assert class_slug(slug) == slug
    assert class_slug(unicodedata.normalize("NFD", name)) == slug


# Groups


@pytest.fixture
def closed(tmp_path: Path) -> Model:
    """A model with the vocabulary a .. h."""
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"vocabulary": list("abcdefgh")}))
    return load_model(f"scripted:{script}", ModelSettings())


@pytest.fixture
def anything(tmp_path: Path) -> Model:
    """A model with an open vocabulary."""
    script = tmp_path / "open.json"
    script.write_text("{}")
    return load_model(f"scripted:{script}", ModelSettings())


def entry(**fields: object) -> Entry:
    return Entry.model_validate({"name": "object", "task": "detection"} | fields)


def named(names: Sequence[str]) -> dict[str, str]:
    return {class_slug(name): name for name in names}


def test_labels_are_cut_into_groups_in_order(closed: Model):
    requests = entry_requests(entry(group_size=2), named("ceabd"), closed)
    assert [group.labels for group in requests.groups] == [("c", "e"), ("a", "b"), ("d",)]
    assert [group.classes for group in requests.groups] == [
        {"c": "c", "e": "e"},
        {"a": "a", "b": "b"},
        {"d": "d"},
    ]
    assert requests.unsupported == {}
    group = requests.group_of("b")
    assert group is requests.groups[1]
    assert requests.group_of("z") is None


def test_classes_the_entry_names_come_first_in_its_order(closed: Model):
    by_classes = entry(classes=["d", "a", "c"], group_size=2)
    assert [g.labels for g in entry_requests(by_classes, named("abcdef"), closed).groups] == [
        ("d", "a"),
        ("c",),
    ]
    by_ask = entry(ask={"c": "h", "a": "g"}, group_size=2)
    assert [g.labels for g in entry_requests(by_ask, named("abc"), closed).groups] == [
        ("h", "g"),
        ("b",),
    ]


@pytest.mark.parametrize(
    ("before", "labels"),
    [
        pytest.param("abc", [("a", "b"), ("c", "d")], id="joins the last group"),
        pytest.param("abfc", [("a", "b"), ("f", "c"), ("d",)], id="opens a new group"),
    ],
)
def test_a_new_class_leaves_the_prompts_of_full_groups_alone(
    closed: Model, before: str, labels: list[tuple[str, ...]]
):
    old = entry_requests(entry(group_size=2), named(before), closed).groups
    new = entry_requests(entry(group_size=2), named(before + "d"), closed).groups
    assert [group.labels for group in new] == labels
    full = [group for group in old if len(group.labels) == 2]
    assert list(new[: len(full)]) == full
    assert new[-1].request_hash not in {group.request_hash for group in old}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"name": "thing"}, id="another entry"),
        pytest.param({"task": "keypoint"}, id="another task"),
        pytest.param({"distractors": ["h"]}, id="a distractor"),
        pytest.param({"ask": {"a": "g"}}, id="another label"),
        pytest.param({"classes": ["b", "a"]}, id="another order"),
    ],
)
def test_another_prompt_has_another_request_hash(closed: Model, fields: dict[str, object]):
    (plain,) = entry_requests(entry(), named("ab"), closed).groups
    (other,) = entry_requests(entry(**fields), named("ab"), closed).groups
    assert other.request_hash != plain.request_hash


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"threshold": 0.5}, id="a threshold"),
        pytest.param({"group_size": 5}, id="a group size that cuts alike"),
        pytest.param({"model": "rex-omni"}, id="the model, which has a key of its own"),
    ],
)
def test_what_does_not_change_the_prompt_keeps_the_request_hash(
    closed: Model, fields: dict[str, object]
):
    plain = entry_requests(entry(), named("ab"), closed)
    assert entry_requests(entry(**fields), named("ab"), closed) == plain


def test_distractors_are_asked_last_in_every_group_and_answer_no_class(closed: Model):
    requests = entry_requests(
        entry(group_size=2, distractors=["b", "h", "h", "no such word"]), named("abc"), closed
    )
    assert [group.labels for group in requests.groups] == [("a", "b", "h"), ("c", "b", "h")]
    assert [group.classes for group in requests.groups] == [{"a": "a", "b": "b"}, {"c": "c"}]


def test_a_label_outside_the_vocabulary_is_never_asked_and_is_named_with_the_fix(closed: Model):
    requests = entry_requests(entry(group_size=2), named(["a", "zebra", "b", "c"]), closed)
    assert [group.labels for group in requests.groups] == [("a",), ("b", "c")]
    assert list(requests.unsupported) == ["zebra"]
    label, reason = requests.unsupported["zebra"]
    assert label == "zebra"
    assert "`ask`" in reason
    assert requests.group_of("zebra") is None


def test_a_vocabulary_that_grows_leaves_the_other_groups_alone(closed: Model, anything: Model):
    names = named(["a", "b", "zebra", "c", "d", "e"])
    small = entry_requests(entry(group_size=2), names, closed).groups
    large = entry_requests(entry(group_size=2), names, anything).groups
    assert [group.labels for group in small] == [("a", "b"), ("c",), ("d", "e")]
    assert [group.labels for group in large] == [("a", "b"), ("zebra", "c"), ("d", "e")]
    assert (small[0], small[2]) == (large[0], large[2])


def test_a_label_with_a_comma_is_never_asked_unless_renamed(anything: Model):
    names = named(["cups, mugs", "plates"])
    (slug, _) = names
    requests = entry_requests(entry(), names, anything)
    assert [group.labels for group in requests.groups] == [("plates",)]
    assert "comma" in requests.unsupported[slug][1]
    renamed = entry_requests(entry(ask={"cups, mugs": "cup"}), names, anything)
    assert [group.labels for group in renamed.groups] == [("cup", "plates")]
    assert renamed.unsupported == {}


def test_one_label_for_several_classes_is_asked_once_and_answers_all(closed: Model):
    requests = entry_requests(
        entry(ask={"*": "a", "b": "b"}, group_size=1), named(["x", "b", "y"]), closed
    )
    by_label = {group.labels: group.classes for group in requests.groups}
    assert by_label == {("a",): {"x": "a", "y": "a"}, ("b",): {"b": "b"}}


def test_an_entry_that_covers_no_class_asks_nothing(closed: Model):
    requests = entry_requests(entry(classes=["h"]), named("abc"), closed)
    assert (requests.groups, requests.unsupported) == ((), {})
