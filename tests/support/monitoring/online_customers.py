"""Customers whose online values a version is answered with."""

from contextlib import closing
from datetime import timedelta

import pytest

from core.spec import entity_text
from feature_repo.published.service import PublishedService
from mlflow_server.manifest import LookupSpecification, ModelManifest
from mlflow_server.roles import RoleAssignment
from monitoring.checks.skew import (
    compare_offline,
    online_delays,
    read_vectors,
    sample_rows,
)
from monitoring.log.collect import collect
from tests.conftest import AS_OF
from tests.support.feature_engine.installation import (
    online_reader,
)
from tests.support.feature_engine.shop import HOUR, SPEC
from tests.support.monitoring.log_lines import answer, write

MINUTE = timedelta(minutes=1)
CONTRACT = ModelManifest(
    model="m",
    entity_key=SPEC.entity_key,
    feature_service=SPEC.feature_service,
    features=SPEC.features,
    defaults={},
    as_of=AS_OF.isoformat(),
    lookup=LookupSpecification(feast="", online_store=""),
)


class Serving:
    """What serving does of a request, without the model: read online, write down."""

    def __init__(self, settings, contract):
        self.settings = settings
        self.contract = contract
        self.count = 0

    def read(self, moment, *keys):
        service = self.contract.feature_service
        reader = online_reader(self.settings, service, self.contract.features)
        with closing(reader):
            return reader.read(keys, moment)

    def ask(self, moment, *keys):
        rows = self.read(moment, *keys)
        for key, features in zip(keys, rows, strict=True):
            self.write(moment, entity_text(key), features)
        return rows

    def write(self, moment, entity, features, **changed):
        self.count += 1
        values = {"entity": entity, "features": features} | changed
        line = answer(str(self.count), moment, **values)
        write(self.settings, f"predictions-1-{self.count}.jsonl", line)

    def differing(self, until=AS_OF + 12 * HOUR):
        """Features of each vector of 24 hours that are skewed, in order of their requests."""
        collect(self.settings)
        model = RoleAssignment("m", 0)
        rows = sample_rows(self.settings, model, "1", until)
        rows.sort(key=lambda row: row["as_of"])
        vectors = read_vectors(rows, self.contract)
        service = PublishedService(self.settings, self.contract.feature_service)
        delays = online_delays(self.settings)
        return compare_offline(service, vectors, [*self.contract.features], delays)


@pytest.fixture
def serving(shop):
    return Serving(shop.settings, CONTRACT)


def customers(*numbers):
    return [{"customer_id": number} for number in numbers]
