"""Send one image to a running vit-serve and print the best classes.

python examples/classify_image.py examples/images/cat.jpg
"""

import argparse
from pathlib import Path

import httpx


def classify(client: httpx.Client, image: Path, top_k: int) -> list[dict[str, object]]:
    """Return the `top_k` best classes, best first.

    Raises:
        httpx.HTTPStatusError: the service refused; the body gives the reason.
    """
    with image.open("rb") as file:
        response = client.post("/predict", params={"top_k": top_k, "vectors": False}, files={"image": file})
    response.raise_for_status()
    predictions: list[dict[str, object]] = response.json()["predictions"]
    return predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where vit-serve listens")
    parser.add_argument("--api-key", help="if the service asks for one")
    parser.add_argument("--top-k", type=int, default=3)
    arguments = parser.parse_args()

    headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    with httpx.Client(base_url=arguments.url, headers=headers, timeout=60) as client:
        try:
            predictions = classify(client, arguments.image, arguments.top_k)
        except httpx.HTTPStatusError as error:
            raise SystemExit(f"{arguments.image}: {error.response.json()['detail']}") from None
        except httpx.TransportError as error:
            raise SystemExit(f"cannot reach {arguments.url}: {error}") from None
    for prediction in predictions:
        probability = prediction["probability"]  # none without an activation
        number = f"{prediction['logit']:.6g}" if probability is None else f"{probability:7.2%}"
        print(f"{number}  {prediction['label']}")


if __name__ == "__main__":
    main()
