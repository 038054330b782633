"""What OpenAPI declares is what is answered, for requests that schemathesis makes up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis.errors import Unsatisfiable
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from app.main import create_app
from app.settings import read_settings
from tests.support.server import Server, running_server

Operation = APIOperation[Any, Any, Any, Any]


def is_no_fault_of_ours(context: Any, response: Any, case: Case[Any]) -> bool | None:
    """Pass a 504 where the request itself set a deadline, perhaps of a millisecond."""
    if response.status_code == 504 and "x-request-timeout-ms" in {name.lower() for name in case.headers or {}}:
        return None
    return not_a_server_error(context, response, case)


CHECKS = [
    is_no_fault_of_ours,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
    allow_header_conformance,
]

SPECIFICATION = schemathesis.openapi.from_dict(create_app(read_settings()).openapi())
OPERATIONS: list[Operation] = [SPECIFICATION[path][method] for path in SPECIFICATION for method in SPECIFICATION[path]]


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[Server]:
    with running_server(model=tiny_checkpoint) as server:
        yield server


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: f"{mode.value}-requests")
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_schemathesis_finds_no_undeclared_status(server: Server, operation: Operation, mode: GenerationMode) -> None:
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(max_examples=50, derandomize=True, deadline=None, database=None)
    def call(case: Case[Any]) -> None:
        response = case.call(base_url=server.url, timeout=60)
        case.validate_response(response, checks=CHECKS)

    try:
        call()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # what takes nothing cannot be given anything wrong
