"""What is wrong in words that say what to do: advice.toml, the worst first."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from monitoring.console.checks import Check

TEXT = Path(__file__).with_name("advice.toml").read_text("utf-8")
ADVICE: list[dict[str, str]] = tomllib.loads(TEXT)["advice"]


@dataclass(frozen=True)
class Problem:
    """One cause, what to do, and where: a page of the console, or airflow/…, mlflow/…, serving/….

    checks: those that say so, the first one best. subjects: models, or what else it is about.
    """

    what: str
    do: str
    to: str
    checks: list[Check]
    subjects: list[str]


def problems(groups: Mapping[str, Iterable[Check]]) -> list[Problem]:
    """Return what is wrong by the checks of each subject, the worst first, each cause once."""
    found = dict[tuple[int, str, str], Problem]()
    bad = [
        (subject, each) for subject, of in groups.items() for each in of if not each.ok
    ]
    for subject, check in bad:
        said = f"{check.name}: {check.remark}"
        matches = (
            (n, each, re.search(each["match"], said)) for n, each in enumerate(ADVICE)
        )
        rank, advice, match = next(each for each in matches if each[2])
        values = {"subject": subject, "check": check.name}
        values |= match.groupdict("") if match else {}
        what, do, to = (advice[key].format(**values) for key in ("what", "do", "to"))
        problem = found.setdefault((rank, what, do), Problem(what, do, to, [], []))
        problem.checks.append(check)
        if subject not in problem.subjects:
            problem.subjects.append(subject)
    return [found[key] for key in sorted(found)]
