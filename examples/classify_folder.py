"""Send a folder of pictures to a running vit-serve, many at once, and write CSV.

python examples/classify_folder.py examples/images --output labels.csv
"""

import argparse
import asyncio
import csv
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
TRY_AGAIN = frozenset({429, 503})


async def classify(client: httpx.AsyncClient, picture: Path, tries: int) -> dict[str, Any]:
    """One row of the CSV. A service that is busy or restarting is asked again, after as long as it asks for."""
    try:
        image_bytes = await asyncio.to_thread(picture.read_bytes)
    except OSError as error:
        return {"path": picture, "error": str(error)}
    for attempt in range(1, tries + 1):
        try:
            response = await client.post("/predict", params={"top_k": 1, "vectors": False}, content=image_bytes)
        except httpx.TransportError as error:
            failure, wait_s = f"{type(error).__name__}: {error}", 2.0 ** (attempt - 1)
        else:
            if response.is_success:
                best = response.json()["predictions"][0]
                return {"path": picture, "error": "", **{name: best[name] for name in ("label", "probability", "logit")}}
            failure = detail_of(response)
            if response.status_code not in TRY_AGAIN:
                break
            wait_s = float(response.headers.get("Retry-After", 1))
        if attempt < tries:
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.5))  # not all of us at the same moment
    return {"path": picture, "error": failure}


def detail_of(response: httpx.Response) -> str:
    """Why the service refused; whatever stands in between may answer with something else than JSON."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"


async def classify_all(
    client: httpx.AsyncClient, pictures: list[Path], concurrency: int, tries: int
) -> AsyncIterator[dict[str, Any]]:
    """Rows in the order in which they are finished, at most `concurrency` requests under way."""
    free = asyncio.Semaphore(concurrency)

    async def bounded(picture: Path) -> dict[str, Any]:
        async with free:
            return await classify(client, picture, tries)

    for row in asyncio.as_completed([bounded(picture) for picture in pictures]):
        yield await row


async def run(arguments: argparse.Namespace) -> int:
    pictures = sorted(file for file in arguments.folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not pictures:
        raise SystemExit(f"{arguments.folder} has no pictures")
    headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    failed = 0
    output = sys.stdout if arguments.output is None else arguments.output.open("w", newline="", encoding="utf-8")
    with output, Progress(console=Console(stderr=True)) as progress:
        writer = csv.DictWriter(output, ["path", "label", "probability", "logit", "error"], lineterminator="\n")
        writer.writeheader()
        task = progress.add_task("classifying", total=len(pictures))
        async with httpx.AsyncClient(base_url=arguments.url, headers=headers, timeout=60) as client:
            async for row in classify_all(client, pictures, arguments.concurrency, arguments.tries):
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
    parser.add_argument("--output", type=Path, help="CSV file to write; else standard output")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where vit-serve listens")
    parser.add_argument("--api-key", help="if the service asks for one")
    parser.add_argument("--concurrency", type=positive, default=16, help="requests under way at once")
    parser.add_argument("--tries", type=positive, default=8, help="how often one picture is sent at most")
    raise SystemExit(1 if asyncio.run(run(parser.parse_args())) else 0)


if __name__ == "__main__":
    main()
