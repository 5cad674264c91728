"""Runs histories one after the other on one stack, and says what came of them."""

import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.histories.play import FindingError, Play
from tests.faults.histories.shrink import shrink
from tests.faults.histories.stack import Stack

OF_ROWS = {"table", "quarantine", "online"}
"""Kinds of findings after which a stack still works."""


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Histories:
    """Runs histories; a stack that does not work is not used again.

    Attributes:
        failures: Names of the histories that failed.
        faults: How often each kind of fault was made, shrinking left out.

    """

    def __init__(self):
        self.failures = []
        self.faults = Counter()
        self.count = 0
        self._stack = None
        self._folder = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()

    def _close(self):
        if self._stack is not None:
            self._stack.close()
            self._folder.cleanup()
        self._stack = None

    def play(self, steps, say_step=say):
        """Play steps on a stack; return its finding, None if there is none, and the faults."""
        if self._stack is None:
            self._folder = TemporaryDirectory(prefix="gyre-history-")
            self._stack = Stack(Path(self._folder.name))
        self._stack.begin()
        play = Play(self._stack, say_step)
        try:
            play.play(steps)
        except FindingError as finding:
            if finding.kind not in OF_ROWS:
                self._close()
            return finding, play.faults
        return None, play.faults

    def run(self, name, steps, tries=0):
        """Play a history, and say what came of it; shrink it if it fails."""
        say(name)
        start = time.monotonic()
        finding, faults = self.play(steps)
        seconds = time.monotonic() - start
        self.count += 1
        self.faults += faults
        result = "right" if finding is None else finding
        say(f"{name}: {len(steps)} steps, {seconds:.0f} s, {result}")
        if finding is None:
            return
        self.failures.append(name)
        kind = finding.kind

        def fails(fewer_steps):
            found, _ = self.play(fewer_steps, _say_nothing)
            is_same = found is not None and found.kind == kind
            say(f"{len(fewer_steps)} steps: {found or 'right'}")
            return is_same

        if tries:
            say(f"{name} is shrunk:")
            fewer_steps = shrink(steps, fails, tries)
            say(f"{name} fails with these steps, to be run again by --file:")
            for step in fewer_steps:
                say(f"  {step}")

    def report(self):
        say(f"{self.count} histories, failed: {', '.join(self.failures) or 'none'}")
        for fault, number in sorted(self.faults.items()):
            say(f"  {number:4} times: {fault}")


def _say_nothing(_text):
    """Play steps that were said before."""
