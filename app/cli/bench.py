"""The command `bench`."""

import asyncio
import json
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from app import __version__
from app.cli.classify import image_files
from app.cli.output import err, explained_errors, fail, out, say
from app.errors import StartError
from app.process.signals import STOP, handled

if TYPE_CHECKING:  # importing them takes a third of a second
    from app.bench.load import Target
    from app.bench.record import Level, LevelResult
    from app.bench.run import Plan
    from app.bench.service_url import ServiceUrl
    from app.bench.terminal import TerminalView

KEY_OF_CLIENTS = "VIT_SERVE_API_KEY"
"""Variable with the key of a service, as the client package reads it."""

_DEFAULT_CLIENTS = (1, 8, 32)
_MAX_RATE = 100_000.0
_SEVERAL = ("--clients", "--rate")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


class SeveralNumbers(TyperCommand):
    """Command with options that take several numbers, as `--clients 1 8 32`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before its second and later numbers, which is the form that the parser knows."""
        repeated: list[str] = []
        option, numbers = "", 0
        for word in args:
            if option and _NUMBER.fullmatch(word):
                repeated += [option] if numbers else []
                numbers += 1
            else:
                option, numbers = word if word in _SEVERAL else "", 0
            repeated.append(word)
        return super().parse_args(ctx, repeated)


def bench(
    url: Annotated[str, typer.Argument(help="The service, such as http://127.0.0.1:8000.")],
    clients: Annotated[
        list[int] | None, typer.Option(min=1, help="Clients that wait for their answers; several: 1 8 32, the default.")
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option(min=0.01, max=_MAX_RATE, help="Requests a second, at random; several: 50 100.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of images to send. Default: generated ones.")
    ] = None,
    path: Annotated[str, typer.Option(help="Path that takes an image as its body; may have a query.")] = "/predict",
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds to measure each level.")] = 10,
    warm_up: Annotated[float, typer.Option(min=0, max=600, help="Seconds of load before.")] = 2,
    timeout: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds in which an answer must come.")] = 60,
    chart: Annotated[Path | None, typer.Option(dir_okay=False, help="File for a picture: .svg or .png.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", dir_okay=False, help="File for all results.")] = None,
    foreign: Annotated[
        bool, typer.Option("--yes-this-host-is-mine", help="Allow a host other than this machine's loopback.")
    ] = False,
) -> None:
    """Send load to a running service and measure it. VIT_SERVE_API_KEY has its key. Exits with 1 if nothing succeeds."""
    import uvloop

    from app.bench.run import Plan
    from app.bench.service_url import check_path, parse_url
    from app.bench.terminal import TerminalView

    with explained_errors("measuring"):
        levels = _levels(clients, rate)
        _check_files(chart, json_file)
        service = parse_url(url)
        content, source, headers = *_content(images), _headers()
        targets = _targets(service, check_path(path), content, headers, foreign)
        plan = Plan(targets[0], f"{service.prefix}/metrics", levels, seconds, warm_up, timeout)
        view = TerminalView(out if out.is_terminal else err)
        results, interrupted = uvloop.run(_measure(plan, targets, view))
        facts = {"url": url, "path": path, "images": source, "warm_up_s": warm_up, "timeout_s": timeout}
        try:  # files first: standard output may be closed, or full, and each must not take the other along
            if json_file is not None:
                json_file.write_text(json.dumps(_report(facts, results, interrupted), indent=2) + "\n", encoding="utf-8")
            if chart is not None:
                _draw(chart, f"vit-serve bench {url}, {path}", results)
        finally:
            _print(results)
    if interrupted:
        say(f"interrupted; {'the results are of the time until then' if results else 'nothing was measured'}")
        raise typer.Exit(130)
    if not any(result.latencies_s for result in results):
        fail("no request succeeded")


def _levels(clients: list[int] | None, rate: list[float] | None) -> "list[Level]":
    from app.bench.chart import MAX_LEVELS
    from app.bench.record import Level
    from app.bench.run import most_connections

    numbers = clients or (() if rate else _DEFAULT_CLIENTS)
    levels = [*(Level(clients=number) for number in numbers), *(Level(rate=one) for one in rate or ())]
    if len(levels) > MAX_LEVELS:
        raise StartError(f"--clients and --rate have {len(levels)} numbers; one run measures at most {MAX_LEVELS}")
    if max(numbers, default=0) > most_connections():
        raise StartError(f"this process may have {most_connections()} connections; `ulimit -n` allows more, up to 10,000")
    return levels


def _check_files(chart: Path | None, json_file: Path | None) -> None:
    """Refuse files that could not be written after the load."""
    from app.bench.chart import SUFFIXES

    if chart is not None and chart.suffix.lower() not in SUFFIXES:
        raise StartError(f"--chart {chart} must end with {' or '.join(SUFFIXES)}")
    for file in (chart, json_file):
        if file is not None and not file.parent.is_dir():
            raise StartError(f"{file} cannot be written: there is no folder {file.parent}")
        # not opened: that would leave an empty file if the service cannot be reached, and end the reader of a pipe
        if file is not None and not os.access(file if file.exists() else file.parent, os.W_OK):
            raise StartError(f"{file} cannot be written: permission denied, or a file system that is only read")


def _content(folder: Path | None) -> tuple[list[bytes], dict[str, Any]]:
    """Return the images to send, and what is said of them."""
    from app.bench.images import GENERATED, generate, read

    images, left_out = (generate(), 0) if folder is None else read(image_files([folder]))
    if left_out:
        say(f"{left_out} images are left out: all together may have 128 MiB")
    mean_bytes = round(sum(map(len, images)) / len(images))
    return images, {"source": GENERATED if folder is None else str(folder), "count": len(images), "mean_bytes": mean_bytes}


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_OF_CLIENTS, "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise StartError(f"{KEY_OF_CLIENTS}: the key must be of printable ASCII characters, without blanks")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _targets(service: "ServiceUrl", path: str, images: list[bytes], headers: dict[str, str], foreign: bool) -> "list[Target]":
    """Return the service at each of its addresses."""
    from app.bench.load import Target
    from app.bench.service_url import addresses

    tls = ssl.create_default_context() if service.scheme == "https" else None
    # no type of one format: the service tells an image's format by its bytes
    first = Target(service.port, service.prefix + path, images, "application/octet-stream", headers, name=service.host, tls=tls)
    return [replace(first, host=host) for host in addresses(service, foreign=foreign)]


async def _measure(plan: "Plan", targets: "list[Target]", view: "TerminalView") -> "tuple[list[LevelResult], bool]":
    """Return what was measured, and whether the user ended it early."""
    from app.bench.run import measure, reach, unless_stopped

    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    with handled(STOP, lambda *_: loop.call_soon_threadsafe(stopping.set)):
        target = await unless_stopped(reach(targets), stopping)
        if target is None:
            return [], True
        plan = replace(plan, target=target)
        with view.shown():
            return await measure(plan, stopping, view), stopping.is_set()


def _draw(chart: Path, title: str, results: "Sequence[LevelResult]") -> None:
    from app.bench.chart import write

    write(chart, title, results)


def _print(results: "Sequence[LevelResult]") -> None:
    from app.bench.terminal import UNITS, bars, remarks, table

    if not results:
        return
    out.print(table(results))
    ascii_only = not out.encoding.lower().startswith("utf")
    drawn = bars(results, ascii_only=ascii_only)
    for line in [UNITS, "", *drawn, *[""][: len(drawn)], *remarks(results)]:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _report(facts: dict[str, Any], results: "Sequence[LevelResult]", interrupted: bool) -> dict[str, Any]:
    return {
        "vit_serve": __version__,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
        "interrupted": interrupted,
        "levels": [result.as_json() for result in results],
    }
