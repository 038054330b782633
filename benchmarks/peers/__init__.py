"""Peers: other servers that do the same work, for comparison, each as people write it and with our model inside.

Standard library only: the harness imports this in our environment, the servers run in their own.
"""

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

CPUS = int(os.environ.get("VIT_BENCH_CPUS") or os.cpu_count() or 1)
"""Cores that every peer uses."""

Kind = Literal["eager", "openvino"]
"""What runs the model in a peer: transformers in eager torch, as people write it, or OpenVINO with the model that we serve."""

KINDS: dict[Kind, str] = {"eager": "eager torch", "openvino": "OpenVINO"}
"""Kinds with their titles."""

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".bench" / "environments"

_HERE = Path(__file__).resolve().parent
_QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
    "TRANSFORMERS_VERBOSITY": "error",
}
_OF_THE_HARNESS = ("MKL_", "OMP_", "PEER_", "PYTHON", "VIRTUAL_ENV", "VIT_")
"""Prefixes of variables that a peer must not inherit."""

_ORPHANS_GRACE_S = 2


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def python_of(environment: str) -> Path:
    """Return the interpreter of a peer's environment, installed or not."""
    return ENVIRONMENTS / environment / "bin" / "python"


@dataclass(frozen=True)
class Peer:
    """Peer in one layout and of one kind, with its command and its route."""

    server: str
    """Server and layout, alike for both kinds."""
    layout: str
    """Worker processes x threads of a batch, and the batches at a time if a process runs several."""
    environment: str
    command: tuple[str, ...]
    """Arguments of the environment's interpreter, run in this directory; `{port}` is replaced."""
    variables: dict[str, str]
    path: str
    body: Literal["raw", "multipart"]
    field: str = ""
    """Multipart field of the image."""
    ports: tuple[str, ...] = ()
    """Variables that get a free port each."""
    kind: Kind = "eager"

    @property
    def name(self) -> str:
        """Return the name of the server, with its kind behind it unless it is eager."""
        return self.server if self.kind == "eager" else f"{self.server}-{self.kind}"

    def argv(self, port: int) -> list[str]:
        """Return the command line."""
        return [str(python_of(self.environment)), *(argument.format(port=port) for argument in self.command)]

    def environ(self, model: str | Path, port: int, max_batch_size: int, converted: Path | None = None) -> dict[str, str]:
        """Return all variables of the process.

        Args:
            model: directory in Hugging Face layout.
            converted: the same model for OpenVINO (`.xml`); only a peer of that kind is told of it.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_HARNESS)}
        asked = {"PEER_MODEL": str(Path(model).resolve()), "PEER_PORT": str(port), "PEER_MAX_BATCH_SIZE": str(max_batch_size)}
        if self.kind == "openvino":
            if converted is None:
                raise ValueError(f"{self.name} needs a converted model")
            asked["PEER_OPENVINO"] = str(converted.resolve())
        asked |= {name: str(free_port()) for name in self.ports}
        return inherited | _QUIET | self.variables | asked

    def start(
        self, model: str | Path, port: int, max_batch_size: int, log: IO[bytes] | int, converted: Path | None = None
    ) -> "Server":
        """Start on 127.0.0.1 with output to `log`; it is ready when a posted image is answered with 200."""
        mark = f"PEER_RUN={os.getpid()}.{time.monotonic_ns()}"
        name, _, value = mark.partition("=")
        process = subprocess.Popen(
            self.argv(port),
            cwd=_HERE,
            env=self.environ(model, port, max_batch_size, converted) | {name: value},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        return Server(process, mark)


@dataclass(frozen=True)
class Server:
    """Running server with all its processes.

    A signal to the process group would miss most of Ray's processes, and one to the session BentoML's workers. All
    inherit a mark among their variables, except where a process writes its title over them, as Ray's do.
    """

    process: subprocess.Popen[bytes]
    mark: str
    """Unique NAME=value in the environment."""

    def pids(self) -> list[int]:
        """Return its living processes."""
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if self._owns(entry)]

    def pause(self) -> None:
        """Stop its processes; connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue its processes."""
        self._signal(signal.SIGCONT)

    def stop(self, grace_s: float = 15) -> None:
        """Send SIGTERM to its first process, paused or not; kill the rest after `grace_s` seconds."""
        self.resume()
        self.process.terminate()
        give_up_at = time.monotonic() + grace_s
        while self.pids():
            now = time.monotonic()
            if now > give_up_at:
                self._signal(signal.SIGKILL)
            elif self.process.poll() is not None:  # what outlives the first, as LitServe's workers do, waits for nothing
                give_up_at = min(give_up_at, now + _ORPHANS_GRACE_S)
            time.sleep(0.05)
        self.process.wait()

    def _owns(self, entry: Path) -> bool:
        try:
            # behind the name in brackets, which may hold anything: state, parent, group, session
            state, _, _, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            ours = int(session) == self.process.pid or self.mark.encode() in (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            return False
        return ours and state not in "ZX"

    def _signal(self, what: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, what)


def _layouts(
    name: str,
    environment: str,
    command: tuple[str, ...],
    path: str,
    field: str = "",
    variables: dict[str, str] | None = None,
    ports: tuple[str, ...] = (),
    *,
    threaded: bool = False,
) -> tuple[Peer, ...]:
    """Return the layouts of a peer: one worker with a thread a core, and a worker with one thread for each core.

    A `threaded` server also has one worker that runs a batch of one thread on each core.
    """
    layouts = [("", 1, CPUS, 1), ("-workers", CPUS, 1, 1), *([("-threads", 1, 1, CPUS)] if threaded else [])]
    peers = []
    for suffix, workers, threads, streams in layouts:
        sizes = {"PEER_WORKERS": str(workers), "PEER_THREADS": str(threads), "PEER_STREAMS": str(streams)}
        peers.append(
            Peer(
                server=name + suffix,
                layout=f"{workers} x {threads}" + (f", {streams} at a time" if streams > 1 else ""),
                environment=environment,
                command=tuple(argument.replace("{workers}", str(workers)) for argument in command),
                variables=sizes | (variables or {}),
                path=path,
                body="multipart" if field else "raw",
                field=field,
                ports=ports,
            )
        )
    return tuple(peers)


_UVICORN = ("--host", "127.0.0.1", "--port", "{port}", "--workers", "{workers}", "--no-access-log", "--log-level", "warning")
_BENTOML = ("-m", "bentoml", "serve", "bentoml_service:Classifier", "--host", "127.0.0.1", "--port", "{port}")
_BENTOML_VARIABLES = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(ENVIRONMENTS / "bentoml" / "home")}
_RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes 127.0.0.1 the node's address, on Linux too
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # the proxy in Python is 20 times slower
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_worker_niceness": "0",  # at its 15 whatever else runs on the machine would starve it
}
_RAY_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT", "PEER_REPLICAS_PORT")
_MOSEC = ("mosec_server.py", "--address", "127.0.0.1", "--port", "{port}", "--timeout", "120000", "--log-level", "error")

_EAGER = (
    *_layouts("fastapi", "fastapi", ("-m", "uvicorn", "fastapi_server:app", *_UVICORN), "/predict", "image", threaded=True),
    *_layouts("litserve", "litserve", ("litserve_server.py",), "/predict", "request"),
    *_layouts("bentoml", "bentoml", _BENTOML, "/predict", "images", _BENTOML_VARIABLES),
    *_layouts("ray", "ray", ("ray_server.py",), "/", variables=_RAY_VARIABLES, ports=_RAY_PORTS),
    *_layouts("mosec", "mosec", _MOSEC, "/inference"),
)

PEERS = tuple(replace(peer, kind=kind) for kind in KINDS for peer in _EAGER)
