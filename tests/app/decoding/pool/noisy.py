"""A module for decoding processes that writes more to standard error than a pipe holds."""

import sys

from tests.app.decoding.pool.faults import *  # noqa: F403 - all that it has

print("a warning\n" * 50_000, file=sys.stderr)  # noqa: T201 - what libraries do
