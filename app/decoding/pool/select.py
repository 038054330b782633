"""Construction of the decoder from the settings. Processes start slowly, and do so while the first model loads."""

import io

import structlog
from PIL import Image

from app.decoding import Decoder, Preprocessor
from app.decoding.formats import check_decoders, needs_threads
from app.decoding.image import ImageDecoder
from app.decoding.pool.job import Job
from app.decoding.pool.processes import ProcessDecoder, Reason
from app.decoding.pool.sandbox import needed_bytes
from app.decoding.pool.threads import ThreadDecoder
from app.decoding.pool.zygote import Zygote, can_fork_workers
from app.decoding.resizing import is_vectorised
from app.decoding.samples import SAMPLES
from app.metrics import Metrics
from app.settings import Settings
from model.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

_OWN = Preprocessing(256, (224, 224), "bicubic", IMAGENET_MEAN, IMAGENET_STD)
_OWN_SHAPE = (3, 224, 224)
"""What the decoder itself decodes to, to warm up and to prove its workers: the same for all models."""

_log = structlog.get_logger(__name__)


def make_decoder(settings: Settings, metrics: Metrics, zygote: Zygote | None = None) -> Decoder:
    """Return a decoder that is starting: its zygote imports what decoding needs while the caller loads a model.

    Args:
        settings: settings of the service.
        metrics: metrics of the service.
        zygote: one that was started before, for processes. Default: start it now.

    Raises:
        StartError: a format that is asked for cannot be decoded here.
    """
    check_decoders(settings.image_formats)
    if not (is_vectorised or settings.exact_decode):
        _log.info("JPEGs are resized by Pillow, which takes longer: cykooz-resizer is not installed")
    own = Preprocessor(image_decoder(settings, _OWN).decode, _OWN_SHAPE)
    busy = metrics.decoder_busy_seconds.inc
    if settings.decode_isolation == "thread" or not can_fork_workers():
        if settings.decode_isolation == "process":
            _log.warning("decoding in threads: this system cannot share memory without a name")
        return ThreadDecoder(own.run, threads=settings.decode_workers, on_busy=busy)
    job = Job(
        own,
        max_image_bytes=settings.max_image_bytes,
        memory_bytes=needed_bytes(settings.max_image_pixels, settings.max_image_bytes),
        timeout_s=settings.decode_timeout_s,
        probe=_probe(settings.image_formats),
        threads=needs_threads(settings.image_formats),
    )

    def count(reason: Reason) -> None:
        metrics.decoder_restarts.labels(reason).inc()

    return ProcessDecoder(zygote or Zygote(), job, processes=settings.decode_workers, on_restart=count, on_busy=busy)


def image_decoder(settings: Settings, preprocessing: Preprocessing) -> ImageDecoder:
    """Return the decoder of one image by the settings, for serving, training and all else."""
    return ImageDecoder(
        preprocessing,
        formats=settings.image_formats,
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        exact=settings.exact_decode,
        scaled=settings.scaled_decode,
    )


def _probe(formats: frozenset[str]) -> bytes:
    """Return a small image, as JPEG where that is enabled, because it takes the fast way."""
    probe_format = "jpeg" if "jpeg" in formats else min(formats)
    if probe_format in SAMPLES:
        return SAMPLES[probe_format]
    file = io.BytesIO()
    Image.new("RGB", (1, 1), "teal").save(file, probe_format.upper())
    return file.getvalue()
