"""Module that writes more to standard error than a pipe holds, for a zygote to import."""

import sys

from tests.app.decoding.pool.faults import *  # noqa: F403 - all that it has

print("a warning\n" * 50_000, file=sys.stderr)  # noqa: T201 - what libraries do
