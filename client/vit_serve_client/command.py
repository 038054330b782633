"""The command `vit-serve-client`: classify a folder, or run as a backend of Label Studio."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path

from vit_serve_client.arguments import positive, seconds
from vit_serve_client.async_client import AsyncVitClient
from vit_serve_client.label_studio import command as label_studio
from vit_serve_client.results import Failure, Result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["label-studio"]:
            label_studio.run(given[1:])
            return
        failed = asyncio.run(_classify_folder(_parser().parse_args(given)))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again as it exits
        raise SystemExit(1) from None
    except (NotADirectoryError, ValueError) as error:
        raise SystemExit(f"vit-serve-client: {error}") from None
    raise SystemExit(1 if failed else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vit-serve-client",
        description="Classify all images below a folder with a running vit-serve.",
        epilog="`vit-serve-client label-studio --help` tells how to run as a backend of Label Studio.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jsonl", action="store_true", help="print a line of JSON for each image")
    parser.add_argument("--url", help="where vit-serve is; without it VIT_SERVE_URL, or http://127.0.0.1:8000")
    parser.add_argument("--api-key", help="better given by VIT_SERVE_API_KEY: others can read arguments")
    parser.add_argument("--model", help="name of the model, where the service has several")
    parser.add_argument("--top-k", type=positive, default=5, help="classes to rank")
    parser.add_argument("--concurrency", type=positive, default=8, help="images in flight at once")
    parser.add_argument("--timeout", type=seconds, default=60, help="seconds for one image, with all retries")
    return parser


async def _classify_folder(options: argparse.Namespace) -> bool:
    """Print a line for each image. Tells whether one failed, or there was none."""
    line = _json_line if options.jsonl else _text_line
    progress = _Progress()
    # more retries than a program's: a command waits as long as it may
    async with AsyncVitClient(
        options.url, options.api_key, model=options.model, timeout=options.timeout, max_retries=20
    ) as client:
        outcomes = client.classify_folder(options.folder, options.concurrency, options.top_k)
        async with aclosing(outcomes):
            async for path, outcome in outcomes:
                progress.clear()
                sys.stdout.write(f"{line(path, outcome)}\n")
                sys.stdout.flush()
                progress.count(isinstance(outcome, Failure))
    progress.clear()
    if not progress.done:
        sys.stderr.write(f"vit-serve-client: {options.folder} has no images\n")
    return progress.failed > 0 or not progress.done


def _json_line(path: Path, outcome: Result | Failure) -> str:
    # bytes of a path that are not UTF-8 are lone surrogates, which `os.fsencode` makes bytes again
    if isinstance(outcome, Failure):
        return json.dumps({"path": str(path), "error": {"code": outcome.error.code, "detail": outcome.error.detail}})
    return json.dumps({"path": str(path), "predictions": [asdict(prediction) for prediction in outcome.predictions]})


def _text_line(path: Path, outcome: Result | Failure) -> str:
    if isinstance(outcome, Failure):
        columns = [str(path), "error", outcome.error.detail]
    else:
        best = outcome.predictions[0]
        columns = [str(path), best.label, f"{best.logit:.6g}" if best.probability is None else f"{best.probability:.4f}"]
    # names are others' text: what a terminal would obey is shown as an escape
    return "\t".join(column if column.isprintable() else ascii(column)[1:-1] for column in columns)


class _Progress:
    """Number of images so far, on standard error if that is a terminal."""

    def __init__(self) -> None:
        self.done = 0
        self.failed = 0
        self._shown = sys.stderr.isatty()

    def count(self, failed: bool) -> None:
        """Count one more image."""
        self.done += 1
        self.failed += failed
        self._write(f"\r{self.done} images, {self.failed} failed")

    def clear(self) -> None:
        """Remove the line, so that another can take its place."""
        self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        if self._shown:
            sys.stderr.write(text)
            sys.stderr.flush()


if __name__ == "__main__":
    main()
