"""How often a window says "significant" where nothing changed, and how often where something did.

    python -m benchmarks.false_alarms [windows a size, 1000 if not given]

The reference is that of the churn model on the shipped orders: the newest matured snapshot, scored
by the spec's first estimator, trained on the snapshots before it. Windows are drawn from it with
replacement: as the entities of another day of the same population, which is what chance does to a
window; without, 5,000 of its rows would nearly be the reference. Every window is measured and
judged by the monitor's own functions (monitoring/drift.py, verdict.py).

Shifts: every value of one column moved by a share of its standard deviation in the reference (whole
numbers rounded, scores kept within 0 and 1), or a category drawn twice as often.

Outcomes come true as the scores of the reference say, or a fifth of them; the version then says
those scores (nothing changed), or for some of the entities another entity's.

Not shown: the reference is a sample itself. Against another one of its size n a window of m would
vary by (m + n) / n as much.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table, write_views
from feature_repo.source import pull
from feature_repo.store import publish_beside
from mlflow_server.served_model import rounded
from monitoring.drift import SCORE, compared
from monitoring.performance import measured
from monitoring.verdict import judge, worse
from stack.spec import load_spec
from tests.conftest import AS_OF, new_settings
from training.frame import at, build_frame, features
from training.metrics import Scored
from training.onnx_export import export
from training.scoring import score
from training.train import fit_pipeline
from training.validate import plan_run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from feature_repo.definition import Dataset
    from monitoring.drift import Drift
    from monitoring.performance import Performance
    from stack.settings import Settings
    from stack.spec import DriftLimits, ModelSpec
    from training.metrics import Scores

    Random = np.random.Generator
    Change = Callable[[pd.DataFrame, Random], pd.DataFrame]

MODEL, SIZES, WINDOWS = "customer_churn_model", (200, 300, 500, 1_000, 5_000), 1_000
MOST = 0.01
"""Share of windows without a change that may be told as significant."""
SHIFTED, SHIFTS = ("days_since_last_order", "avg_order_value", SCORE), (0.1, 0.25, 0.5)
CATEGORY = ("customer_segment", "loyal")
SCRAMBLED, RARER = (0.3, 0.6, 1.0), 5


def install(home: Path, dataset: Dataset) -> tuple[Settings, pa.Table]:
    """Make an installation that holds the rows shipped of `dataset` as of AS_OF; return both."""
    settings = new_settings(home)
    publish_beside(settings, dataset)
    rows, raw = pull(settings, dataset, AS_OF), raw_table(settings, dataset)
    known = rows.append_column("ingested_at", rows[dataset.event_time])
    raw.merge(known, dataset.key, rows.column_names)
    write_views(settings, dataset, raw)
    return settings, rows


def reference(spec: ModelSpec, home: Path) -> pd.DataFrame:
    """Features and `score` of the newest snapshot that matured by AS_OF, as the monitor has it."""
    dataset = load_dataset(spec.dataset)
    settings, version = install(home, dataset)[0], 0
    plan = plan_run(settings, spec, dataset, AS_OF, version)
    frame = build_frame(settings, spec, dataset, [*plan.train, plan.test], AS_OF, version)
    pipeline = fit_pipeline(spec, spec.estimators[0], at(frame, plan.train))
    rows = features(spec, at(frame, [plan.test]))
    scores = score(export(pipeline, spec.features).SerializeToString(), spec.features, rows)
    return rows.assign(**{SCORE: rounded(scores, spec.threshold)})


def drawn(rows: pd.DataFrame, size: int, chance: Random) -> pd.DataFrame:
    return rows.iloc[chance.integers(len(rows), size=size)]


def moved(rows: pd.DataFrame, column: str, share: float) -> Change:
    """Return what moves `column` of a window by `share` of its standard deviation in `rows`."""
    by, whole = share * rows[column].std(), pd.api.types.is_integer_dtype(rows[column])

    def change(window: pd.DataFrame, _: Random) -> pd.DataFrame:
        values = window[column] + by
        values = values.round() if whole else values.clip(0, 1) if column == SCORE else values
        return window.assign(**{column: values})

    return change


def doubled(column: str, category: str) -> Change:
    """Return what draws a window's rows again, those of `category` twice as often."""

    def change(window: pd.DataFrame, chance: Random) -> pd.DataFrame:
        mine = (window[column] == category).to_numpy()
        most = min(2 * mine.mean(), 1.0)
        odds = np.where(mine, most / max(mine.sum(), 1), (1 - most) / max((~mine).sum(), 1))
        return window.iloc[chance.choice(len(window), len(window), p=odds / odds.sum())]

    return change


def judged(
    limits: DriftLimits,
    rows: pd.DataFrame,
    size: int,
    windows: int,
    change: Change = lambda window, _: window,
) -> list[tuple[str, int, Drift]]:
    """Verdict, number of remarks and figures of windows of `size`, the same ones each time."""
    found = []
    for seed in range(windows):
        chance = np.random.default_rng([size, seed])
        drift = compared(rows, change(drawn(rows, size, chance), chance))
        verdict, bad, notes = judge(limits, size, drift, [])
        acting = [note for note in notes if not str(note).startswith(limits.informative)]
        found.append((verdict, len(bad) + len(acting), drift))
    return found


def share_bad(found: Sequence[tuple[str, int, Drift]]) -> float:
    return sum(verdict == "bad" for verdict, _, _ in found) / len(found)


def share_told(found: Sequence[tuple[str, int, Drift]]) -> float:
    return sum(told > 0 for _, told, _ in found) / len(found)


def come_true(
    spec: ModelSpec, scores: Scores, size: int, chance: Random, scrambled: float = 0.0
) -> Performance:
    """Draw what comes true of `size` entities, as `scores` say; `scrambled` of them got another's.

    Who acts does so from the mean score on.
    """
    true = chance.choice(scores, size)
    said = np.where(chance.random(size) < scrambled, chance.permutation(true), true)
    y = (chance.random(size) < true).astype(np.int64)
    return measured("logged", f"{size} outcomes", y, Scored(said, float(scores.mean())), spec)


def share_worse(
    spec: ModelSpec, scores: Scores, size: int, draws: int, scrambled: float = 0.0
) -> float:
    was = come_true(spec, scores, len(scores), np.random.default_rng(0)).metrics
    chances = (np.random.default_rng([size, seed]) for seed in range(draws))
    seen = (come_true(spec, scores, size, chance, scrambled) for chance in chances)
    return sum(bool(worse(each, was)) for each in seen) / draws


def line(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def main(windows: int) -> int:
    spec = load_spec(MODEL)
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name:
        rows = reference(spec, Path(name))
    sizes = [f"{size:,}" for size in SIZES]
    found = {size: judged(spec.drift, rows, size, windows) for size in SIZES}
    print(f"\n{windows:,} windows a size, drawn from the {len(rows):,} entities of the reference\n")
    line("nothing changed: entities", *sizes)
    line("---", *("---" for _ in SIZES))
    line("windows told as significant", *(f"{share_bad(found[size]):.1%}" for size in SIZES))
    line("with a remark (moderate)", *(f"{share_told(found[size]):.1%}" for size in SIZES))
    for column in rows:
        largest = (max(drift.psi[column] for _, _, drift in found[size]) for size in SIZES)
        line(f"largest PSI of {column}", *(f"{value:.2f}" for value in largest))
    print("\nWindows told as significant, and with a remark or so, of those that were changed\n")
    line("changed: entities", *sizes)
    line("---", *("---" for _ in SIZES))
    changes = {f"{c} + {by} sd": moved(rows, c, by) for c in SHIFTED for by in SHIFTS}
    for what, change in (changes | {f"{CATEGORY[1]} twice as often": doubled(*CATEGORY)}).items():
        seen = [judged(spec.drift, rows, size, windows // 10, change) for size in SIZES]
        line(what, *(f"{share_bad(each):.0%}, {share_told(each):.0%}" for each in seen))
    scores = rows[SCORE].to_numpy()
    print(
        f"\nOutcomes told as worse, of {windows:,} draws; of {windows // 10:,} where some changed\n"
    )
    line("outcomes", *sizes)
    line("---", *("---" for _ in SIZES))
    chance = [share_worse(spec, said, size, windows)
              for said in (scores, scores / RARER) for size in SIZES]  # fmt: skip
    line("nothing changed", *(f"{share:.1%}" for share in chance[: len(SIZES)]))
    line("nothing, a fifth of the ones", *(f"{share:.1%}" for share in chance[len(SIZES) :]))
    for some in SCRAMBLED:
        told = (share_worse(spec, scores, size, windows // 10, some) for size in SIZES)
        line(f"{some:.0%} of the scores are another's", *(f"{share:.0%}" for share in told))
    alarms = [*(share_bad(each) for each in found.values()), *chance]
    return 0 if max(alarms) <= MOST else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else WINDOWS))
