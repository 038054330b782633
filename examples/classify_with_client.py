"""Classify images with the client package, in batches, and print the best class of each.

pip install ./client
python examples/classify_with_client.py examples/images/*.jpg
"""

import argparse
from pathlib import Path

from vit_serve_client import Failure, VitClient, VitError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--url", help="where vit-serve is; without it VIT_SERVE_URL, or http://127.0.0.1:8000")
    arguments = parser.parse_args()

    failed = False
    with VitClient(arguments.url, timeout=60) as client:
        try:
            model = client.model()
        except VitError as error:
            raise SystemExit(str(error)) from None
        print(f"{model.name} on {model.device}")
        outcomes = client.classify_many(arguments.images, top_k=1)
    for image, outcome in zip(arguments.images, outcomes, strict=True):
        if isinstance(outcome, Failure):
            failed = True
            print(f"{image}: {outcome.error}")
        else:
            best = outcome.predictions[0]
            number = f"{best.logit:.6g}" if best.probability is None else f"{best.probability:.2%}"
            print(f"{image}: {best.label}, {number}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
