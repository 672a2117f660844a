"""Section of the report: what another model answered otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from labeling_pipeline.evaluation.drift import ModelDrift, in_words
from labeling_pipeline.evaluation.report.data import Form, Headline, Picture, Section, many

MOST_CHANGED = 20
"""Images that are listed."""


@dataclass(frozen=True)
class DriftReport:
    """What changed from other models to those of the plan.

    before, now: entry -> which model answered, for the entries that can be compared.
    without: entry -> why it cannot.
    examples: pictures of what changed most.
    """

    measured: ModelDrift
    before: Mapping[str, str]
    now: Mapping[str, str]
    without: Mapping[str, str]
    figures: tuple[Picture, ...] = ()
    examples: tuple[Picture, ...] = ()

    @property
    def sentences(self) -> dict[str, str]:
        """Entry -> what changed."""
        return {
            row["entry"]: f"{self.now[row['entry']]} after {self.before[row['entry']]}. "
            + in_words(row)
            for row in self.measured.per_entry.to_dict("records")
        }

    @staticmethod
    def in_short(image: Mapping[str, Any]) -> str:
        """What changed on an image, without what did not. image: a row of ``per_image``."""
        counts = {"lost": "lost", "new": "new", "moved": "moved", "texts_changed": "texts changed"}
        told = [f"{image[name]} {what}" for name, what in counts.items() if image[name]]
        if image["keypoints_moved"]:
            told.append(f"{image['keypoints_moved']} of {image['keypoints']} keypoints moved")
        return ", ".join(told + ([image["states"]] if image["states"] else []))

    @property
    def turned(self) -> pd.DataFrame:
        """Of ``ModelDrift.transitions``, those to another state."""
        transitions = self.measured.transitions
        return transitions[transitions["before"] != transitions["now"]]

    @property
    def most_changed(self) -> int:
        """See ``MOST_CHANGED``."""
        return MOST_CHANGED


def drift_section(report: DriftReport) -> Section:
    """The section."""
    headlines: tuple[Headline, ...] = ()
    if report.before:
        images = many(len(report.measured.per_image), "image", "images")
        headlines = (
            Headline(
                "Boxes as of the other model",
                report.measured.share_as_before,
                Form.SHARE,
                f"{images} answered by both",
            ),
        )
    return Section(
        "drift",
        "Model drift",
        "drift.html.j2",
        report if report.before else None,
        headlines=headlines,
        absent="Model drift: " + why_nothing_is_compared(report.without),
    )


def why_nothing_is_compared(without: Mapping[str, str]) -> str:
    """A sentence. without: as in `DriftReport`."""
    reasons: dict[str, list[str]] = {}
    for entry, reason in without.items():
        reasons.setdefault(reason, []).append(entry)
    told = [f"{reason} ({', '.join(entries)})" for reason, entries in reasons.items()]
    return ("; ".join(told) or "the plan has no entries") + "."
