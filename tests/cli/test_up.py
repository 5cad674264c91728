"""What `gyre up` says at its end."""

import httpx

from cli.up import more_fields
from tests.conftest import new_settings


def test_a_model_with_request_data_ends_with_what_a_request_needs(tmp_path):
    settings = new_settings(tmp_path)
    detail = "hour (int64): version 1 needs it beside the key, found none"
    answer = httpx.Response(422, json={"detail": detail})
    page = f"{settings.serving_address}/docs"
    expected = f"try it at {page}: hour (int64): version 1 needs it beside the key"
    assert more_fields(settings, answer).endswith(expected)
