"""Four processes label four classes at once into one file, and a fifth reads all the time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labeling_pipeline.cleaning import clean
from labeling_pipeline.home import Home
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.inventory import update_inventory
from labeling_pipeline.plan import load_plan
from labeling_pipeline.store.annotation_store import AnnotationStore
from labeling_pipeline.store.database_file import DatabaseFile
from labeling_pipeline.store.maintenance import check
from tests.soak.datasets import asked_of, write_classes, write_script

pytestmark = pytest.mark.soak

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES = ("ants", "bees", "cats", "dogs")
IMAGES = 60
PLAN = """
model: scripted:SCRIPT
runtime: {batch_size: 2}
entries:
  - {name: object, task: detection, group_size: 1}
"""

WRITER = """
import json, logging, sys
from pathlib import Path
from labeling_pipeline.images.sources import open_source
from labeling_pipeline.labeling import label_class
from labeling_pipeline.plan import load_plan
from labeling_pipeline.store.annotation_store import AnnotationStore

waits = []
class Waits(logging.Handler):
    def emit(self, record):
        waits.append(record.waited_s)

log = logging.getLogger("labeling_pipeline.store.annotation_store")
log.setLevel(logging.DEBUG)
log.addHandler(Waits())
path, images, plan_file, slug = sys.argv[1:]
plan = load_plan(Path(plan_file))
store = AnnotationStore(Path(path))
print("ready", flush=True)
sys.stdin.readline()
label_class(store, plan, plan.entries[0], slug, open_source(images), slug)
print(json.dumps(waits))
"""

READER = """
import json, sys
from pathlib import Path
from labeling_pipeline.store.annotation_store import AnnotationStore

store = AnnotationStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
torn, counts = 0, [0]
while counts[-1] < int(sys.argv[2]):
    # One answer, one outcome, two annotations: written together or not at all.
    (row,) = store.query(
        "SELECT (SELECT count(*) FROM generations) AS generations, "
        "(SELECT count(*) FROM outcomes) AS outcomes, "
        "(SELECT count(*) FROM annotations) AS annotations"
    ).to_pylist()
    torn += not (row["generations"] == row["outcomes"] == row["annotations"] / 2)
    counts.append(row["outcomes"])
print(json.dumps({"torn": torn, "reads": len(counts), "backwards": counts != sorted(counts)}))
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.stderr and process.stderr.read()
    return process


def test_four_writers_and_a_reader_lose_nothing_and_wait_briefly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images, plan_file, log = tmp_path / "images", tmp_path / "plan.yaml", tmp_path / "asked.jsonl"
    sizes = [(48 + i % 60, 40 + i // 60) for i in range(len(CLASSES) * IMAGES)]
    write_classes(images, {name: sizes[n :: len(CLASSES)] for n, name in enumerate(CLASSES)})
    boxes = [[100, 100, 500, 500], [10, 20, 300, 400]]
    script = tmp_path / "script.json"
    write_script(script, boxes=dict.fromkeys(CLASSES, boxes), delay_s=0.02, log=str(log))
    plan_file.write_text(PLAN.replace("SCRIPT", str(script)))
    store = AnnotationStore(Home(tmp_path / "home").store_path)
    source = open_source(images)
    update_inventory(store, source)
    cleaned = clean(store, source, load_plan(plan_file).cleaning)
    assert set(cleaned.files.statuses) == {"accepted"}

    total = len(CLASSES) * IMAGES
    reader = start(READER, store.path, total)
    writers = [start(WRITER, store.path, images, plan_file, slug) for slug in CLASSES]
    waits: list[float] = []
    answers = []
    for process in (*writers, reader):
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in (*writers, reader):
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        answers.append(json.loads(output))
    *waits_of_each, read = answers
    waits = [wait for one in waits_of_each for wait in one]

    assert read["torn"] == 0
    assert not read["backwards"]
    assert read["reads"] > 10
    assert len(waits) >= total / 2
    rows = store.query(
        "SELECT class, count(*) AS n, count(DISTINCT image_id) AS images, "
        "count(*) FILTER (state = 'found') AS found FROM outcomes GROUP BY class ORDER BY class"
    ).to_pylist()
    assert rows == [
        {"class": slug, "n": IMAGES, "images": IMAGES, "found": IMAGES} for slug in CLASSES
    ]
    assert len(asked_of(log)) == total
    assert check(DatabaseFile(store.path)).problems == []
    with capsys.disabled():
        print(
            f"\n{len(waits)} batches by {len(CLASSES)} writers beside {read['reads']} reads: "
            f"worst wait to write {max(waits):.2f} s, mean {sum(waits) / len(waits):.3f} s"
        )
