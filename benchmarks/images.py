"""JPEGs of common upload sizes, made from examples/images (CC0), identical in every run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

_SOURCES = sorted((Path(__file__).parent.parent / "examples" / "images").glob("*.jpg"))


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images of one size: name, (width, height) in pixels, and count."""

    name: str
    size: tuple[int, int]
    count: int
    quality: int = 95
    """JPEG quality; the default is common to cameras and content systems."""
    grain: float = 8.0
    """Standard deviation of the added noise, in steps of 255: without it, enlarged images decode too fast."""

    def files(self, directory: Path) -> list[Path]:
        """Paths of the JPEGs below `directory`; those that are not there are made first."""
        files = [directory / self.name / f"{index:02d}.jpg" for index in range(self.count)]
        for index, file in enumerate(files):
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                self._image(index).save(file, quality=self.quality)
        return files

    def _image(self, index: int) -> Image.Image:
        """A part of one of the sources, another for each index, turned or mirrored, with grain."""
        rng = np.random.default_rng(index)
        with Image.open(_SOURCES[index % len(_SOURCES)]) as source:
            image = source.convert("RGB")
        if index // len(_SOURCES) % 2:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        width, height = self.size
        image = _cut(image, width / height, share=float(rng.uniform(0.6, 1.0)), at=rng.uniform(size=2))
        image = image.resize(self.size, Image.Resampling.LANCZOS)
        pixels = np.asarray(image, np.float32) + rng.normal(0, self.grain, (height, width, 3)).astype(np.float32)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


SMALL = ImageSet("200x200", (200, 200), 24)
WEB = ImageSet("500x375", (500, 375), 24)
"""About 105 KB each: what the goals are stated for."""
WEB_40_KB = ImageSet("500x375-40KB", (500, 375), 24, quality=85, grain=4.0)
SCREEN = ImageSet("1920x1080", (1920, 1080), 12)
PHONE = ImageSet("4000x3000", (4000, 3000), 6)

IMAGE_SETS = (SMALL, WEB, SCREEN, PHONE)


def _cut(image: Image.Image, aspect: float, *, share: float, at: np.ndarray) -> Image.Image:
    """The largest box of this aspect that fits, made smaller by `share`, at a place of (0..1, 0..1)."""
    width = share * min(image.width, image.height * aspect)
    height = width / aspect
    left, top = at * (image.width - width, image.height - height)
    return image.crop((round(left), round(top), round(left + width), round(top + height)))
