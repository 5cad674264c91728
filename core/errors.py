"""Errors that Gyre raises on purpose: one tree below `GyreError`.

Errors that several packages raise or catch are here. An error of one package alone stands in that
package, below one of these: `serving/errors.py`, `feature_repo/published/definition_check.py`,
`stack/airflow_api.py`. Outside the tree is only `UnsupportedError` of
`feature_repo/published/specification.py`, which that module catches itself.

A message names the thing, what was expected, what was found, and the remedy. The command line
prints the message alone and leaves with `exit_code`; any other error that reaches it is a defect.
"""


class GyreError(Exception):
    """A problem that a person can act on."""

    exit_code = 1


class SettingsError(GyreError):
    """A setting or a model spec is wrong; the message has file or variable, key and expectation."""

    exit_code = 2


class DataError(GyreError):
    """A batch, a table or a frame breaks its contract; nothing was changed."""


class NoRequestError(DataError):
    """There is no list of entities to score: features need data of a request, or no view has keys."""


class BatchRejectedError(DataError):
    """A whole batch failed its expectations; none of its rows is in a table."""


class UncomputableError(DataError):
    """A feature's expression fails on a value, such as one of the raw table."""


class TrainingError(GyreError):
    """A training run cannot go on: no label has matured, there is one class, or no estimator."""


class RegistryError(GyreError):
    """MLflow or the ledger's database fails, or MLflow has no such model or version."""


class RegistryUnavailableError(RegistryError):
    """MLflow does not answer in time."""


class ArtifactError(RegistryError):
    """MLflow answers, but does not return a file of a version."""


class NoChampionError(RegistryError):
    """No version is in production, or that version has another task or other entities."""


class PromotionRefusedError(GyreError):
    """A role cannot change: another version is in it by now, or there is none to go back to."""

    exit_code = 3


class FeaturesUnavailableError(GyreError):
    """The online store did not answer within its deadline."""


class BrokerUnavailableError(GyreError):
    """The broker does not answer in time, or its queue of events is full."""


class MonitoringError(GyreError):
    """A monitoring run cannot be done, or a decision cannot be explained."""


class StackError(GyreError):
    """A process of the stack does not start, stop or answer in time."""
