"""Our service beside its peers: those with eager torch, then those with our model in OpenVINO, each kind in rounds of its own.

Both kinds at once would take twice the memory; our service and the pipeline without HTTP run in the rounds of each.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.bench.load import Load, closed_loop
from app.engines.pixel_model import engine_model
from app.process.cpu import available_cpus
from benchmarks import inside
from benchmarks.contenders import OURS, Contender, check_answers, contenders, mean_batch_size
from benchmarks.images import WEB
from benchmarks.measure import Case, Samples, interleaved, progress
from benchmarks.models import BenchmarkModel
from benchmarks.peers import KINDS, Kind, Peer
from benchmarks.report import Row, Section, Verdict, load_rows, verdict_section
from model.checkpoints.checkpoint import load_checkpoint

COMPARED_AT = (1, 32)
"""Clients."""

_TOLERANCE = 0.02
"""Difference between probabilities of a class: peers decode exactly, and we do not."""

_BESIDE_LARGER = ("fastapi", "litserve-workers", "mosec-workers")
"""Servers that are measured on the larger models, at up to half a minute a cell: the best; the bundled one has them all."""


@dataclass(frozen=True)
class Comparison:
    """Measurements of our service and the peers of one kind, in the same rounds."""

    kind: Kind
    samples: Mapping[str, Samples]
    """Throughput by `NAME, CLIENTS`."""
    loads: Mapping[str, Sequence[Load]]
    peers: Sequence[Peer]
    """Those that were measured."""

    def over(self, name: str, clients: int) -> float:
        """Return the ratio of our throughput to another's."""
        return self.samples[f"{OURS}, {clients}"].over(self.samples[f"{name}, {clients}"])

    def p50_s(self, name: str, clients: int) -> float:
        return statistics.median(load.p50 for load in self.loads[f"{name}, {clients}"])

    def best(self, clients: int) -> Peer:
        """Return the peer with the highest throughput."""
        return max(self.peers, key=lambda peer: self.samples[f"{peer.name}, {clients}"].median)


@dataclass(frozen=True, slots=True)
class Goals:
    """Goals beside the best peer of a kind."""

    throughput: float
    """Least ratio of throughputs for 32 clients."""
    p50: float
    """Largest ratio of medians of the latency for one client."""


def goals(model: BenchmarkModel, kind: Kind) -> Goals:
    """Return the goals of a model. With the same model inside, the service must not cost anything."""
    if kind == "openvino":
        return Goals(1.0, 1.0)
    return Goals(1.2, 0.8) if model.name == "vit-base" else Goals(1.5, 0.4)


def service_and_peers(model: BenchmarkModel, peers: Sequence[Peer], rounds: int, scale: float, work: Path) -> Iterator[Section]:
    """Compare our service and its peers over HTTP with the pipeline without HTTP, in the same rounds.

    Args:
        peers: of one kind or both; our service is measured alone if there are none.
        scale: of the seconds that a measurement takes.
        work: directory for models, images and logs.
    """
    if model.width is not None:
        peers = [peer for peer in peers if peer.server in _BESIDE_LARGER]
    compared = []
    for kind in dict.fromkeys(peer.kind for peer in peers) or KINDS:
        of_kind = [peer for peer in peers if peer.kind == kind]
        title = f"{model.title}, peers with {KINDS[kind]}" if of_kind else model.title
        comparison, *sections = _compare(model, title, kind, of_kind, rounds, scale, work)
        yield from sections
        if not of_kind:
            return
        compared.append(comparison)
    yield best_peers(model, compared)
    yield verdicts(model, compared)


def converted(model: BenchmarkModel, work: Path) -> Path:
    """Convert a model for peers with OpenVINO, just as our service does, with the features that it computes too."""
    file = work / "openvino" / model.name / "model.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    from app.engines.conversion import save_for_others  # absent beside a GPU

    progress(f"converting {model.name} for the peers")
    save_for_others(engine_model(load_checkpoint(model.directory(work / "models")), with_features=True), file)
    return file


def _compare(
    model: BenchmarkModel, title: str, kind: Kind, peers: Sequence[Peer], rounds: int, scale: float, work: Path
) -> tuple[Comparison, Section, Section]:
    directory = model.directory(work / "models")
    made = inside.load(directory, work / "cache")
    images = [file.read_bytes() for file in WEB.files(work / "images")]
    work.mkdir(exist_ok=True)
    file = converted(model, work) if kind == "openvino" and peers else None
    settings = {"cache_dir": work / "cache", "request_timeout_s": 120}
    with contenders(directory, peers, model.peer_batch_size, images, work, file, **settings) as started:
        different = check_answers(started, _TOLERANCE)
        found = [each for each in started if each.name not in different]
        loads: dict[str, list[Load]] = {}
        slice_s = model.slice_s * scale
        cases: list[Case] = [
            ("pipeline", inside.pipeline_case(made, images, slice_s)),
            ("engine and decode, alone", inside.lone_case(made, images, slice_s)),
        ]
        for clients in COMPARED_AT:
            cases += [(f"{each.name}, {clients}", measured(loads, each, clients, slice_s)) for each in found]
        samples = interleaved(f"service, {model.name}", cases, rounds)
        memory = _memory(title, found)
    size = sum(map(len, images)) / len(images) / 1e3
    notes = [f"JPEGs of {size:.0f} KB; load generator on the same {available_cpus()} cores"]
    notes += [f"{name} is not measured: {reason}" for name, reason in different.items()]
    rows = load_rows(samples, loads, {contender.name: contender.layout for contender in found})
    comparison = Comparison(kind, samples, loads, [peer for peer in peers if peer.name not in different])
    return comparison, Section(f"Service and peers: {title}", "; ".join(notes), rows), memory


def _memory(title: str, found: Sequence[Contender]) -> Section:
    ours = next(contender for contender in found if contender.ours)
    with ours.at_work():
        batch = mean_batch_size(ours)
    memory = {contender.name: contender.memory_mib for contender in found}
    return Section(
        f"Memory: {title}",
        f"after all of the above; our mean batch had {batch:.1f} images",
        [Row((name,), {"MiB": value}, {"MiB (PSS)": f"{value:.0f}"}, None) for name, value in memory.items()],
    )


def measured(loads: dict[str, list[Load]], contender: Contender, clients: int, slice_s: float) -> Callable[[], float]:
    """Return a measurement of the throughput of a contender, which also adds to `loads`."""
    name = f"{contender.name}, {clients}"
    # the warm-up fills and empties the queue once
    seconds, warm_up_s = slice_s * (2 if clients > 1 else 1), slice_s * (0.75 if clients > 1 else 0.25)

    def measure() -> float:
        with contender.at_work():
            load = closed_loop(contender.target, clients, seconds, warm_up_s)
        loads.setdefault(name, []).append(load)
        return load.throughput

    return measure


def best_peers(model: BenchmarkModel, compared: Sequence[Comparison]) -> Section:
    """Return each peer with both kinds side by side, and our ratio to it."""
    servers = dict.fromkeys(peer.server for comparison in compared for peer in comparison.peers)
    rows = {server: Row((server,), {}, {}, None) for server in [OURS, *servers]}
    for clients in COMPARED_AT:
        for comparison in compared:
            heading = f"{clients} client{'s' * (clients > 1)}, {KINDS[comparison.kind]}: a second (ours over it)"
            for server, name in [(OURS, OURS), *((peer.server, peer.name) for peer in comparison.peers)]:
                rate, ratio = comparison.samples[f"{name}, {clients}"].median, comparison.over(name, clients)
                row, key = rows[server], f"{comparison.kind}_{clients}"
                numbers = {**row.numbers, key: rate, f"over_{key}": ratio}
                text = f"{rate:.1f}" if server == OURS else f"{rate:.1f} ({ratio:.2f})"
                rows[server] = Row(row.names, numbers, {**row.shown, heading: text}, None)
    return Section(f"Peers of both kinds: {model.title}", "medians; ratios within rounds", list(rows.values()))


def verdicts(model: BenchmarkModel, compared: Sequence[Comparison]) -> Section:
    """Return our service over the best peer of each kind, by name, against the goals."""
    found = []
    for comparison in compared:
        goal = goals(model, comparison.kind)
        kind = KINDS[comparison.kind]
        if not comparison.peers:
            continue
        busy, lone = comparison.best(32), comparison.best(1)
        ratio = comparison.over(busy.name, 32)
        slower = comparison.p50_s(OURS, 1) / comparison.p50_s(lone.name, 1)
        found += [
            Verdict(
                f"32 clients: throughput over the best peer's with {kind}, {busy.server} {busy.layout}",
                ratio,
                f"{ratio:.2f}",
                f"≥ {goal.throughput:g}",
                ratio >= goal.throughput,
            ),
            Verdict(
                f"one client: p50 over the best peer's with {kind}, {lone.server} {lone.layout}",
                slower,
                f"{slower:.2f}",
                f"≤ {goal.p50:g}",
                slower <= goal.p50,
            ),
        ]
    return verdict_section(f"Best peers: {model.title}", "the best by throughput", found)
