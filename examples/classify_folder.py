"""Send a folder of images to a running vit-serve, several at once, and write CSV.

python examples/classify_folder.py examples/images --output labels.csv
"""

import argparse
import asyncio
import csv
import random
import sys
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"])
RETRIED_STATUSES = frozenset({429, 503})

MAX_WAIT_S = 300.0
"""Longest wait for a retry, whatever a server or proxy asks for."""


async def classify(client: httpx.AsyncClient, image: Path, tries: int) -> dict[str, Any]:
    """Return a row of the CSV; retry as the service asks while it is busy or restarting."""
    try:
        image_bytes = await asyncio.to_thread(image.read_bytes)
    except OSError as error:
        return {"path": image, "error": str(error)}
    for attempt in range(1, tries + 1):
        try:
            response = await client.post("/predict", params={"top_k": 1, "vectors": False}, content=image_bytes)
        except httpx.TransportError as error:
            failure, wait_s = f"{type(error).__name__}: {error}", 2.0 ** (attempt - 1)
        else:
            if response.is_success:
                best = response.json()["predictions"][0]
                return {"path": image, "error": "", **{name: best[name] for name in ("label", "probability", "logit")}}
            failure = detail_of(response)
            if response.status_code not in RETRIED_STATUSES:
                break
            wait_s = seconds_until_retry(response.headers.get("Retry-After", "1"))
        if attempt < tries:
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.5))  # jitter, so that clients do not retry together
    return {"path": image, "error": failure}


def detail_of(response: httpx.Response) -> str:
    """Return the reason of a refusal; a proxy's answer may have none."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"


def seconds_until_retry(retry_after: str) -> float:
    """Parse a Retry-After header, which holds seconds or a date, up to `MAX_WAIT_S`; 1 if it is neither."""
    if retry_after.isdecimal():
        return min(MAX_WAIT_S, float(retry_after))
    try:
        moment = parsedate_to_datetime(retry_after).replace(tzinfo=UTC)  # HTTP dates are always in GMT
    except (ValueError, OverflowError):
        return 1.0
    return min(MAX_WAIT_S, max(0.0, (moment - datetime.now(UTC)).total_seconds()))


async def classify_all(
    client: httpx.AsyncClient, images: Iterable[Path], concurrency: int, tries: int
) -> AsyncIterator[dict[str, Any]]:
    """Yield rows as they finish, with at most `concurrency` images in flight."""
    waiting, tasks = iter(images), set[asyncio.Task[dict[str, Any]]]()
    while True:
        tasks |= {asyncio.create_task(classify(client, image, tries)) for image in islice(waiting, concurrency - len(tasks))}
        if not tasks:
            return
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            yield task.result()


async def run(arguments: argparse.Namespace) -> int:
    images = sorted(file for file in arguments.folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not images:
        raise SystemExit(f"{arguments.folder} has no images")
    headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    failed = 0
    output = sys.stdout if arguments.output is None else arguments.output.open("w", newline="", encoding="utf-8")
    with output, Progress(console=Console(stderr=True)) as progress:
        writer = csv.DictWriter(output, ["path", "label", "probability", "logit", "error"], lineterminator="\n")
        writer.writeheader()
        task = progress.add_task("classifying", total=len(images))
        async with httpx.AsyncClient(base_url=arguments.url, headers=headers, timeout=60) as client:
            async for row in classify_all(client, images, arguments.concurrency, arguments.tries):
                writer.writerow(row)
                failed += bool(row["error"])
                progress.advance(task)
    return failed


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, help="CSV file; standard output without it")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where vit-serve listens")
    parser.add_argument("--api-key", help="if the service asks for one")
    parser.add_argument("--concurrency", type=positive, default=16, help="images in flight at once")
    parser.add_argument("--tries", type=positive, default=8, help="most attempts for one image")
    raise SystemExit(1 if asyncio.run(run(parser.parse_args())) else 0)


if __name__ == "__main__":
    main()
