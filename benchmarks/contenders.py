"""Servers under test, ours and the peers: all started once, all but the measured one stopped."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app.bench.load import Load, Target, ask
from benchmarks.measure import progress
from benchmarks.peers import ROOT, Peer, Server, free_port
from benchmarks.watch import metrics_of

_PATIENCE_S = 120.0
_PATIENCE_WITH_PEERS_S = 300.0
"""They import more, and Ray starts a cluster."""
_TRIES = 5
_PAUSE_S = 2.0
"""Seconds between tries: a proxy takes a while to notice that what was paused behind it is back."""
_BOUNDARY = "vit-serve-benchmark"

Predictions = list[tuple[str, float]]
"""Labels of an image with their probabilities, the likeliest first."""


@dataclass
class Contender:
    """Server under test."""

    name: str
    layout: str
    server: Server
    target: Target
    loads: dict[str, list[Load]] = field(default_factory=dict)
    """Measured loads by offered load."""

    @property
    def memory_mib(self) -> float:
        return pss_mib(self.server.pids())

    @property
    def ours(self) -> bool:
        return self.name == OURS

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Resume the server for the block; it is paused otherwise."""
        self.server.resume()
        try:
            yield
        finally:
            self.server.pause()


OURS = "vit-serve"


@contextmanager
def contenders(
    model: Path,
    peers: Sequence[Peer],
    max_batch_size: int,
    images: Sequence[bytes],
    directory: Path,
    converted: Path | None = None,
    **settings: object,
) -> Iterator[list[Contender]]:
    """Start our server and these peers, and send each every image once; logs go to `directory`.

    Args:
        converted: the model for peers with OpenVINO.
        settings: settings of our server.
    """
    with ExitStack() as stack:
        found: list[Contender] = []
        for name in (OURS, *(peer.name for peer in peers)):
            port = free_port()
            log = stack.enter_context((directory / f"{name}.log").open("wb"))
            peer = next((peer for peer in peers if peer.name == name), None)
            progress(f"starting {name}")
            if peer is None:
                server, layout, target = (
                    _start_ours(model, port, log.fileno(), settings),
                    "",
                    _raw(port, "/predict?vectors=false", images),
                )
            else:
                server, layout = peer.start(model, port, max_batch_size, log, converted), peer.layout
                target = (
                    _raw(port, peer.path, images) if peer.body == "raw" else _multipart(port, peer.path, peer.field, images)
                )
            stack.callback(server.stop)
            _wait_until_ready(name, server, target)
            found.append(Contender(name, layout, server, target))
            server.pause()
        yield found


@contextmanager
def ours_with(
    model: Path, variants: Mapping[str, dict[str, object]], images: Sequence[bytes], directory: Path
) -> Iterator[list[Contender]]:
    """Start our server once for each variant of its settings, and send each every image once."""
    with ExitStack() as stack:
        found: list[Contender] = []
        for name, settings in variants.items():
            log = stack.enter_context((directory / f"{name}.log").open("wb"))
            progress(f"starting {OURS}, {name}")
            server, port = start_ours(model, settings, log.fileno())
            stack.callback(server.stop)
            target = _raw(port, "/predict?vectors=false", images)
            _wait_until_ready(name, server, target)
            found.append(Contender(name, "", server, target))
            server.pause()
        yield found


def check_answers(found: Sequence[Contender], tolerance: float) -> dict[str, str]:
    """Compare the first class of every image between our server and each of the others.

    Returns:
        Names of the servers that answer something else, or not at all, with what; they are not worth measuring.

    Raises:
        OSError: ours does not answer.
    """
    ours = _answers(next(contender for contender in found if contender.ours))
    reasons = {contender.name: _fault(contender, ours, tolerance) for contender in found if not contender.ours}
    return {name: reason for name, reason in reasons.items() if reason}


def _answers(contender: Contender, tries: int = 1) -> list[Predictions]:
    with contender.at_work():
        while True:
            try:
                return [predictions(body) for _, body in ask(contender.target)]
            except ConnectionError:
                if (tries := tries - 1) == 0:
                    raise
                time.sleep(_PAUSE_S)


def _fault(contender: Contender, ours: Sequence[Predictions], tolerance: float) -> str:
    try:
        return difference(_answers(contender, _TRIES), ours, tolerance)
    except OSError as error:
        return f"it does not answer: {str(error) or type(error).__name__}"
    except (LookupError, TypeError, ValueError):
        return "its answers are errors"


def difference(theirs: Sequence[Predictions], ours: Sequence[Predictions], tolerance: float) -> str:
    """Return what differs in answers for the same images, or an empty text.

    The class that they put first must have the same probability in our answer: ours is first too, unless two are as likely
    within the tolerance.
    """
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        label, probability = their[0]
        if abs(dict(our).get(label, -1.0) - probability) > tolerance or our[0][1] - probability > tolerance:
            return f"image {index} is {label} with {probability:.3f}, and ours says {our[0][0]} with {our[0][1]:.3f}"
    return ""


def predictions(body: bytes) -> Predictions:
    """Return labels and probabilities of an answer, the likeliest first."""
    answer = json.loads(body)
    found = (answer[0] if isinstance(answer, list) else answer)["predictions"]  # BentoML gives a list of one
    return [(each["label"], each["probability"]) for each in found]


def mean_batch_size(contender: Contender) -> float:
    """Return the mean size of our batches so far."""
    numbers = metrics_of(httpx.get(f"http://127.0.0.1:{contender.target.port}/metrics").content)
    return numbers["vit_batch_size_images_sum"] / numbers["vit_batch_size_images_count"]


def start_ours(
    model: Path | None, settings: dict[str, object], log: int, *, source: Path = ROOT, others: Mapping[str, str] | None = None
) -> tuple[Server, int]:
    """Start our server; return it and its port before it is ready.

    Args:
        model: checkpoint to serve; None if the settings name it.
        settings: settings without their prefix.
        log: descriptor that its log is written to.
        source: checkout whose code runs.
        others: variables that are no settings.
    """
    port = free_port()
    return _start_ours(model, port, log, settings, source, others), port


def wait_until_healthy(server: Server, port: int, patience_s: float = _PATIENCE_S) -> None:
    """Wait until our server is ready.

    Raises:
        SystemExit: it ended, or took too long.
    """
    give_up_at = time.monotonic() + patience_s
    while time.monotonic() < give_up_at and server.process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"{OURS} has ended, or is not ready after {patience_s:.0f} s")


def _start_ours(
    model: Path | None,
    port: int,
    log: int,
    settings: dict[str, object],
    source: Path = ROOT,
    others: Mapping[str, str] | None = None,
) -> Server:
    variables = {name: value for name, value in {"model": model, "port": port, **settings}.items() if value is not None}
    mark = f"VIT_BENCHMARK_RUN={uuid.uuid4()}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIT_")}
    environment |= {f"VIT_{name.upper()}": str(value) for name, value in variables.items()}
    environment |= {**(others or {}), **dict([mark.split("=", 1)])}
    command = [sys.executable, "-m", "app.cli", "serve"]
    return Server(subprocess.Popen(command, cwd=source, env=environment, stderr=log, start_new_session=True), mark)


def _wait_until_ready(name: str, server: Server, target: Target) -> None:
    first = Target(target.port, target.path, target.bodies[:1], target.content_type)
    give_up_at = time.monotonic() + _PATIENCE_WITH_PEERS_S
    while time.monotonic() < give_up_at and server.process.poll() is None:
        try:
            if ask(first)[0][0] == 200:
                ask(target)
                return
        except (OSError, TimeoutError):
            pass
        time.sleep(0.2)
    raise SystemExit(f"{name} does not answer; see its log")


def _raw(port: int, path: str, images: Sequence[bytes]) -> Target:
    return Target(port, path, images, "image/jpeg")


def _multipart(port: int, path: str, field: str, images: Sequence[bytes]) -> Target:
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="image.jpg"'
    head = f"--{_BOUNDARY}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
    tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
    bodies = [head + image + tail for image in images]
    return Target(port, path, bodies, f"multipart/form-data; boundary={_BOUNDARY}")


def pss_mib(pids: Iterable[int]) -> float:
    """Return the proportional set size of processes, which counts shared pages once."""
    return sum(_pss_kib(pid) for pid in pids) / 1024


def _pss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
