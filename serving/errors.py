"""Errors that serving raises on purpose. `serving.http.edge` chooses their HTTP statuses."""

from core.errors import GyreError


class NotFoundError(GyreError):
    """No model of that name is served here, or the online store knows no such entity."""


class InvalidRequestError(GyreError):
    """Features are missing, the model cannot score them, or a parameter has no meaning."""


class OverloadedError(GyreError):
    """Too many requests wait already."""


class NoModelError(GyreError):
    """No version is loaded yet; the text says why."""


class ModelFailedError(GyreError):
    """The model gives no probability, or no finite number, for features that no client sent."""


class ModelRefusedError(GyreError):
    """A version is not served, as its bytes, its contract or its warm-up do not hold."""
