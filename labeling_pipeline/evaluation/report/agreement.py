"""Section of the report: how far different models agree."""

from dataclasses import dataclass

from labeling_pipeline.evaluation.agreement import Agreement
from labeling_pipeline.evaluation.report.data import Form, Headline, Picture, Section, many

MOST_DISAGREEING = 20
"""Images that are listed."""


@dataclass(frozen=True)
class AgreementReport:
    """How far entries with different models agree."""

    measured: Agreement
    figures: tuple[Picture, ...] = ()

    @property
    def most_disagreeing(self) -> int:
        """See ``MOST_DISAGREEING``."""
        return MOST_DISAGREEING


def agreement_section(report: AgreementReport | None) -> Section:
    """The section."""
    headlines: tuple[Headline, ...] = ()
    if report is not None:
        images = many(len(report.measured.per_image), "image", "images")
        headlines = (
            Headline(
                "Agreement of models",
                report.measured.mean,
                Form.NUMBER,
                f"{images} compared",
                more_is_better=True,
            ),
        )
    return Section(
        "agreement",
        "Agreement",
        "agreement.html.j2",
        report,
        headlines=headlines,
        absent=(
            "Agreement of models: no two entries ask the same label of a class with different "
            "models."
        ),
    )
