"""An installation whose training takes seconds."""

import pyarrow.compute as pc

from feature_engine.ingest.source import pull
from tests.conftest import AS_OF, new_settings
from tests.training.conftest import ORDERS, installation


def small_installation(home):
    """An installation with the orders of few customers."""
    rows = pull(new_settings(home / "source"), ORDERS, AS_OF).read_all()
    return installation(home, rows.filter(pc.less(rows["customer_id"], 1000)))
