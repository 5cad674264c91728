"""`make nightly`: all that `.ci/run` leaves out, in parts of at most an hour.

A part is a target of the Makefile. One that has passed on this commit is not run again, so that a
night that was stopped, or in which a part failed, goes on from there:

    make nightly                        the parts that have not passed on this commit
    make nightly PARTS="kafka cluster"  these, also if they have passed
    python -m tests.nightly --record    write minutes and results into docs/tests.md

`.nightly/COMMIT/` keeps the result and the log of each part. With uncommitted changes all parts run
anew, and there is nothing to record.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from core.project import CLONE

PARTS = (
    "variants",
    "loops",
    "promises",
    "containers",
    "cluster",
    "kafka",
    "kubernetes",
)
"""In the order in which they run: the last ones build servers, and take much memory."""
LONGEST = 60
"""Minutes of a part on two cores that do nothing else."""
PAGE = CLONE / "docs" / "tests.md"
RECORD = re.compile(r"(<!-- nightly -->\n).*?(<!-- end of nightly -->)", re.DOTALL)
CLOSING_LINE = re.compile(r"=+ (.*\d+ (?:passed|failed|error).*?) in [\d.]+s.*=+")
LINES_OF_A_FAILURE = 40


@dataclass(frozen=True)
class Result:
    """What a part ended with."""

    part: str
    ended: str
    """Date and time, UTC, ISO 8601."""
    minutes: float
    passed: bool
    words: str
    """The closing lines of pytest, or why there are none."""


def git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=CLONE, check=True, capture_output=True, text=True
    ).stdout.strip()


def folder_of_results() -> Path:
    """Return the folder of this commit; another one while there are uncommitted changes."""
    commit = git("rev-parse", "--short=10", "HEAD")
    is_changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return CLONE / ".nightly" / (f"{commit}-changed" if is_changed else commit)


def read_results(folder: Path) -> dict[str, Result]:
    """Return the newest result of each part that has ended."""
    results = {}
    for part in PARTS:
        file = folder / f"{part}.json"
        if file.exists():
            results[part] = Result(**json.loads(file.read_text()))
    return results


def parts_to_run(results: dict[str, Result], names: Iterable[str]) -> list[str]:
    """Return the parts that are named, else those that have not passed."""
    named = [*names]
    if named:
        return named
    return [part for part in PARTS if part not in results or not results[part].passed]


def closing_words(log: str) -> str:
    """Return what pytest said at its end, of each of its runs."""
    return "; ".join(CLOSING_LINE.findall(log)) or "pytest did not end"


def run_part(part: str, folder: Path) -> Result:
    """Run a part to its end, or for twice its longest time; keep its log and its result."""
    log = folder / f"{part}.log"
    start = time.monotonic()
    words = ""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "--no-print-directory", part],
            cwd=CLONE,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(2 * LONGEST * 60)
        except subprocess.TimeoutExpired:
            words = f"stopped after {2 * LONGEST} minutes; "
            code = 1
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    result = Result(
        part=part,
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        minutes=round((time.monotonic() - start) / 60, 1),
        passed=code == 0,
        words=words + closing_words(log.read_text(errors="replace")),
    )
    (folder / f"{part}.json").write_text(json.dumps(asdict(result)))
    return result


def line_of(result: Result) -> str:
    outcome = "ok" if result.passed else "FAILED"
    return f"{result.part:<12}{result.minutes:>5} min  {outcome}  {result.words}\n"


def rows_of(results: dict[str, Result], commit: str) -> str:
    """Return the table of docs/tests.md."""
    lines = [
        "| part | ended (UTC) | commit | minutes | result |",
        "|---|---|---|--:|---|",
    ]
    for part in PARTS:
        if part in results:
            result = results[part]
            outcome = result.words if result.passed else f"**failed**: {result.words}"
            cells = [f"`make {part}`", result.ended[:16].replace("T", " "), commit]
            lines.append(f"| {' | '.join(cells)} | {result.minutes} | {outcome} |")
    return "\n".join(lines) + "\n"


def record(folder: Path) -> None:
    """Write the results of this commit into docs/tests.md.

    Raises:
        SystemExit: There are none, or they are of uncommitted changes.

    """
    results = read_results(folder)
    if not results:
        raise SystemExit(
            f"{folder.name}: no part has ended on this commit: make nightly"
        )
    if folder.name.endswith("-changed"):
        raise SystemExit("the results are of uncommitted changes: commit, make nightly")
    table = rows_of(results, folder.name)
    page = RECORD.sub(lambda match: match[1] + table + match[2], PAGE.read_text())
    PAGE.write_text(page)


def main(*arguments: str) -> int:
    folder = folder_of_results()
    if arguments == ("--record",):
        record(folder)
        return 0
    unknown = {*arguments} - {*PARTS}
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: the parts are {' '.join(PARTS)}")
    folder.mkdir(parents=True, exist_ok=True)
    is_kept = not folder.name.endswith("-changed")
    results = read_results(folder) if is_kept else {}
    parts = parts_to_run(results, arguments)
    for part, result in results.items():
        if part not in parts:
            sys.stdout.write(f"passed before: {line_of(result)}")
    for part in parts:
        log = (folder / f"{part}.log").relative_to(CLONE)
        sys.stdout.write(f"make {part}: begins, its log is {log}\n")
        sys.stdout.flush()
        results[part] = run_part(part, folder)
        sys.stdout.write(line_of(results[part]))
        if not results[part].passed:
            lines = (folder / f"{part}.log").read_text(errors="replace").splitlines()
            end = "\n".join(lines[-LINES_OF_A_FAILURE:])
            sys.stdout.write(f"{end}\n")
    failed = [part for part, result in results.items() if not result.passed]
    missing = [part for part in PARTS if part not in results]
    if failed:
        sys.stdout.write(f"failed: {' '.join(failed)}; again: make nightly\n")
    elif missing:
        sys.stdout.write(f"not yet run on this commit: {' '.join(missing)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
