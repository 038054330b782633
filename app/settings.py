"""Settings: read once from VIT_* variables, checked, and handed inward as plain values."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app import setting_values as values
from app.errors import StartError
from app.process.cpu import available_cpus

BUNDLED_MODEL = Path(__file__).resolve().parent.parent / "weights" / "vit-small-everyday64"

_PREFIX = "VIT_"
_MAX_IMAGE_BYTES = 10 * 2**20
_MAX_REQUEST_BYTES = 64 * 2**20
_MAX_QUEUE_BYTES = 256 * 2**20
_MAX_WORKERS = 256

_RENAMED = {
    "VIT_DECODE_THREADS": "VIT_DECODE_WORKERS",
    "VIT_MAX_QUEUE_BYTES": "VIT_MAX_INFLIGHT_BYTES",
    "VIT_MAX_QUEUE_SIZE": "VIT_MAX_INFLIGHT_IMAGES",
    "VIT_RUN_TIMEOUT_S": "VIT_INFERENCE_TIMEOUT_S",
}
"""Former names and their replacements: a limit that is silently ignored is worse than a failed start."""

ImageFormat = Literal["jpeg", "png", "webp", "gif", "bmp", "avif", "heic", "tiff"]
RateLimitNotation = Annotated[str, AfterValidator(values.rate_limit)]
Port = Annotated[int, BeforeValidator(values.number_of_a_port), Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(gt=0), AfterValidator(values.long_enough)]


_PIXELS_PER_S = 14_000_000
"""The slowest image of 50 million pixels takes 3.4 s to decode: 8 of them, one after another, fit into a deadline of 30 s."""


def _pixels_in_time(request_timeout_s: float, max_image_pixels: int) -> int:
    return max(max_image_pixels, min(8 * max_image_pixels, int(_PIXELS_PER_S * request_timeout_s)))


def _workers() -> int:
    return min(available_cpus(), _MAX_WORKERS)


def _default_cache_dir() -> Path:
    """By the XDG Base Directory Specification. Who has no home directory keeps nothing: a shared one is not safe."""
    home = os.path.expanduser("~")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(home if home != "~" else "/nonexistent", ".cache"), "vit-serve")


class Settings(BaseSettings):
    """Every setting with its unit, default and range; docs/settings.md says what happens at each limit."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore", frozen=True, allow_inf_nan=False)

    model: Annotated[str, BeforeValidator(values.path)] = Field(
        str(BUNDLED_MODEL), description="Directory, hub id (`owner/name@revision`) or file of the checkpoint to serve."
    )
    architecture: str | None = Field(
        None,
        pattern=r"^(timm|torchvision)/\w+(\.\w+)?$",
        description="What a bare state dict is of: `timm/<name>` or `torchvision/<name>`; published: `<name>.<weights>`.",
    )
    activation: Annotated[Literal["auto", "softmax", "sigmoid", "none"], BeforeValidator(values.lower)] = Field(
        "auto", description="What makes probabilities of logits; `auto` does as transformers' pipeline."
    )
    image_size: int | None = Field(None, ge=1, le=4096, description="Side of the model's input, if not the checkpoint's own.")
    device: Annotated[
        str, AfterValidator(values.device), Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), BeforeValidator(values.lower)
    ] = Field("auto", description="`cpu`, `cuda`, `cuda:1`; `auto` takes CUDA where there is one.")
    engine: Annotated[Literal["auto", "torch", "openvino"], BeforeValidator(values.lower)] = Field(
        "auto", description="What runs the model; `auto` is `torch` on CUDA and `openvino` on a CPU."
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16", "int8"], BeforeValidator(values.lower)] = Field(
        "auto",
        description="Number format of the model; `auto` is `bfloat16` on CUDA and `float32` on a CPU; `int8` is for OpenVINO.",
    )
    compile: Annotated[bool | Literal["auto"], BeforeValidator(values.lower)] = Field(
        "auto",
        description="Compile the model for each batch size before ready (`torch.compile`); `auto`: on CUDA, if it is possible.",
    )
    cache_dir: Annotated[Path, BeforeValidator(values.path)] = Field(
        default_factory=_default_cache_dir, description="Directory where converted and compiled models are kept."
    )
    max_batch_size: int | None = Field(
        None, ge=1, le=1024, description="Images in one run. Default: 64 on CUDA, as many as make 256 tokens on a CPU."
    )
    max_queue_delay_ms: float = Field(
        0.0,
        ge=0,
        le=10_000,
        description="How long an incomplete batch waits for more images, while the device is idle.",
    )
    max_inflight_images: int = Field(
        256, ge=1, le=100_000, description="Images accepted and not yet answered; more are refused with 429."
    )
    inference_timeout_s: Seconds = Field(
        60.0, le=3600, description="A run of the model that takes longer hangs: the process fails what waits, and ends."
    )
    request_timeout_s: Seconds = Field(
        30.0, le=3600, description="Deadline of a request from its arrival; later answers are 504."
    )
    max_image_bytes: int = Field(
        _MAX_IMAGE_BYTES, ge=1000, le=2**30, description="Bytes of one encoded image; more are refused with 413."
    )
    max_image_pixels: int = Field(
        50_000_000, ge=256, le=10**9, description="Width times height of one image; more are refused with 413."
    )  # the smallest AVIF is coded as 16 x 16
    max_images_per_request: int = Field(
        32, ge=1, le=1024, description="Images in one `POST /predict/batch`; more are refused with 422."
    )
    max_request_bytes: int = Field(
        default_factory=lambda given: max(_MAX_REQUEST_BYTES, given["max_image_bytes"]),
        ge=1000,
        le=2**34,
        description="Bytes of one `POST /predict/batch`; more are refused with 413.",
    )
    max_request_pixels: int = Field(
        default_factory=lambda given: _pixels_in_time(given["request_timeout_s"], given["max_image_pixels"]),
        ge=1,
        le=2**40,
        description="Pixels of all images of one `POST /predict/batch`; more are refused with 413.",
    )
    max_inflight_bytes: int = Field(
        default_factory=lambda given: max(_MAX_QUEUE_BYTES, given["max_request_bytes"]),
        ge=1000,
        le=2**40,
        description="Bytes that all requests together hold, from their arrival to their answer; more are refused with 429.",
    )
    image_formats: Annotated[
        frozenset[ImageFormat],
        NoDecode,
        BeforeValidator(values.lower),
        BeforeValidator(values.split),
        BeforeValidator(values.not_empty),
    ] = Field(
        frozenset({"jpeg", "png", "webp", "gif", "bmp"}),
        min_length=1,
        description="Formats that are decoded; others are refused with 415.",
    )
    decode_workers: int = Field(
        default_factory=_workers,
        ge=1,
        le=_MAX_WORKERS,
        description="Images decoded at once, in as many processes or threads. Default: the number of CPU cores.",
    )
    decode_isolation: Annotated[Literal["process", "thread"], BeforeValidator(values.lower)] = Field(
        "process",
        description="Where images are decoded: in processes that can be ended, or in threads of the service.",
    )
    decode_timeout_s: Seconds = Field(
        5.0, le=300, description="How long an image may take to decode, where a process does it; longer is 422."
    )
    exact_decode: bool = Field(False, description="Decode JPEGs to the bit as the model's own library does; slower.")
    scaled_decode: bool = Field(
        False,
        description="Decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, and answers differ from the library's.",
    )
    inference_threads: int = Field(
        default_factory=_workers,
        ge=1,
        le=_MAX_WORKERS,
        description="Cores for the model on a CPU. Default: the number of CPU cores.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(values.split), BeforeValidator(values.not_empty)] = (
        Field((), description="Keys that may call `/predict`, `/predict/batch` and `/model`; none: everybody may.")
    )
    api_keys_file: Annotated[Path, BeforeValidator(values.path)] | None = Field(
        None, description="File with more such keys, one a line; read again while the service runs."
    )
    rate_limit_per_key: RateLimitNotation | None = Field(
        None, description="Requests with one key: `100/minute`, `10/second;1000/hour`; more are refused with 429."
    )
    rate_limit_per_address: RateLimitNotation | None = Field(
        None, description="Requests from one address, with any key or none; more are refused with 429."
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode, AfterValidator(values.networks), BeforeValidator(values.split)] = (
        Field((), description="Addresses and networks of proxies whose `X-Forwarded-For` tells the caller's address.")
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, AfterValidator(values.origins), BeforeValidator(values.split)] = Field(
        (), description="Web pages' origins that may call from a browser."
    )
    docs: bool = Field(True, description="Whether `/docs` and `/openapi.json` are there.")
    metrics: bool = Field(True, description="Whether `/metrics` is there.")
    metrics_port: Port | None = Field(
        None, description="Port of its own for `/metrics`; none: the service's; 0 takes a free one."
    )
    host: Annotated[str, AfterValidator(values.host)] = Field(
        "127.0.0.1", description="Address to listen on; `0.0.0.0` in the container."
    )
    port: Port = Field(8000, description="Port to listen on; 0 takes a free one.")
    max_connections: int = Field(
        512,
        ge=1,
        le=1_000_000,
        description="Open connections; idle ones give way to new ones, and else more are refused with 503.",
    )
    header_timeout_s: Seconds = Field(
        10.0,
        le=3600,
        description="How long a connection may take to send a request's header; then it is closed, with 408.",
    )
    keep_alive_s: Seconds = Field(
        75.0,
        le=3600,
        description="How long an answered connection may stay idle; then it is closed. More than the load balancer's own.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(values.lower)] = Field(
        "info", description="Least severe messages that are logged."
    )
    log_format: Annotated[Literal["text", "json"], BeforeValidator(values.lower)] = Field(
        "text", description="`text` for people, `json` for machines; one line a message."
    )
    drain_timeout_s: float = Field(25.0, ge=0, le=3600, description="How long a stop waits for accepted requests.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuse what can never work together. What was not set gives way to what was, where it can."""
        given = self.model_fields_set
        largest = max(self.max_image_bytes, self.max_request_bytes)
        if {"max_image_bytes", "max_request_bytes"} <= given and self.max_image_bytes > self.max_request_bytes:
            raise ValueError("VIT_MAX_REQUEST_BYTES: must hold at least one image, whose limit is VIT_MAX_IMAGE_BYTES")
        if self.max_inflight_bytes < largest:
            raise ValueError(f"VIT_MAX_INFLIGHT_BYTES: must hold at least one request, whose limit is {largest}")
        if self.max_request_pixels < self.max_image_pixels:
            raise ValueError("VIT_MAX_REQUEST_PIXELS: must hold at least one image, whose limit is VIT_MAX_IMAGE_PIXELS")
        if "decode_timeout_s" in given and self.decode_timeout_s > self.request_timeout_s:
            raise ValueError("VIT_DECODE_TIMEOUT_S: must not be longer than VIT_REQUEST_TIMEOUT_S, which ends it before")
        if self.max_queue_delay_ms >= self.request_timeout_s * 1000:
            raise ValueError("VIT_MAX_QUEUE_DELAY_MS: must be shorter than VIT_REQUEST_TIMEOUT_S, or a lone image is never run")
        if self.exact_decode and self.scaled_decode:
            raise ValueError("VIT_SCALED_DECODE: is the opposite of VIT_EXACT_DECODE; leave one of them out")
        if self.metrics_port is not None and not self.metrics:
            raise ValueError("VIT_METRICS_PORT: there are no metrics (VIT_METRICS=false); leave one of them out")
        if self.metrics_port and self.metrics_port == self.port:
            raise ValueError("VIT_METRICS_PORT: is the service's own (VIT_PORT); leave it out, or take another")
        return self


def read_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with `overrides` (from the command line) on top.

    Raises:
        StartError: a value is wrong, or a variable has a former name; the message names the variable, and shows no secret.
    """
    if renamed := [f"{old} is now called {_RENAMED[old]}" for old in sorted(_RENAMED.keys() & {*map(str.upper, os.environ)})]:
        raise StartError(f"{'; '.join(renamed)}; rename it, its meaning is the same")
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise StartError(
            "; ".join(
                _sentence(dict(part))
                for part in error.errors(include_url=False, include_input=False)
                if part["type"] != "default_factory_not_called"  # a default that depends on what is wrong
            )
        ) from None


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that looks like a setting and is none, such as one with a slip in its name."""
    known = {name.upper() for name in Settings.model_fields}
    sentences = []
    for variable, value in environment.items():
        name = variable.upper().removeprefix(_PREFIX)
        if name in ("", variable.upper(), *known) or values.is_of_a_cluster(name, value):
            continue
        nearest = difflib.get_close_matches(name, known, n=1)
        advice = f"did you mean {_PREFIX}{nearest[0]}?" if nearest else "docs/settings.md lists all there are"
        sentences.append(f"{variable} is no setting, and ignored; {advice}")
    return sorted(sentences)


def _sentence(error: dict[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    return f"{_PREFIX}{str(error['loc'][0]).upper()}: {message[:1].lower()}{message[1:]}"
