from types import SimpleNamespace

import dagster as dg
import pytest

from assets.progress import LISTENERS, Reporter

IMAGES, IMAGE_S = 40, 0.25


def test_a_step_over_many_classes_logs_every_few_seconds_and_never_for_each_image(
    monkeypatch: pytest.MonkeyPatch,
):
    now = 0.0
    monkeypatch.setattr("assets.progress.time", SimpleNamespace(monotonic=lambda: now))
    heard: list[tuple[str, int, int]] = []
    monkeypatch.setattr("assets.progress.LISTENERS", [*LISTENERS, lambda *at: heard.append(at)])

    @dg.asset
    def labels(context: dg.AssetExecutionContext) -> None:
        nonlocal now
        report = Reporter(context)
        # No class takes as long as the time between two lines.
        for class_slug in ("ants", "bees", "cats", "dogs"):
            of_class = report.of(f"labels[{class_slug}]")
            of_class(0, IMAGES // 4)
            for done in range(1, IMAGES // 4 + 1):
                now += IMAGE_S
                of_class(done, IMAGES // 4)

    with dg.DagsterInstance.ephemeral() as instance:
        run_id = dg.materialize([labels], instance=instance).run_id
        lines = [e.user_message for e in instance.all_logs(run_id) if e.dagster_event is None]
    assert lines == ["labels[bees]: 10 of 10", "labels[dogs]: 10 of 10"]
    assert heard[:2] == [("labels[ants]", 0, 10), ("labels[ants]", 1, 10)]
    assert len(heard) == IMAGES + 4
