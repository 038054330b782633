"""Find the images of a folder that are most like another one, and draw them with their distances.

pip install ./client faiss-cpu pillow
python examples/similar_images.py FOLDER QUERY --out similar.jpg

The distance of two images is 1 less the cosine of the angle between their features: 0 if they are the same. The index of
faiss is exact. For more images than a few thousand, write the features once (`vit-serve embed`), and keep the index.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from vit_serve_client import SUFFIXES, VitClient, VitError

SIDE = 150
"""Side of each picture on the sheet, in pixels."""


def features(client: VitClient, file: Path) -> tuple[float, ...] | None:
    """Return the features of an image, scaled to length 1; None if the service refuses it, which is printed."""
    try:
        return client.embed(file, normalize=True).vector
    except VitError as error:
        print(f"{file}: {error}")
        return None


def draw(pictures: list[tuple[str, Path]]) -> Image.Image:
    """Draw pictures side by side, each with its caption below."""
    sheet = Image.new("RGB", (SIDE * len(pictures), SIDE + 20), "white")
    for column, (caption, file) in enumerate(pictures):
        with Image.open(file) as image:
            small = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (SIDE - 6, SIDE - 6))
        sheet.paste(small, (SIDE * column + 3, 3))
        ImageDraw.Draw(sheet).text((SIDE * column + 5, SIDE), caption, "black", font_size=14)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("query", type=Path)
    parser.add_argument("--out", type=Path, default=Path("similar.jpg"), help="contact sheet to write")
    parser.add_argument("--count", type=int, default=6, help="how many images to show")
    parser.add_argument("--url", help="where vit-serve is; without it VIT_SERVE_URL, or http://127.0.0.1:8000")
    arguments = parser.parse_args()

    files = [file for file in sorted(arguments.folder.rglob("*")) if file.suffix.lower() in SUFFIXES]
    with VitClient(arguments.url) as client, ThreadPoolExecutor(8) as threads:  # the service makes batches of them
        query, *found = threads.map(lambda file: features(client, file), [arguments.query, *files])
    known = [(file, vector) for file, vector in zip(files, found, strict=True) if vector is not None]
    if query is None or not known:
        raise SystemExit("there is nothing to compare")
    index = faiss.IndexFlatIP(len(query))
    index.add(np.array([vector for _, vector in known], np.float32))
    (cosines,), (nearest,) = index.search(np.array([query], np.float32), min(arguments.count, len(known)))

    pictures = [("query", arguments.query)]
    for cosine, number in zip(cosines, nearest, strict=True):
        print(f"{1 - cosine:.3f} {known[number][0]}")
        pictures.append((f"{1 - cosine:.3f}", known[number][0]))
    draw(pictures).save(arguments.out, quality=85)


if __name__ == "__main__":
    main()
