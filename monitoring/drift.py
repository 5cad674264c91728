"""Evidently: how far a window's features and scores are from the version's own evaluated snapshot.

PSI over reference deciles is registered with Evidently as its drift method, so the figure in its
report is the figure that decides.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monitoring.psi import psi

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

METHOD = "psi_reference_deciles"
SCORE = "score"
MOST_ROWS = 100_000
"""Entities that go into Evidently's report: a sample of fixed seed where there are more."""


@dataclass(frozen=True)
class Drift:
    """PSI by column (features and `score`), over all rows; and null shares of the features.

    PSI is nan where the window or the reference has no value.
    """

    psi: dict[str, float]
    null_share: dict[str, float]
    reference_null_share: dict[str, float]


def measure(
    reference: pd.DataFrame, current: pd.DataFrame, folder: Path, significant: float
) -> Drift:
    """Compare columns of `reference`; write Evidently's `report.html` and `report.json`.

    Both frames have the same columns: the features, and `score`.
    """
    report = _report(_sample(reference), _sample(current), significant)
    report.save_html(str(folder / "report.html"))
    report.save_json(str(folder / "report.json"))
    names = [str(name) for name in reference]
    return Drift(
        psi={name: psi(reference[name], current[name]) for name in names},
        null_share={name: float(current[name].isna().mean()) for name in names},
        reference_null_share={name: float(reference[name].isna().mean()) for name in names},
    )


def _sample(rows: pd.DataFrame) -> pd.DataFrame:
    return rows if len(rows) <= MOST_ROWS else rows.sample(MOST_ROWS, random_state=0)


def _report(reference: pd.DataFrame, current: pd.DataFrame, significant: float) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Evidently's own, on libraries it uses
        from evidently import DataDefinition, Dataset, Report  # noqa: PLC0415  (5 s)
        from evidently.metrics import MissingValueCount, ValueDrift  # noqa: PLC0415

        _register()
        text = [name for name in reference if reference[name].dtype == object]
        numbers = [name for name in reference if name not in text]
        # Evidently raises on a column without any value; MissingValueCount says it instead.
        filled = [n for n in reference if reference[n].notna().any() and current[n].notna().any()]
        shape = DataDefinition(numerical_columns=numbers, categorical_columns=text)
        metrics: Sequence[Any] = [
            *(ValueDrift(column=n, method=METHOD, threshold=significant) for n in filled),
            *(MissingValueCount(column=name) for name in reference),
        ]
        frames = (Dataset.from_pandas(rows, data_definition=shape) for rows in (current, reference))
        return Report(list(metrics)).run(*frames)


def _register() -> None:
    from evidently.legacy.calculations.stattests import (  # noqa: PLC0415
        StatTest,
        register_stattest,
    )
    from evidently.legacy.core import ColumnType  # noqa: PLC0415

    kinds = [ColumnType.Numerical, ColumnType.Categorical]
    test = StatTest(METHOD, "PSI, reference deciles", kinds, default_threshold=0.25)

    def figure(
        reference: pd.Series[Any], current: pd.Series[Any], _kind: str, threshold: float
    ) -> tuple[float, bool]:
        value = psi(reference, current)
        return value, value >= threshold

    register_stattest(test, figure)
