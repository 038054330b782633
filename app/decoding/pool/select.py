"""Construction of the decoder from the settings, in two steps: processes start slowly, and do so while the model loads."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from PIL import Image

from app.decoding import Decoder, photograph
from app.decoding.formats import check_decoders, needs_threads
from app.decoding.image import ImageDecoder
from app.decoding.photograph import photograph_decoder, size_decoder
from app.decoding.pool.job import Job, Preprocessor
from app.decoding.pool.processes import ProcessDecoder, Reason
from app.decoding.pool.sandbox import needed_bytes
from app.decoding.pool.threads import ThreadDecoder
from app.decoding.pool.zygote import Zygote
from app.decoding.samples import SAMPLES
from app.metrics import Metrics
from app.settings import Settings
from model.preprocessing import Preprocessing

_log = structlog.get_logger(__name__)


class StartingDecoder:
    """A decoder whose zygote is starting."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        check_decoders(settings.image_formats)
        self._settings = settings
        self._metrics = metrics
        self._zygote = Zygote() if _wants_processes(settings) else None

    def finish(self, preprocessing: Preprocessing, shape: tuple[int, int, int]) -> Decoder:
        """Return the decoder when it is warm, with the preprocessings of `app.decoding`. Blocks.

        Args:
            preprocessing: the checkpoint's.
            shape: (C, H, W) of the pixels.

        Raises:
            StartError: it cannot be started.
        """
        settings = self._settings
        decoder = image_decoder(settings, preprocessing)
        work = (
            Preprocessor(decoder.decode, shape),
            Preprocessor(photograph_decoder(decoder.decode_to_show), photograph.SHAPE),
            Preprocessor(size_decoder(decoder.upright_size), photograph.SIZE_SHAPE),
        )
        busy = self._metrics.decoder_busy_seconds.inc
        if self._zygote is None:
            return ThreadDecoder(*(each.decode for each in work), threads=settings.decode_workers, on_busy=busy)
        job = Job(
            work,
            max_image_bytes=settings.max_image_bytes,
            memory_bytes=needed_bytes(settings.max_image_pixels, settings.max_image_bytes),
            timeout_s=settings.decode_timeout_s,
            probe=_probe(settings.image_formats),
            threads=needs_threads(settings.image_formats),
        )
        pool = ProcessDecoder(
            self._zygote,
            job,
            processes=settings.decode_workers,
            on_restart=self._count,
            on_busy=busy,
        )
        pool.warm_up()
        return pool

    def give_up(self) -> None:
        """End the zygote."""
        if self._zygote is not None:
            self._zygote.close()

    def _count(self, reason: Reason) -> None:
        self._metrics.decoder_restarts.labels(reason).inc()


@contextmanager
def begin_decoding(settings: Settings, metrics: Metrics) -> Iterator[StartingDecoder]:
    """Start a decoder; an exception in the block ends it."""
    starting = StartingDecoder(settings, metrics)
    try:
        yield starting
    except BaseException:
        starting.give_up()
        raise


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


def _wants_processes(settings: Settings) -> bool:
    if settings.decode_isolation == "process" and not hasattr(os, "memfd_create"):
        _log.warning("decoding in threads: this system cannot share memory without a name")
        return False
    return settings.decode_isolation == "process"
