"""Tables of boxes as arrays: a data set has many more rows than anything else, and slicing tables
would dominate."""

import numpy as np
import pandas as pd

from labeling_pipeline.evaluation.ground_truth import BOX_COLUMNS

PAIR = ["image_id", "label"]


def pairs_of(asked: pd.DataFrame) -> pd.DataFrame:
    """``image_id, label`` of what was asked, each once, sorted."""
    return asked[PAIR].drop_duplicates().sort_values(PAIR, ignore_index=True)


def rows_of(rows: pd.DataFrame, keys: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows whose key columns occur in ``keys``, in an order of their own content.

    Returns:
        The n rows, and (n,) int64, which row of ``keys`` each belongs to.
    """
    columns = list(keys.columns)
    if rows.empty or keys.empty:
        return rows.iloc[:0], np.empty(0, dtype=np.int64)
    place = pd.MultiIndex.from_frame(keys).get_indexer(pd.MultiIndex.from_frame(rows[columns]))
    known = rows[place >= 0].assign(_place=place[place >= 0].astype(np.int64))
    by = [name for name in (*BOX_COLUMNS, "score") if name in rows]
    known = known.sort_values(["_place", *by], kind="stable", ignore_index=True)
    return known.drop(columns="_place"), known["_place"].to_numpy()


def boxes_of(rows: pd.DataFrame) -> np.ndarray:
    """(n, 4) float64, xyxy in pixels."""
    return rows[BOX_COLUMNS].to_numpy(dtype=float).reshape(-1, 4)


def scores_of(rows: pd.DataFrame) -> np.ndarray:
    """(n,) float64; a missing score is NaN."""
    return pd.to_numeric(rows["score"]).to_numpy(dtype=float, na_value=np.nan)


def crowd_of(truths: pd.DataFrame) -> np.ndarray:
    """(n,) bool, which true boxes are crowd regions."""
    if "iscrowd" not in truths:
        return np.zeros(len(truths), dtype=bool)
    return truths["iscrowd"].to_numpy(dtype=bool)


def areas_of(truths: pd.DataFrame) -> np.ndarray:
    """(n,) float64 areas of true objects as the truth has them, else of their boxes; px²."""
    sides = boxes_of(truths).reshape(-1, 2, 2)
    of_boxes = np.clip(sides[:, 1] - sides[:, 0], 0, None).prod(axis=1)
    if "area" not in truths:
        return of_boxes
    given = pd.to_numeric(truths["area"]).to_numpy(dtype=float, na_value=np.nan)
    return np.where(np.isnan(given), of_boxes, given)
