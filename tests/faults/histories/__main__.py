"""Random histories of one stack, held against a model.

    python -m tests.faults.histories 1 2 3           histories of these seeds
    python -m tests.faults.histories 1 --steps 40    a longer one
    python -m tests.faults.histories --file STEPS    steps as they were printed

A history that fails is shrunk and printed, to be run again by `--file`. It runs as root: it fills a
small disk of its own.
"""

import argparse
import signal
import sys
from pathlib import Path

from tests.faults.histories.draw import draw
from tests.faults.histories.run import Histories
from tests.faults.histories.steps import read_steps


def main(*arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("seeds", nargs="*", type=int)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--tries", type=int, default=40, help="of shrinking")
    options = parser.parse_args(arguments)
    # So that the disk is unmounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    drawn = {f"seed {seed}": draw(seed, options.steps) for seed in options.seeds}
    if options.file:
        drawn[str(options.file)] = read_steps(options.file.read_text())
    with Histories() as histories:
        for name, steps in drawn.items():
            histories.run(name, steps, tries=options.tries)
        histories.report()
    return 1 if histories.failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
