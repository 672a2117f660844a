"""Section of the report: human-action recognition."""

from dataclasses import dataclass

from labeling_pipeline.evaluation.actions import ActionEvaluation
from labeling_pipeline.evaluation.report.data import Form, Headline, Picture, Section, percent


@dataclass(frozen=True)
class ActionReport:
    """How well actions were recognised."""

    evaluation: ActionEvaluation
    figures: tuple[Picture, ...] = ()


def actions_section(report: ActionReport | None, why_not: str = "") -> Section:
    """The section. why_not: why there is none, in the middle of a sentence."""
    headlines: tuple[Headline, ...] = ()
    if report is not None:
        evaluation = report.evaluation
        headlines = (
            Headline(
                "Action accuracy",
                evaluation.accuracy_all,
                Form.SHARE,
                f"{percent(evaluation.accuracy_predicted)} where predicted",
                more_is_better=True,
            ),
        )
    return Section(
        "actions",
        "Actions",
        "actions.html.j2",
        report,
        headlines=headlines,
        absent=f"Action recognition: {why_not or 'there are no action predictions'}.",
    )
