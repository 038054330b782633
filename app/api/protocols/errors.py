"""Errors in the forms of other protocols."""

from collections.abc import Mapping

from app.api.problems import ErrorResponse
from app.api.schemas import Problem


def status_of(problem: Problem) -> int:
    """Return the status of a problem in protocols that have no 422."""
    return 400 if problem.status == 422 else problem.status


def render_error(problem: Problem, headers: Mapping[str, str]) -> ErrorResponse:
    """Return `{"error": "..."}`, as v2, KServe v1 and TF Serving have it."""
    return ErrorResponse(problem, {"error": problem.detail}, status_of(problem), headers)
