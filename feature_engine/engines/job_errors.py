"""Errors of Spark's jobs, each in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException, PythonException

from core.errors import DataError, UncomputableError

WORKER = re.compile(r"\((\S+) executor \S+\)")
"""Host of a failed task in an error of Spark."""
OF_A_VALUE = re.compile("SQLSTATE: 22")
"""Class 22 of the SQL standard has errors of the data, such as a number beyond its type."""
PACKAGE = re.compile(r"No module named '?([\w.]+)")
LONGEST = 300


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the failure of a job into one line that names the worker.

    Raises:
        UncomputableError: An expression cannot take a value.
        DataError: The job failed for another reason.

    """
    try:
        yield
    except (PySparkException, Py4JJavaError) as exc:
        if OF_A_VALUE.search(str(exc)):
            raise UncomputableError(_line(exc)) from exc
        raise DataError(_line(exc)) from exc
    except (Py4JError, ConnectionError) as exc:
        remedy = "a larger spark.driver.memory helps if it had too little"
        raise DataError(f"the Java process of Spark's driver ended; {remedy}") from exc


def _line(exc: PySparkException | Py4JJavaError) -> str:
    # PySpark's error lacks the host; the error of the JVM, which it replaces, names the host.
    java_error = exc.__context__ if isinstance(exc.__context__, Py4JJavaError) else exc
    worker = WORKER.search(str(java_error))
    place = f"Spark's worker {worker[1]}" if worker else "Spark"
    package = PACKAGE.search(str(exc))
    if package:
        remedy = (
            "workers run in the image of the executors, or in an environment like it"
        )
        return f"{place} has no Python package {package[1]}: {remedy}"
    lines = str(exc).strip().splitlines()
    # A Python error has its reason in the last line of the traceback.
    reason = lines[-1] if isinstance(exc, PythonException) else lines[0]
    return f"{place}: {reason[:LONGEST]}"
