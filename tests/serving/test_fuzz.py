"""Requests made from the server's own OpenAPI document, right and wrong ones: never a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi import checks as openapi

from llavakit.serving import ServerSettings, create_app
from llavakit.testing import FakeBackend
from tests.serving.conftest import running

pytestmark = pytest.mark.enable_socket

KEY = "a-key"
# What the document cannot say: that tool_choice names one of the tools, that a string is a
# picture, that a grammar can be compiled. So a body that fits it may still be refused with 400.
UNDECIDABLE = [openapi.positive_data_acceptance]


@pytest.fixture(scope="module")
def fuzzed(demo_backend):
    """A server with the bundled model, of short answers, ready."""
    limits = {"max_answer_tokens": 2, "max_choices": 2, "api_keys": (KEY,)}
    with running(demo_backend, warm_up=True, **limits) as server:
        yield server


document = create_app(FakeBackend(name="demo"), ServerSettings(api_keys=(KEY,))).openapi()
# A list longer than it may be can make a body longer than it may be.
REJECTED = [400, 401, 403, 404, 405, 413, 415]
REJECTION = {"negative_data_rejection": {"expected-statuses": REJECTED}}


def loaded(*, coverage):
    """The document; ``coverage`` adds each boundary of each field to what is drawn by chance."""
    phases = {"coverage": {"enabled": coverage}}
    config = schemathesis.Config.from_dict({"checks": REJECTION, "phases": phases})
    return schemathesis.openapi.from_dict(document, config=config)


quick, thorough = loaded(coverage=False), loaded(coverage=True)
COMMON = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
    "derandomize": True,
}


@quick.parametrize()
@settings(max_examples=20, **COMMON)
def test_no_request_brings_the_server_down(case, fuzzed):
    headers = {"Authorization": f"Bearer {KEY}"}
    case.call_and_validate(fuzzed.url, headers=headers, excluded_checks=UNDECIDABLE)


@pytest.mark.slow
@thorough.parametrize()
@settings(max_examples=300, **COMMON)
def test_no_request_of_very_many_brings_the_server_down(case, fuzzed):
    headers = {"Authorization": f"Bearer {KEY}"}
    case.call_and_validate(fuzzed.url, headers=headers, excluded_checks=UNDECIDABLE)


def test_nothing_is_left_behind(fuzzed):
    service = fuzzed.app.state.service
    assert (service.gate.open, service.gate.bytes) == (0, 0)
    stats = service.backend.stats()
    assert (stats["running"], stats["waiting"]) == (0, 0)
