"""Measure one GPU in ten minutes, with nothing from outside: python -m benchmarks.gpu [--seconds 30] [--only ...]

Checks the answers in half precision against float32 on the CPU, then measures the engine by mode and batch size, decoding on
every core, and the service over HTTP. Progress goes to standard error, tables to standard output, everything to a JSON file.
Without a GPU, the same code measures the CPU, so that a test can run it.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from app.bench.load import Load, Target, closed_loop
from app.decoding.image import ImageDecoder
from app.engines.pixel_model import PixelModel, parse_dtype
from app.engines.torch_cuda import make_torch_cuda_engine
from app.pixels import Logits, Pixels
from app.process.cpu import available_cpus
from benchmarks import machine
from benchmarks.contenders import pss_mib, start_ours, wait_until_healthy
from benchmarks.images import WEB, WEB_40_KB, ImageSet
from benchmarks.inside import FORMATS, rate_case
from benchmarks.measure import progress
from benchmarks.models import MODELS, VIT_LARGE, BenchmarkModel
from benchmarks.peers import Server
from benchmarks.report import Row, Section, Verdict, as_markdown
from model.checkpoints.checkpoint import load_checkpoint
from model.vit import VisionTransformer

_WORK = Path(__file__).parent.parent / ".bench"
_MODELS = {model.name: model for model in (*MODELS, VIT_LARGE) if model.name != "vit-tiny"}
_SECTIONS = ("floor", "answers", "engine", "decode", "http")

_TOLERANCE = 0.05
"""Allowed difference in bfloat16 from float32, relative to the largest logit of the image."""

_START_PATIENCE_S = 300.0
_WARM_UP_S = 2.0

Run = Callable[[Sequence[Pixels]], Logits]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    report = Report(options.output, " ".join(["python -m benchmarks.gpu", *(arguments or sys.argv[1:])]))
    models = [_MODELS[name] for name in options.models]
    _WORK.mkdir(exist_ok=True)
    if "floor" in options.only:
        _floor(report)
    for model in models:
        if "answers" in options.only or "engine" in options.only:
            _inside(report, model, options)
    if "decode" in options.only:
        _decoding(report, models[-1], min(options.seconds, 5.0))
    if "http" in options.only:
        for model in models:
            if model.name in options.served:
                _over_http(report, model, options)
    sys.stdout.write("\n".join(as_markdown(section) for section in report.sections))


class Report:
    """Sections that are written to a file after each row: a run that is cut off loses nothing."""

    def __init__(self, file: Path, command: str) -> None:
        self._sections: dict[str, Section] = {}
        self._file = file
        self._facts = {
            "machine": machine.describe() | _gpu(),
            "command": command,
            "started": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        }
        file.parent.mkdir(parents=True, exist_ok=True)

    @property
    def sections(self) -> list[Section]:
        return list(self._sections.values())

    def add(self, title: str, note: str, row: Row) -> None:
        """Add a row to the section of this title, and say it on standard error."""
        progress(f"{title}: {row.names[0]}: {', '.join(f'{value} {column}' for column, value in row.shown.items())}")
        before = self._sections[title].rows if title in self._sections else ()
        self._sections[title] = Section(title, note, [*before, row])
        report = self._facts | {"sections": [section.as_json() for section in self.sections]}
        self._file.write_text(json.dumps(report, indent=1) + "\n")


def _floor(report: Report) -> None:
    title, note = "Floor", "the best of this device"
    report.add(title, note, _row("matrix product", {"TFLOP/s": machine.matrix_flops() / 1e12}))
    report.add(title, note, _row("memory copy", {"GB/s": machine.memory_bandwidth() / 1e9}))


def _inside(report: Report, model: BenchmarkModel, options: argparse.Namespace) -> None:
    """Compare the answers of every mode with float32, and measure images a second without HTTP."""
    pixels = _decoded(model)[: max(options.batch_sizes)]
    expected: Logits | None = None
    for mode in options.modes:
        checkpoint = load_checkpoint(model.directory(_WORK / "models"))
        assert isinstance(checkpoint.model, VisionTransformer)
        made = PixelModel(checkpoint.model, checkpoint.preprocessing, with_features=True)
        flops = made.config.flops
        if expected is None and "answers" in options.only:
            expected = _in_float32(made, pixels)
        title, note = f"Engine: {model.title}", f"{flops / 1e9:.2f} GFLOP an image; bfloat16 on a GPU"
        began = time.perf_counter()
        run, threads = _engine(made, mode, max(options.batch_sizes))
        report.add(title, note, _row(f"{mode}, prepared", {"seconds": time.perf_counter() - began}))
        if expected is not None:
            about = f"{len(pixels)} images; difference relative to the largest logit, or to the largest feature of its kind"
            widths = {"logits": made.num_classes, **{f"features {name}": size for name, size in made.features.items()}}
            for verdict in _verdicts(mode, expected, pixels, run, widths):
                report.add(f"Answers: {model.title}", about, verdict.row())
        for size in options.batch_sizes if "engine" in options.only else ():
            seconds = options.seconds if size == max(options.batch_sizes) else min(3.0, options.seconds)
            batch = list(itertools.islice(itertools.cycle(pixels), size))
            found = rate_case(partial(_images_run, run, batch), threads=threads, slice_s=seconds)()
            numbers = {"seconds": seconds, "a second": found, "TFLOP/s": found * flops / 1e12}
            report.add(title, note, _row(f"{mode}, {threads} x {size}", numbers))
        del run, made
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _images_run(run: Run, batch: Sequence[Pixels]) -> int:
    return len(run(batch))


def _engine(model: PixelModel, mode: str, max_batch_size: int) -> tuple[Run, int]:
    """Return a function that runs a batch, and the number of threads that call it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    if mode == "eager":
        eager = model.to(device, parse_dtype(dtype))

        def run(images: Sequence[Pixels]) -> Logits:
            with torch.inference_mode():
                logits: Logits = eager(torch.from_numpy(np.stack(images)).to(device)).cpu().numpy()
                return logits

        return run, 2
    engine = make_torch_cuda_engine(
        model,
        device=device,
        dtype=dtype,
        compile_model=mode == "compiled",
        max_batch_size=max_batch_size,
        cache=_WORK / "cache",
    )
    return lambda images: engine.run(images, use_all_cores=False), engine.max_concurrent_batches


def _in_float32(model: PixelModel, pixels: Sequence[Pixels]) -> Logits:
    torch.set_num_threads(available_cpus())
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(image[None])).numpy() for image in pixels])


def _verdicts(mode: str, expected: Logits, pixels: Sequence[Pixels], run: Run, widths: Mapping[str, int]) -> Iterator[Verdict]:
    """Compare logits and each kind of features, of single images and of one batch, with float32 on the CPU."""
    borders = list(itertools.accumulate(widths.values()))[:-1]
    for how, found in (
        ("alone", np.concatenate([run([image]) for image in pixels])),
        (f"in a batch of {len(pixels)}", run(pixels)),
    ):
        parts = zip(widths, np.split(found, borders, axis=1), np.split(expected, borders, axis=1), strict=True)
        for name, ours, reference in parts:
            differences = np.abs(ours - reference).max(axis=1) / np.abs(reference).max(axis=1)
            worst = float(differences.max())
            shown = f"{worst:.2%} at most, {np.median(differences):.2%} in the median"
            if name == "logits":
                shown += f"; same first class {(ours.argmax(axis=1) == reference.argmax(axis=1)).mean():.0%}"
            yield Verdict(f"{mode}, {name} {how}", worst, shown, f"at most {_TOLERANCE:.0%}", worst <= _TOLERANCE)


def _decoding(report: Report, model: BenchmarkModel, seconds: float) -> None:
    """Decode in one process and in one for each core, as the service does."""
    title, note = f"Decode and resize: for {model.title}", "the default, which is quick; in processes, as the service does it"
    directory = model.directory(_WORK / "models")
    with ProcessPoolExecutor(available_cpus(), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(time.sleep, [0.2] * available_cpus()))  # start the processes
        for images in (WEB, WEB_40_KB):
            files = _files(images)
            for processes in dict.fromkeys((1, available_cpus())):
                found = sum(pool.map(partial(_decode_rate, directory, files), [seconds] * processes))
                numbers = {"a second": found, "ms of one core": 1000 * processes / found}
                report.add(title, note, _row(f"{images.name}, {processes} processes", numbers))


def _decode_rate(directory: Path, files: Sequence[bytes], seconds: float) -> float:
    decoder, turns = _decoder(directory), itertools.cycle(files)

    def one() -> int:
        decoder.decode(next(turns))
        return 1

    return rate_case(one, threads=1, slice_s=seconds)()


def _over_http(report: Report, model: BenchmarkModel, options: argparse.Namespace) -> None:
    """Start one service or several on this device, and load them with more and more clients."""
    settings: dict[str, object] = {
        "cache_dir": _WORK / "cache",
        "max_inflight_images": 4096,
        "compile": "compiled" in options.modes if torch.cuda.is_available() else "auto",
        "log_level": "warning",
    }
    title, note = (
        f"Service over HTTP: {model.title}",
        "as `vit-serve serve` runs it, with room for 4096 images; p50 and p99 of the slowest replica",
    )
    shutil.rmtree(_WORK / "cache" / "torch", ignore_errors=True)
    with (_WORK / f"service-{model.name}.log").open("wb") as log:
        if not options.one_start:
            began = time.perf_counter()
            with _services(model, settings, 1, log.fileno()):
                report.add(title, note, _row("first start", {"seconds": time.perf_counter() - began}))
        for replicas in options.replicas:
            began = time.perf_counter()
            name = f"{replicas} x " if replicas > 1 else ""
            shared = {"decode_workers": max(1, available_cpus() // replicas)} if replicas > 1 else {}
            with _services(model, settings | shared, replicas, log.fileno()) as services:
                report.add(title, note, _row(f"{name}start", {"seconds": time.perf_counter() - began}))
                for row in _loads(services, name, options):
                    report.add(title, note, row)
                memory = pss_mib([pid for server, _ in services for pid in server.pids()])
                report.add(title, note, _row(f"{name}memory afterwards", {"MiB (PSS)": memory}))


@contextmanager
def _services(
    model: BenchmarkModel, settings: dict[str, object], replicas: int, log: int
) -> Iterator[list[tuple[Server, int]]]:
    """Start services at the same time, each with its port; stop them after the block."""
    with ExitStack() as stack:
        services = [start_ours(model.directory(_WORK / "models"), settings, log) for _ in range(replicas)]
        for server, _ in services:
            stack.callback(server.stop)
        for server, port in services:
            wait_until_healthy(server, port, _START_PATIENCE_S)
        yield services


def _loads(services: Sequence[tuple[Server, int]], name: str, options: argparse.Namespace) -> Iterator[Row]:
    """Load each service from a process of its own, with its share of the clients."""
    with ProcessPoolExecutor(len(services), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(time.sleep, [0.2] * len(services)))  # start the processes
        for images in (WEB, WEB_40_KB):
            targets = [Target(port, "/predict?vectors=false", _files(images), "image/jpeg") for _, port in services]
            for clients in options.clients:
                before = [_cpu_s(server) for server, _ in services]
                with _gpu_watched() as gpu:
                    share = max(1, clients // len(services))
                    loads = list(pool.map(partial(_closed_loop, clients=share, seconds=options.http_seconds), targets))
                cores = _cores_used(services, before, options.http_seconds + _WARM_UP_S)
                yield _row(f"{images.name}, {name}{share} clients", _of_loads(loads) | cores | gpu)


def _closed_loop(target: Target, clients: int, seconds: float) -> Load:
    return closed_loop(target, clients, seconds, _WARM_UP_S)


def _cores_used(
    services: Sequence[tuple[Server, int]], before: Sequence[tuple[float, float]], seconds: float
) -> dict[str, float]:
    used = np.subtract([_cpu_s(server) for server, _ in services], before).sum(axis=0) / seconds
    return dict(zip(("service, cores", "decoders, cores"), used.tolist(), strict=True))


def _cpu_s(server: Server) -> tuple[float, float]:
    """Return seconds of CPU of the service's process, and of all its workers."""
    used = {pid: _cpu_s_of(pid) for pid in server.pids()}
    process = used.pop(server.process.pid)
    return process, sum(used.values())


def _cpu_s_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


def _of_loads(loads: Sequence[Load]) -> dict[str, float]:
    return {
        "a second": sum(load.throughput for load in loads),
        "p50 ms": max(load.p50 for load in loads) * 1000,
        "p99 ms": max(load.p99 for load in loads) * 1000,
        "errors": sum(load.errors for load in loads),
        "generators, of a core": sum(load.generator_share for load in loads),
    }


@contextmanager
def _gpu_watched() -> Iterator[dict[str, float]]:
    """Sample the GPU during the block; the means are in the dictionary after it."""
    found: dict[str, float] = {}
    if not torch.cuda.is_available():
        yield found
        return
    columns = {"utilization.gpu": "GPU %", "memory.used": "GPU MiB", "power.draw": "GPU W", "clocks.sm": "GPU MHz"}
    query = ["nvidia-smi", f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits", "--loop-ms=500"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            yield found
        finally:
            watcher.terminate()
            text = watcher.stdout.read() if watcher.stdout else ""
    samples = [[float(value) for value in line.split(",")] for line in text.splitlines() if line.count(",") == len(columns) - 1]
    busy = samples[int(2 * _WARM_UP_S) :] or samples
    for name, *column in zip(columns.values(), *busy, strict=True):
        found[name] = sum(column) / len(column)


def _decoded(model: BenchmarkModel) -> list[Pixels]:
    decoder = _decoder(model.directory(_WORK / "models"))
    return [decoder.decode(image) for image in _files(WEB)]


def _decoder(directory: Path) -> ImageDecoder:
    preprocessing = load_checkpoint(directory).preprocessing
    return ImageDecoder(preprocessing, formats=FORMATS, max_bytes=10**9, max_pixels=10**9, exact=False)


def _files(images: ImageSet) -> list[bytes]:
    return [file.read_bytes() for file in images.files(_WORK / "images")]


def _row(name: str, numbers: dict[str, float]) -> Row:
    return Row((name,), numbers, {column: f"{value:,.{0 if value >= 100 else 2}f}" for column, value in numbers.items()}, None)


def _gpu() -> dict[str, object]:
    if not torch.cuda.is_available():
        return {"gpu": None}
    found = torch.cuda.get_device_properties(0)
    return {"gpu": found.name, "gpu_memory_gib": round(found.total_memory / 2**30, 1), "cuda": torch.version.cuda}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = ("eager", "graphs", "compiled")
    parser.add_argument("--models", nargs="+", choices=_MODELS, default=list(_MODELS), help="compared and measured")
    parser.add_argument("--served", nargs="*", choices=_MODELS, default=["vit-base"], help="those of them measured over HTTP")
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes, help="of the engine; compiled has CUDA graphs too")
    parser.add_argument("--only", nargs="+", choices=_SECTIONS, default=_SECTIONS)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 64, 128, 256])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32, 128, 512])
    parser.add_argument("--seconds", type=float, default=30.0, help="for the largest batch; others take at most 3")
    parser.add_argument("--http-seconds", type=float, default=10.0, help="for each number of clients")
    parser.add_argument(
        "--replicas", nargs="+", type=int, default=[1], help="services that share the device, each with its clients"
    )
    parser.add_argument("--one-start", action="store_true", help="do not start once with an empty cache first")
    parser.add_argument("--output", type=Path, default=_WORK / "gpu.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
