"""The console as a program of a stack."""

from stack.readiness import answers
from stack.supervisor import Program

CONSOLE = Program(
    "console",
    "python -m monitoring.console",
    problem=answers("console", "/health/live"),
    reads_project=True,
)
