"""Section of the report: what a sample that was checked by hand says."""

from collections.abc import Sequence
from dataclasses import dataclass

from labeling_pipeline.evaluation.audit import AuditEstimate, EntryAudit
from labeling_pipeline.evaluation.report.data import (
    Form,
    Headline,
    Picture,
    Section,
    many,
    percent,
)
from labeling_pipeline.evaluation.survey import Estimate


@dataclass(frozen=True)
class AuditReport:
    """The audit of every entry of which some rows were checked."""

    audits: Sequence[EntryAudit]
    figures: tuple[Picture, ...] = ()

    @staticmethod
    def rows(audit: EntryAudit) -> list[tuple[str, int, int, AuditEstimate]]:
        """(label, pairs, rows of the sheet, estimate), labels of which rows were checked."""
        return [
            (label, *audit.sizes[label], estimated)
            for label, estimated in audit.per_label.items()
            if estimated.checked
        ]

    @staticmethod
    def written(estimate: Estimate | None) -> str:
        """A share with its interval; a dash if there is none."""
        if estimate is None:
            return "–"
        low, high = percent(estimate.interval.low), percent(estimate.interval.high)
        return f"{percent(estimate.value)} ({low} to {high})"


def audit_section(
    audits: Sequence[EntryAudit], figures: Sequence[Picture], why_not: str
) -> Section:
    """The section. why_not: why there is none, in the middle of a sentence."""
    checked = [audit for audit in audits if audit.checked]
    return Section(
        "audit",
        "Audit",
        "audit.html.j2",
        AuditReport(checked, tuple(figures)) if checked else None,
        headlines=tuple(
            Headline(
                f"Audited {name} of {audit.entry}",
                found.value,
                Form.SHARE,
                f"{audit.checked:,} of {many(audit.rows, 'row', 'rows')} checked by hand",
                interval=found.interval,
                more_is_better=True,
            )
            for audit in checked
            for name, found in (
                ("precision", audit.overall.precision),
                ("recall", audit.overall.recall),
            )
            if found is not None
        ),
        absent=f"Audit: {why_not}.",
    )
