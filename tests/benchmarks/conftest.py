"""Benchmarks are run from the project's folder and not installed."""

import sys

from stack.settings import PROJECT

sys.path.append(str(PROJECT))
