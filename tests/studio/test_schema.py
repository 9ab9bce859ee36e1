"""schemathesis sends valid and invalid requests to every route."""

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ROUTES = [
    ("GET", "/v1/videos"),
    ("POST", "/v1/videos"),
    ("GET", "/v1/videos/{video_id}"),
    ("DELETE", "/v1/videos/{video_id}"),
    ("POST", "/v1/videos/extensions"),
    ("POST", "/v1/videos/{video_id}/remix"),
    ("POST", "/v1/videos/{video_id}/cancel"),
    ("GET", "/v1/videos/{video_id}/content"),
    ("GET", "/v1/models"),
    ("GET", "/health"),
]


# hypothesis takes random numbers that threads of the server draw meanwhile for its strategies' own
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_answer_is_in_the_schema(open_studio, method, path):
    studio = open_studio(worker=False)
    schema = schemathesis.openapi.from_url(f"{studio.url}/openapi.json")
    operation = schema[path][method]

    @given(case=operation.as_strategy())
    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case):
        case.call_and_validate(checks=CHECKS, timeout=30)

    send()
