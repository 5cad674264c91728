"""Every error that Gyre raises on purpose, in one tree.

A message names the thing, what was expected, what was found, and the remedy. The command line
prints the message alone and leaves with `exit_code`; anything else that reaches it is a defect.
"""


class GyreError(Exception):
    """Something a person can act on."""

    exit_code = 1


class SettingsError(GyreError):
    """A setting or model spec is wrong: file or variable, key, expectation."""

    exit_code = 2


class DataError(GyreError):
    """A batch, table or frame is not what its contract says; nothing was changed."""


class NoRequestError(DataError):
    """Only requests say whom to score: features need their data, or no view lists entities."""


class BatchRejectedError(DataError):
    """A whole batch failed its expectations and stopped before the tables."""


class UncomputableError(DataError):
    """An expression cannot take a value, such as that of a row in the raw table."""


class TrainingError(GyreError):
    """A training run cannot go on (no matured label, one class, no estimator)."""


class RegistryError(GyreError):
    """MLflow cannot be reached, or holds no such model or version."""


class RegistryUnavailableError(RegistryError):
    """MLflow does not answer, or not in time."""


class ArtifactError(RegistryError):
    """MLflow answers, and does not return a file of a version."""


class NoChampionError(RegistryError):
    """Nothing is in production, or what is has another task or other entities."""


class PromotionRefusedError(GyreError):
    """The version to be replaced is no longer in production, or there is nothing to go back to."""

    exit_code = 3


class FeaturesUnavailableError(GyreError):
    """The online store did not answer within its deadline."""


class BrokerUnavailableError(GyreError):
    """The broker does not answer in time, or holds as many events as may wait."""


class MonitoringError(GyreError):
    """A monitor cannot look, or a decision cannot be explained."""


class StackError(GyreError):
    """A process of the stack did not start, stop or answer in time."""
