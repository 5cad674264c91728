"""The event consumer as a program of a stack."""

from feature_engine.events.broker import consumer_problem
from stack.supervisor import Program

CONSUMER = Program("consumer", "gyre consume", problem=consumer_problem)
