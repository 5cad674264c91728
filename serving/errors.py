"""What serving refuses on purpose. HTTP statuses are chosen in `serving.http.edge`, not here."""

from core.errors import GyreError


class NotFoundError(GyreError):
    """No model of that name is served here, or the online store knows no such entity."""


class InvalidRequestError(GyreError):
    """Features are missing, the model cannot score them, or a parameter has no meaning."""


class OverloadedError(GyreError):
    """Too many requests wait already."""


class NoModelError(GyreError):
    """Nothing is loaded yet: the text says why."""


class ModelFailedError(GyreError):
    """The model gives no probability, or no finite number, for features of our own."""


class ModelRefusedError(GyreError):
    """A version whose bytes, contract or warm-up do not hold is not served."""
