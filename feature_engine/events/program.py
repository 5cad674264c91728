"""The program that the package adds to a stack."""

from feature_engine.events.broker import consumer_problem
from stack.processes import Program

CONSUMER = Program("consumer", "gyre consume", problem=consumer_problem)
