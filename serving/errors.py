"""What serving refuses on purpose. HTTP statuses are chosen in `serving.edge`, not here."""

from stack.errors import GyreError


class ServingError(GyreError):
    """A request that cannot be answered as asked."""


class UnknownModelError(ServingError):
    """No model of that name is served here."""


class UnknownEntityError(ServingError):
    """The online store knows no such entity, and no features were given."""


class IncompleteRequestError(ServingError):
    """Features are missing, or a parameter has no meaning."""


class UnscorableError(ServingError):
    """The model gives no probability for the features of the request."""


class BodyTooLargeError(ServingError):
    """The body is over the limit of its route."""


class FeedbackConflictError(ServingError):
    """Another `actual` is already written down for this request."""


class NoModelError(ServingError):
    """Nothing is loaded yet: the text says why."""


class ModelFailedError(ServingError):
    """The model gives no probability for features of our own."""


class ModelRefusedError(ServingError):
    """A version whose bytes, contract or warm-up do not hold is not served."""
