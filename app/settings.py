"""Settings: read once from VIT_* variables, checked, and handed inward as plain values."""

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from limits import parse_many
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.cpus import available_cpus
from app.errors import StartError

BUNDLED_MODEL = Path(__file__).resolve().parent.parent / "weights" / "vit-small-everyday64"

ImageFormat = Literal["jpeg", "png", "webp", "gif", "bmp"]


def _split(value: Any) -> Any:
    """Lists are written with commas: `a,b,c`; nothing at all is an empty one, but commas alone are a slip."""
    if not isinstance(value, str) or not value.strip():
        return [] if isinstance(value, str) else value
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise ValueError("there is nothing between two commas, or beside one")
    return parts


def _holds_a_request(value: int, info: ValidationInfo) -> int:
    largest = max(info.data.get("max_image_bytes", 0), info.data.get("max_request_bytes", 0))
    if value < largest:
        raise ValueError(f"must hold at least one request, whose limit is {largest}")
    return value


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        ip_network(value)  # raises a ValueError that says what is wrong
    return values


def _rate_limit(notation: str) -> str:
    if not all(limit.amount for limit in parse_many(notation)):
        raise ValueError("a limit of 0 lets nobody in")
    return notation


RateLimitNotation = Annotated[str, AfterValidator(_rate_limit)]


def _default_cache_dir() -> Path:
    """By the XDG Base Directory Specification. Who has no home directory keeps nothing: a shared one is not safe."""
    home = os.path.expanduser("~")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(home if home != "~" else "/nonexistent", ".cache"), "vit-serve")


class Settings(BaseSettings):
    """Every setting with its unit, default and range; docs/settings.md says what happens at each limit."""

    model_config = SettingsConfigDict(env_prefix="VIT_", extra="ignore", frozen=True)

    model: Annotated[str, BeforeValidator(str)] = Field(
        str(BUNDLED_MODEL), description="Directory, hub id (`owner/name@revision`) or file of the checkpoint to serve."
    )
    architecture: str | None = Field(
        None,
        pattern=r"^(timm|torchvision)/\w+$",
        description="What a bare state dict is of: `timm/<name>` or `torchvision/<name>`.",
    )
    image_size: int | None = Field(None, ge=1, le=4096, description="Side of the model's input, if not the checkpoint's own.")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        "auto", description="`cpu`, `cuda`, `cuda:1`; `auto` takes CUDA where there is one."
    )
    engine: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="What runs the model; `auto` is `torch` on CUDA and `openvino` on a CPU."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="Number format of the model; `auto` is `bfloat16` on CUDA and `float32` on a CPU; `int8` is for OpenVINO.",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="Compile the model for each batch size before ready (`torch.compile`); `auto`: on CUDA, if it is possible.",
    )
    cache_dir: Path = Field(
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
    max_queue_size: int = Field(
        256, ge=1, le=100_000, description="Images accepted and not yet answered; more are refused with 429."
    )
    run_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="A run of the model that takes longer hangs: the process fails what waits, and ends."
    )
    request_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Deadline of a request from its arrival; later answers are 504."
    )
    max_image_bytes: int = Field(10 * 2**20, ge=1, description="Bytes of one encoded image; more are refused with 413.")
    max_image_pixels: int = Field(50_000_000, ge=1, description="Width times height of one image; more are refused with 413.")
    max_images_per_request: int = Field(
        32, ge=1, le=1024, description="Images in one `POST /predict/batch`; more are refused with 422."
    )
    max_request_bytes: int = Field(
        64 * 2**20, ge=1, description="Bytes of one `POST /predict/batch`; more are refused with 413."
    )
    max_queue_bytes: Annotated[int, AfterValidator(_holds_a_request)] = Field(
        256 * 2**20,
        ge=1,
        description="Bytes that all requests together hold, from their arrival to their answer; more are refused with 429.",
    )
    image_formats: Annotated[frozenset[ImageFormat], NoDecode, BeforeValidator(_split)] = Field(
        frozenset({"jpeg", "png", "webp", "gif", "bmp"}),
        min_length=1,
        description="Formats that are decoded; others are refused with 415.",
    )
    decode_threads: int = Field(
        default_factory=available_cpus,
        ge=1,
        le=256,
        description="Images decoded at once, in as many processes or threads. Default: the number of CPU cores.",
    )
    decode_isolation: Literal["process", "thread"] = Field(
        "process",
        description="Where images are decoded: in processes that can be ended, or in threads of the service.",
    )
    decode_timeout_s: float = Field(
        5.0, gt=0, le=300, description="How long an image may take to decode, where a process does it; longer is 422."
    )
    exact_decode: bool = Field(
        False, description="Decode JPEGs to the bit as the model's own library does; slower, most of all for large pictures."
    )
    inference_threads: int = Field(
        default_factory=available_cpus,
        ge=1,
        le=256,
        description="Cores for the model on a CPU. Default: the number of CPU cores.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="Keys that may call `/predict`, `/predict/batch` and `/model`; none: everybody may."
    )
    api_keys_file: Path | None = Field(
        None, description="File with more such keys, one a line; read again while the service runs."
    )
    rate_limit_per_key: RateLimitNotation | None = Field(
        None, description="Requests with one key: `100/minute`, `10/second;1000/hour`; more are refused with 429."
    )
    rate_limit_per_address: RateLimitNotation | None = Field(
        None, description="Requests from one address, with any key or none; more are refused with 429."
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode, AfterValidator(_networks), BeforeValidator(_split)] = Field(
        (), description="Addresses and networks of proxies whose `X-Forwarded-For` tells the caller's address."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="Web pages' origins that may call from a browser."
    )
    docs: bool = Field(True, description="Whether `/docs` and `/openapi.json` are there.")
    metrics: bool = Field(True, description="Whether `/metrics` is there.")
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="Port of its own for `/metrics`; none: the service's; 0 takes a free one."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` in the container.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    max_connections: int = Field(
        512,
        ge=1,
        le=1_000_000,
        description="Open connections; idle ones give way to new ones, and else more are refused with 503.",
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="How long a connection may take to send a request's header; then it is closed, with 408.",
    )
    keep_alive_s: float = Field(
        75.0,
        gt=0,
        le=3600,
        description="How long an answered connection may stay idle; then it is closed. More than the load balancer's own.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe messages that are logged."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="`text` for people, `json` for machines; one line a message."
    )
    drain_timeout_s: float = Field(25.0, ge=0, le=3600, description="How long a stop waits for accepted requests.")


def read_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with `overrides` (from the command line) on top.

    Raises:
        StartError: a value is wrong; the message names the variable, the value's fault, and nothing secret.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise StartError(
            "; ".join(_sentence(dict(part)) for part in error.errors(include_url=False, include_input=False))
        ) from None


def _sentence(error: dict[str, Any]) -> str:
    name, message = str(error["loc"][0]), str(error["msg"]).removeprefix("Value error, ")
    return f"VIT_{name.upper()}: {message[:1].lower()}{message[1:]}"
