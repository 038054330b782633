"""Measure everything; write one table and one JSON file: python -m benchmarks [--models ...] [--peers ...] [--only ...]

Progress goes to standard error, the table to standard output.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.bench.load import Load, ask, open_loop
from benchmarks import fma, inside, machine, protocols
from benchmarks.comparison import COMPARED_AT, measured, service_and_peers
from benchmarks.contenders import Contender, contenders, ours_with, start_ours, wait_until_healthy
from benchmarks.images import IMAGE_SETS, WEB
from benchmarks.measure import Samples, interleaved
from benchmarks.models import MODELS, BenchmarkModel
from benchmarks.peers import KINDS, PEERS, Peer
from benchmarks.report import Row, Section, as_markdown, floor_rows, load_rows, rate_rows

_WORK = Path(__file__).parent.parent / ".bench"
_CLIENTS = (1, 8, 32, 128)
_RATES = (0.5, 0.8, 1.0, 1.5)
_BATCH_SIZES = (1, 2, 4, 8, 16)


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops the servers, which would otherwise stay
    models = [model for model in MODELS if model.name in arguments.models]
    peers = [peer for peer in PEERS if peer.environment in arguments.peers and peer.kind in arguments.kinds]
    sections: list[Section] = []
    report = {
        "machine": machine.describe(),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        "rounds": arguments.rounds,
    }
    for section in _sections(models, peers, arguments.rounds, arguments.scale, arguments.only):
        sections.append(section)
        report["sections"] = [each.as_json() for each in sections]
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")  # after each, so that an interruption loses nothing
        sys.stdout.write(as_markdown(section) + "\n")
        sys.stdout.flush()


def _sections(
    models: Sequence[BenchmarkModel], peers: Sequence[Peer], rounds: int, scale: float, only: Sequence[str]
) -> Iterable[Section]:
    if "floor" in only:
        yield _floor(rounds)
    if "decode" in only:
        yield from (_decoding(model, rounds, scale) for model in models if model.name != "vit-base")
    if "engine" in only:
        yield from (_engine(model, rounds, scale) for model in models)
    if "start" in only:
        yield _start(rounds)
    if "protocols" in only:
        yield _protocols(MODELS[0], rounds, scale)
    for model in models:
        if "peers" in only:
            yield from service_and_peers(model, peers, rounds, scale, _WORK)
        if "isolation" in only:
            yield _service_by_setting(model, "decode_isolation", ("thread", "process"), rounds, scale)
        if "load" in only:
            yield _service_by_load(model, rounds, scale)
        if "embed" in only:
            yield _service_by_setting(model, "embed", ("false", "true"), rounds, scale)
        dtypes = [engine.removeprefix("openvino ") for engine in machine.engines() if engine.startswith("openvino ")]
        if "dtype" in only and dtypes:
            yield _service_by_setting(model, "dtype", ("float32", *dtypes), rounds, scale)


def _floor(rounds: int) -> Section:
    fmas, missing = fma.cases(_WORK)
    cases = [*fmas, ("matrix product, FLOP/s", machine.matrix_flops), ("memory copy, B/s", machine.memory_bandwidth)]
    samples = interleaved("floor", cases, rounds)
    return Section("Floor", "; ".join(filter(None, ["the best this machine can do", missing])), floor_rows(samples))


def _engine(model: BenchmarkModel, rounds: int, scale: float) -> Section:
    made = inside.load(model.directory(_WORK / "models"), _WORK / "cache", machine.engines())
    sizes = [size for size in _BATCH_SIZES if model.name != "vit-base" or size <= 4]
    peaks = {"of matrix product": machine.matrix_flops}
    fmas, missing = fma.cases(_WORK)
    if fmas:
        peaks["of FMA limit"] = fmas[-1][1]
    cases = [*peaks.items(), *inside.engine_cases(made, sizes, model.slice_s * scale / 3)]
    samples = interleaved(f"engine, {model.name}", cases, rounds)
    peak = {heading: samples.pop(heading) for heading in peaks}
    flops = {name: Samples(tuple(value * made.flops for value in each.values)) for name, each in samples.items()}
    shares = {heading: {name: each.over(most) for name, each in flops.items()} for heading, most in peak.items()}
    note = f"{made.flops / 1e9:.2f} GFLOP an image; ratio to eager torch with one image; shares of the rates of the floor"
    return Section(
        f"Engine: {model.title}",
        "; ".join(filter(None, [note, missing])),
        rate_rows(samples, samples["torch, one image alone"], shares),
    )


def _decoding(model: BenchmarkModel, rounds: int, scale: float) -> Section:
    made = inside.load(model.directory(_WORK / "models"), _WORK / "cache")
    images = {each.name: _bytes(each.files(_WORK / "images")) for each in IMAGE_SETS}
    samples = interleaved(f"decode for {model.name}", list(inside.decode_cases(made, images, scale)), rounds)
    rows = []
    for name, each in samples.items():
        rows += rate_rows({name: each}, samples[name.replace("quick", "exact")])
    return Section(
        f"Decode and resize: for {model.title}", "images a second; ratio to the exact way with as many threads", rows
    )


def _start(rounds: int) -> Section:
    """Measure from `vit-serve serve` to ready, with an empty cache and with the cache of the first start."""
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory, "cache")

        def ready(*, first: bool) -> float:
            if first:
                shutil.rmtree(cache, ignore_errors=True)
            began = time.perf_counter()
            server, port = start_ours(MODELS[0].directory(_WORK), {"cache_dir": cache}, subprocess.DEVNULL)
            try:
                wait_until_healthy(server, port)
                return time.perf_counter() - began
            finally:
                server.stop()

        def importing() -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", "import torch"], check=True)
            return time.perf_counter() - began

        cases = [
            ("first start", lambda: ready(first=True)),
            ("second start", lambda: ready(first=False)),
            ("python -c 'import torch'", importing),
        ]
        samples = interleaved("start", cases, 1)  # fills both our cache and the disk's
        samples = interleaved("start", cases[1:], rounds) | {"first start": samples["first start"]}
    rows = [Row((name,), {"seconds": each.median}, {"seconds": f"{each.median:.2f}"}, each) for name, each in samples.items()]
    return Section(f"Start: {MODELS[0].title}", "from the command to ready", rows)


def _service_by_setting(model: BenchmarkModel, setting: str, values: Sequence[str], rounds: int, scale: float) -> Section:
    """Compare values of one setting in interleaved rounds; ratios are to the throughput of the first value."""
    images = _bytes(WEB.files(_WORK / "images"))
    variants: dict[str, dict[str, object]] = {
        value: {setting: value, "cache_dir": _WORK / "cache", "request_timeout_s": 120} for value in values
    }
    loads: dict[str, list[Load]] = {}
    with ours_with(model.directory(_WORK / "models"), variants, images, _WORK) as found:
        cases = [
            (f"{each.name}, {clients}", measured(loads, each, clients, model.slice_s * scale))
            for clients in COMPARED_AT
            for each in found
        ]
        samples = interleaved(f"{setting}, {model.name}", cases, rounds)
        memory = " and ".join(f"{each.memory_mib:.0f} MiB ({each.name})" for each in found)
    rows = []
    for row, (name, each) in zip(load_rows(samples, loads, {}), samples.items(), strict=True):
        ratio = each.over(samples[f"{values[0]}, {name.rpartition(', ')[2]}"])
        rows.append(
            replace(row, numbers={**row.numbers, "ratio": ratio}, shown={f"x {values[0]}": f"{ratio:.3f}", **row.shown})
        )
    return Section(f"VIT_{setting.upper()}: {model.title}", f"memory (PSS) after all of this: {memory}", rows)


def _service_by_load(model: BenchmarkModel, rounds: int, scale: float) -> Section:
    """Measure our service by the number of clients, then by the rate of requests."""
    images = _bytes(WEB.files(_WORK / "images"))
    settings: dict[str, object] = {"cache_dir": _WORK / "cache", "request_timeout_s": 120}
    with contenders(model.directory(_WORK / "models"), (), model.peer_batch_size, images, _WORK, **settings) as (ours,):
        return _by_load(model, ours, rounds, model.slice_s * scale)


def _protocols(model: BenchmarkModel, rounds: int, scale: float) -> Section:
    """Compare every protocol with `POST /predict` in the same form; ratios are to that."""
    directory, images = model.directory(_WORK / "models"), _bytes(WEB.files(_WORK / "images"))
    _WORK.mkdir(exist_ok=True)
    settings = {"model_aliases": protocols.MODEL, "vertex_predict_route": "/vertex", "cache_dir": _WORK / "cache"}
    loads: dict[str, list[Load]] = {}
    with contenders(directory, (), model.peer_batch_size, images, _WORK, **settings) as (ours,):
        found = protocols.targets(ours.target.port, directory, images)
        cases = []
        for name, (target, _) in found.items():
            contender = replace(ours, name=name, target=target)
            with contender.at_work():
                if any(status != 200 for status, _ in ask(target)):
                    raise SystemExit(f"{name} is not answered with 200")
            cases.append((f"{name}, 32", measured(loads, contender, 32, model.slice_s * scale)))
        samples = interleaved("protocols", cases, rounds)
    rows = []
    for row, (name, each) in zip(load_rows(samples, loads, {}), samples.items(), strict=True):
        ratio = each.over(samples[f"{found[name.rpartition(', ')[0]][1]}, 32"])
        rows.append(replace(row, numbers={**row.numbers, "ratio": ratio}, shown={"x /predict": f"{ratio:.3f}", **row.shown}))
    return Section(f"Protocols: {model.title}", "32 clients; ratio to the native request in the same form", rows)


def _by_load(model: BenchmarkModel, ours: Contender, rounds: int, slice_s: float) -> Section:
    loads: dict[str, list[Load]] = {}
    memory = [ours.memory_mib]
    closed = [(f"{ours.name}, {clients}", measured(loads, ours, clients, slice_s)) for clients in _CLIENTS]
    samples = interleaved(f"closed loop, {model.name}", closed, rounds)
    saturation = samples[f"{ours.name}, 32"].median

    def offered(share: float) -> Any:
        def measure() -> float:
            with ours.at_work():
                load = open_loop(ours.target, share * saturation, 4 * slice_s, seed=len(loads.get(name, [])))
            loads.setdefault(name, []).append(load)
            return load.throughput

        name = f"{ours.name}, {share:g} of saturation"
        return name, measure

    samples |= interleaved(f"open loop, {model.name}", [offered(share) for share in _RATES], rounds)
    memory.append(ours.memory_mib)
    return Section(
        f"Service by load: {model.title}",
        f"saturation is {saturation:.1f} a second with 32 clients; {memory[0]:.0f} MiB of memory before, {memory[1]:.0f} after",
        load_rows(samples, loads, {}),
    )


def _bytes(files: Sequence[Path]) -> list[bytes]:
    return [file.read_bytes() for file in files]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [model.name for model in MODELS]
    environments = list(dict.fromkeys(peer.environment for peer in PEERS))
    sections = ["floor", "decode", "engine", "start", "peers", "isolation", "load", "dtype", "protocols", "embed"]
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="MODEL", help=", ".join(names))
    parser.add_argument("--peers", nargs="*", choices=environments, default=environments, help="none: ours alone")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="what runs the model in peers")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the seconds that a measurement takes")
    parser.add_argument("--output", type=Path, default=_WORK / "results.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
