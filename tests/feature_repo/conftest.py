"""Fixtures of an installation with published definitions."""

from tests.support.feature_engine.installation import (  # noqa: F401
    applied,
    small,
    some_orders,
    spark_ends_here,
    suite,
    template,
)
