"""The console as a program of a stack."""

from stack.processes import Program
from stack.readiness import answers

CONSOLE = Program(
    "console",
    "python -m monitoring.console",
    problem=answers("console", "/health/live"),
    reads_project=True,
)
