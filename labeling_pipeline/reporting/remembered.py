"""What was worked out of a dataset is not worked out again while nothing has changed.

The evaluations and the report over them want the same numbers, one after the other in one process,
and at ten thousand images each takes seconds.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from labeling_pipeline.asks import current_view
from labeling_pipeline.images.sources import ImageSource
from labeling_pipeline.plan import Plan
from labeling_pipeline.reporting.truth_files import truth_digest
from labeling_pipeline.store.annotation_store import AnnotationStore

Work = TypeVar("Work", bound=Callable[..., Any])


def remembered(work: Work) -> Work:
    """Remember the last result of a function of a store and a plan, and perhaps of a source.

    It holds for as long as the store, the plan, the models and thresholds in force and, for one
    that is given the source, the ground truth are the same. Nobody may change what is returned.
    """
    last: tuple[object, Any] | None = None

    @functools.wraps(work)
    def once(store: AnnotationStore, plan: Plan, *source: ImageSource) -> Any:
        nonlocal last
        # Mappings are part of it: it can be compared, and not hashed.
        basis = _basis(store, plan, *source)
        if last is None or last[0] != basis:
            last = basis, work(store, plan, *source)
        return last[1]

    return cast(Work, once)


def _basis(store: AnnotationStore, plan: Plan, source: ImageSource | None = None) -> object:
    truth = source and (source.root, truth_digest(store, plan, source))
    return store.state, plan, current_view(plan), truth
