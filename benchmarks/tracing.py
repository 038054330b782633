"""Cost of traces: python -m benchmarks.tracing [--rounds 8] [--seconds 4] [--before CHECKOUT]

The same service runs without and with traces of all requests, which a collector in another process receives; 32 clients in a
closed loop, in interleaved rounds. `--before` adds another checkout, without traces. CPU time is that of the service's own
process, inference and exporter included.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import httpx

from app.bench.load import Target, closed_loop
from benchmarks.contenders import start_ours, wait_until_healthy
from benchmarks.images import WEB
from benchmarks.measure import Samples, interleaved
from benchmarks.models import MODELS
from benchmarks.peers import ROOT, Server
from benchmarks.watch import metrics_of

_WORK = ROOT / ".bench"
_CLIENTS = 32
_WARM_UP_S = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


class _Collector(BaseHTTPRequestHandler):
    """Collector that reads what it is sent and drops it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


def _collect(port: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    port.send(server.server_port)
    server.serve_forever()


@contextmanager
def _collector() -> Iterator[str]:
    """Run a collector in a process of its own; yields its URL."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_collect, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


class _Case:
    """One service, paused while it is not measured."""

    def __init__(self, server: Server, target: Target) -> None:
        self._server, self._target = server, target
        self.cpu_ms: list[float] = []
        """CPU time of a request in each round."""

    def measure(self, seconds: float) -> float:
        """Return the throughput of a round."""
        self._server.resume()
        try:
            closed_loop(self._target, _CLIENTS, _WARM_UP_S, 0)
            cpu_s, images = self._cpu_s(), self._images()
            load = closed_loop(self._target, _CLIENTS, seconds, 0)
            if load.errors:
                raise SystemExit(f"{load.errors} requests failed; see the service's log")
            self.cpu_ms.append((self._cpu_s() - cpu_s) * 1000 / (self._images() - images))
        finally:
            self._server.pause()
        return load.throughput

    def _images(self) -> float:
        return metrics_of(httpx.get(f"http://127.0.0.1:{self._target.port}/metrics").content)["vit_batch_size_images_sum"]

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._server.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def _cases(model: Path, before: Path | None) -> Iterator[dict[str, _Case]]:
    images = [file.read_bytes() for file in WEB.files(_WORK / "images")]
    with ExitStack() as stack:
        url = stack.enter_context(_collector())
        variants: dict[str, tuple[Path, Mapping[str, str]]] = {
            "off": (ROOT, {}),
            "on": (ROOT, {"OTEL_EXPORTER_OTLP_ENDPOINT": url}),
        }
        if before is not None:
            variants = {"before": (before, {}), **variants}
        cases = {}
        for name, (source, variables) in variants.items():
            log = stack.enter_context((_WORK / f"tracing-{name}.log").open("wb"))
            settings: dict[str, object] = {"cache_dir": _WORK / "cache"}
            server, port = start_ours(model, settings, log.fileno(), source=source, others=variables)
            stack.callback(server.stop)
            wait_until_healthy(server, port)
            cases[name] = _Case(server, Target(port, "/predict", images, "image/jpeg"))
            server.pause()
        yield cases


def main() -> int:
    arguments = _arguments()
    model = next(model for model in MODELS if model.name == arguments.model)
    with _cases(arguments.checkpoint or model.directory(_WORK / "models"), arguments.before) as cases:
        measured = [(name, partial(case.measure, arguments.seconds)) for name, case in cases.items()]
        throughput = interleaved("traces", measured, arguments.rounds)
    cpu_ms = {name: Samples(tuple(case.cpu_ms)) for name, case in cases.items()}
    base = next(iter(cases))
    for name in cases:
        print(f"{name}: answers a second {_compared(throughput[name], throughput[base])} of {base}")  # noqa: T201
        print(f"{name}: ms of CPU a request {_compared(cpu_ms[name], cpu_ms[base])} of {base}")  # noqa: T201
    return 0


def _compared(mine: Samples, theirs: Samples) -> str:
    """Return the median, and the median and range of the ratios within each round."""
    ratios = sorted(each / other for each, other in zip(mine.values, theirs.values, strict=True))
    return f"{mine.median:.2f}, {mine.over(theirs):.3f} [{ratios[0]:.3f}..{ratios[-1]:.3f}]"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [model.name for model in MODELS]
    parser.add_argument("--model", choices=names, default=names[0], help=", ".join(names))
    parser.add_argument("--checkpoint", type=Path, help="another checkpoint instead")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round of each")
    parser.add_argument("--before", type=Path, help="another checkout, without traces")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
