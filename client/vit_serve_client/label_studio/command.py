"""The command `vit-serve-client label-studio`."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from vit_serve_client.arguments import port, positive, seconds
from vit_serve_client.client import VitClient
from vit_serve_client.label_studio.backend import Backend, Names
from vit_serve_client.label_studio.origin import Origin
from vit_serve_client.label_studio.server import BackendServer


def run(arguments: Sequence[str]) -> None:
    """Serve until SIGINT or SIGTERM."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs whole URLs
    try:
        token = None if options.token_file is None else options.token_file.read_text(encoding="utf-8").strip()
        credentials = credentials_of(os.environ)
        origin = Origin(options.origin, token, max_bytes=options.max_image_bytes)
        with VitClient(options.url, timeout=options.timeout) as client:
            backend = Backend(client, origin, Names(options.from_name, options.to_name, options.value), options.top_k)
            with closing(origin), closing(backend), BackendServer((options.host, options.port), backend, credentials) as server:
                signal.signal(signal.SIGTERM, signal.default_int_handler)
                sys.stderr.write(f"vit-serve-client: listening on {server.url}\n")
                sys.stderr.flush()
                server.serve_forever()
    except (OSError, ValueError) as error:
        raise SystemExit(f"vit-serve-client: {error}") from None
    except KeyboardInterrupt:
        return


def credentials_of(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Return user name and password of the variables, or None where neither is set.

    Raises:
        ValueError: one of them is missing.
    """
    user, password = environment.get("VIT_SERVE_BACKEND_USER"), environment.get("VIT_SERVE_BACKEND_PASSWORD")
    if bool(user) != bool(password):
        raise ValueError("Set both VIT_SERVE_BACKEND_USER and VIT_SERVE_BACKEND_PASSWORD, or neither.")
    return (user, password) if user and password else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vit-serve-client label-studio", description="Run a machine-learning backend of Label Studio."
    )
    parser.add_argument("--origin", required=True, help="Label Studio, as in http://localhost:8080; images come from it alone")
    parser.add_argument("--token-file", type=Path, help="file with the access token of Label Studio")
    parser.add_argument("--from-name", required=True, help="name of the project's Choices")
    parser.add_argument("--to-name", required=True, help="name of the project's Image")
    parser.add_argument("--value", default="image", help="key of the image in a task's data")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=port, default=9090)
    parser.add_argument("--url", help="where vit-serve is; without it VIT_SERVE_URL, or http://127.0.0.1:8000")
    parser.add_argument("--timeout", type=seconds, default=30, help="seconds for one image, with all retries")
    parser.add_argument(
        "--top-k", type=positive, default=5, help="classes of the model among which one of the project's is looked for"
    )
    parser.add_argument("--max-image-bytes", type=positive, default=10 * 2**20)
    return parser
