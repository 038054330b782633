"""Settings: read once from VIT_* variables, and validated."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app import setting_values as values
from app.errors import StartError
from app.process.cpu import available_cpus

BUNDLED_MODEL = Path(__file__).resolve().parent.parent / "weights" / "vit-small-everyday64"

_PREFIX = "VIT_"
_MAX_IMAGE_BYTES = 10 * 2**20
_MAX_REQUEST_BYTES = 64 * 2**20
_MAX_INFLIGHT_BYTES = 256 * 2**20
_MAX_WORKERS = 256

_OF_CLIENTS = frozenset({"SERVE_URL", "SERVE_API_KEY"})
"""Variables of the client package, which begin as ours do."""

_RENAMED = {
    "VIT_DECODE_THREADS": "VIT_DECODE_WORKERS",
    "VIT_MAX_QUEUE_BYTES": "VIT_MAX_INFLIGHT_BYTES",
    "VIT_MAX_QUEUE_SIZE": "VIT_MAX_INFLIGHT_IMAGES",
    "VIT_RUN_TIMEOUT_S": "VIT_INFERENCE_TIMEOUT_S",
}
"""Former names and their replacements: a limit that is silently ignored is worse than a failed start."""

Protocol = Literal["predict", "v2", "huggingface", "v1", "torchserve", "sagemaker", "mlflow", "vertex", "openai"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
ModelSetting = Literal[
    "model",
    "architecture",
    "library",
    "activation",
    "image_size",
    "device",
    "engine",
    "dtype",
    "compile",
    "max_batch_size",
    "max_queue_delay_ms",
    "lone_on_all_cores",
    "embed",
    "explain",
]
"""Settings that each model of `VIT_MODELS_FILE` may have of its own."""

ImageFormat = Literal["jpeg", "png", "webp", "gif", "bmp", "avif", "heic", "tiff"]
RateLimitNotation = Annotated[str, AfterValidator(values.check_rate_limit)]
Port = Annotated[int, BeforeValidator(values.check_port), Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(gt=0), AfterValidator(values.check_seconds)]


_PIXELS_PER_S = 14_000_000
"""Pixels decoded in a second at worst: 8 images of 50 million pixels, 3.4 s each, fit into a deadline of 30 s."""


def _pixels_in_time(request_timeout_s: float, max_image_pixels: int) -> int:
    return max(max_image_pixels, min(8 * max_image_pixels, int(_PIXELS_PER_S * request_timeout_s)))


def _platform_port() -> str:
    """Return the port that Vertex AI or SageMaker asks for, else ours."""
    if os.environ.get("AIP_MODE") == "PREDICTION" and (port := os.environ.get("AIP_HTTP_PORT")):
        return port
    return os.environ.get("SAGEMAKER_BIND_TO_PORT") or "8000"


def _workers() -> int:
    return min(available_cpus(), _MAX_WORKERS)


def _default_cache_dir() -> Path:
    """Return the directory of the XDG specification; without a home directory one that cannot exist, since /tmp is unsafe."""
    home = os.path.expanduser("~")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(home if home != "~" else "/nonexistent", ".cache"), "vit-serve")


class Settings(BaseSettings):
    """All settings with defaults and ranges; docs/settings.md says what happens at each limit."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore", frozen=True, allow_inf_nan=False)

    model: Annotated[str, BeforeValidator(values.expand_path)] = Field(
        str(BUNDLED_MODEL), description="Directory, hub id (`owner/name@revision`) or file of the checkpoint to serve."
    )
    models: Annotated[
        tuple[tuple[str, str], ...],
        NoDecode,
        AfterValidator(values.check_models),
        BeforeValidator(values.split_pairs),
        BeforeValidator(values.split_list),
    ] = Field((), description="Several models instead: `name=model,name=model`. The first one is the default.")
    models_file: Annotated[Path, BeforeValidator(values.expand_path)] | None = Field(
        None, description="TOML file of several models with their settings; re-read as it changes, and on SIGHUP."
    )
    max_model_bytes: int | None = Field(
        None, ge=1, le=2**50, description="Maximum bytes of memory that all loaded models take. Default: no limit."
    )
    unload_unused: bool = Field(
        False, description="Unload the model that was used least recently where `VIT_MAX_MODEL_BYTES` is reached."
    )
    load_on_request: bool = Field(False, description="Load a model that is not loaded when a request names it.")
    admin_key: Annotated[SecretStr | None, AfterValidator(values.check_key)] = Field(
        None, min_length=16, description="Key that may load and unload models, of 16 characters at least. Default: nobody may."
    )
    architecture: str | None = Field(
        None,
        pattern=r"^(timm|torchvision)/\w+(\.\w+)?$",
        description="Architecture of a bare state dict: `timm/<name>` or `torchvision/<name>`; published: `<name>.<weights>`.",
    )
    library: Annotated[Literal["auto", "none", "transformers", "timm"], BeforeValidator(values.lower_case)] = Field(
        "auto", description="Library that may run models of other architectures; `auto` is whichever is installed."
    )
    activation: Annotated[Literal["auto", "softmax", "sigmoid", "none"], BeforeValidator(values.lower_case)] = Field(
        "auto", description="Function from logits to probabilities; `auto` decides as transformers' pipeline."
    )
    image_size: int | None = Field(
        None, ge=1, le=4096, description="Side of the model's input in pixels. Default: the checkpoint's."
    )
    device: Annotated[
        str, AfterValidator(values.check_device), Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), BeforeValidator(values.lower_case)
    ] = Field("auto", description="Device: `cpu`, `cuda`, `cuda:1`; `auto` is CUDA if available.")
    engine: Annotated[Literal["auto", "torch", "openvino"], BeforeValidator(values.lower_case)] = Field(
        "auto", description="Engine that runs the model; `auto` is `torch` on CUDA and `openvino` on a CPU."
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16", "int8"], BeforeValidator(values.lower_case)] = Field(
        "auto",
        description="Number format of the model; `auto` is `bfloat16` on CUDA and `float32` on a CPU; `int8` is for OpenVINO.",
    )
    compile: Annotated[bool | Literal["auto"], BeforeValidator(values.lower_case)] = Field(
        "auto",
        description="Compile the model for each batch size before ready (`torch.compile`); `auto`: on CUDA, if possible.",
    )
    cache_dir: Annotated[Path, BeforeValidator(values.expand_path)] = Field(
        default_factory=_default_cache_dir, description="Directory that caches converted and compiled models."
    )
    max_batch_size: int | None = Field(
        None, ge=1, le=1024, description="Maximum images in a batch. Default: 128 on CUDA, 256 tokens' worth on a CPU."
    )
    max_queue_delay_ms: float = Field(
        0.0,
        ge=0,
        le=10_000,
        description="Milliseconds that an incomplete batch waits for more images while the device is idle.",
    )
    max_inflight_images: int = Field(
        256, ge=1, le=100_000, description="Maximum images in flight: accepted and not yet answered; more are refused with 429."
    )
    inference_timeout_s: Seconds = Field(
        60.0, le=3600, description="Seconds for the inference of a batch; after that the device hangs, and the process ends."
    )
    request_timeout_s: Seconds = Field(
        30.0, le=3600, description="Seconds from a request's arrival to its deadline; then it is answered 504."
    )
    max_image_bytes: int = Field(
        _MAX_IMAGE_BYTES, ge=1000, le=2**30, description="Maximum bytes of an encoded image; more are refused with 413."
    )
    max_image_pixels: int = Field(
        50_000_000, ge=256, le=10**9, description="Maximum width times height of an image; more are refused with 413."
    )  # the smallest AVIF is coded as 16 x 16
    max_images_per_request: int = Field(
        32, ge=1, le=1024, description="Maximum images in one request; more are refused with 422."
    )
    max_request_bytes: int = Field(
        default_factory=lambda given: max(_MAX_REQUEST_BYTES, given["max_image_bytes"]),
        ge=1000,
        le=2**34,
        description="Maximum bytes of a request with several images; more are refused with 413.",
    )
    max_request_pixels: int = Field(
        default_factory=lambda given: _pixels_in_time(given["request_timeout_s"], given["max_image_pixels"]),
        ge=1,
        le=2**40,
        description="Maximum pixels of all images of one request; more are refused with 413.",
    )
    max_inflight_bytes: int = Field(
        default_factory=lambda given: max(_MAX_INFLIGHT_BYTES, given["max_request_bytes"]),
        ge=1000,
        le=2**40,
        description="Maximum bytes in flight: bodies of all requests, until their answer; more are refused with 429.",
    )
    image_formats: Annotated[
        frozenset[ImageFormat],
        NoDecode,
        BeforeValidator(values.lower_case),
        BeforeValidator(values.split_list),
        BeforeValidator(values.require_value),
    ] = Field(
        frozenset({"jpeg", "png", "webp", "gif", "bmp"}),
        min_length=1,
        description="Image formats to decode; others are refused with 415.",
    )
    decode_workers: int = Field(
        default_factory=_workers,
        ge=1,
        le=_MAX_WORKERS,
        description="Decoding processes or threads, each for one image at a time. Default: the number of CPU cores.",
    )
    decode_isolation: Annotated[Literal["process", "thread"], BeforeValidator(values.lower_case)] = Field(
        "process",
        description="Decode in processes that can be killed, or in threads of the service.",
    )
    decode_timeout_s: Seconds = Field(
        5.0, le=300, description="Seconds for a process to decode an image; then it is killed, and the answer is 422."
    )
    exact_decode: bool = Field(False, description="Decode JPEGs bit for bit as the model's own library; slower.")
    scaled_decode: bool = Field(
        False,
        description="Decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, but answers differ from the library's.",
    )
    inference_threads: int = Field(
        default_factory=_workers,
        ge=1,
        le=_MAX_WORKERS,
        description="Cores for inference on a CPU. Default: the number of CPU cores.",
    )
    lone_on_all_cores: Annotated[bool | Literal["auto"], BeforeValidator(values.lower_case)] = Field(
        "auto",
        description="Let an image that is alone in flight take all cores, by a second copy of the weights in OpenVINO; `auto`: "
        "for the default model.",
    )
    embed: bool = Field(True, description="Compute features of images beside logits, for `POST /embed`.")
    page: bool = Field(True, description="Show browsers a page at `/`, to try the model on images.")
    explain: bool = Field(True, description="Explain what the model saw, by `POST /explain`.")
    max_explained_images: int = Field(
        8, ge=1, le=1000, description="Maximum images that are explained or wait for it; more are refused with 429."
    )
    protocols: Annotated[
        frozenset[Protocol],
        NoDecode,
        BeforeValidator(values.lower_case),
        BeforeValidator(values.split_list),
        BeforeValidator(values.require_value),
    ] = Field(
        frozenset(PROTOCOLS),
        min_length=1,
        description="Wire protocols that are served, beside `/model` and `/health`. Default: all.",
    )
    model_aliases: Annotated[
        tuple[str, ...], NoDecode, AfterValidator(values.check_names), BeforeValidator(values.split_list)
    ] = Field((), description="Further names of the model, in protocols that name it.")
    vertex_predict_route: Annotated[str | None, AfterValidator(values.check_route)] = Field(
        default_factory=lambda: os.environ.get("AIP_PREDICT_ROUTE") or None,
        description="Path of Vertex AI's predictions. Default: `AIP_PREDICT_ROUTE`.",
    )
    vertex_health_route: Annotated[str | None, AfterValidator(values.check_route)] = Field(
        default_factory=lambda: os.environ.get("AIP_HEALTH_ROUTE") or None,
        description="Path of Vertex AI's health probe. Default: `AIP_HEALTH_ROUTE`.",
    )
    api_keys: Annotated[
        tuple[SecretStr, ...], NoDecode, BeforeValidator(values.split_list), BeforeValidator(values.require_value)
    ] = Field((), description="API keys for every route but probes, `/docs` and `/metrics`. Default: no key is needed.")
    api_keys_file: Annotated[Path, BeforeValidator(values.expand_path)] | None = Field(
        None, description="File with more API keys, one a line; reloaded while the service runs."
    )
    rate_limit_per_key: RateLimitNotation | None = Field(
        None, description="Maximum requests with one key: `100/minute`, `10/second;1000/hour`; more are refused with 429."
    )
    rate_limit_per_address: RateLimitNotation | None = Field(
        None, description="Maximum requests from one address, with any key or none; more are refused with 429."
    )
    trusted_proxies: Annotated[
        tuple[str, ...], NoDecode, AfterValidator(values.check_networks), BeforeValidator(values.split_list)
    ] = Field((), description="Addresses and networks of proxies whose `X-Forwarded-For` is trusted.")
    cors_origins: Annotated[
        tuple[str, ...], NoDecode, AfterValidator(values.normalize_origins), BeforeValidator(values.split_list)
    ] = Field((), description="Origins of web pages that may send requests from a browser.")
    docs: bool = Field(True, description="Serve `/docs` and `/openapi.json`.")
    metrics: bool = Field(True, description="Serve `/metrics`.")
    metrics_port: Port | None = Field(
        None, description="Separate port for `/metrics`; 0 takes a free one. Default: the service's port."
    )
    host: Annotated[str, AfterValidator(values.parse_host)] = Field(
        "127.0.0.1", description="Address to listen on; `0.0.0.0` in the container."
    )
    port: Port = Field(
        default_factory=_platform_port,
        validate_default=True,
        description="Port to listen on; 0 takes a free one. Default: that of Vertex AI or SageMaker, else 8000.",
    )
    max_connections: int = Field(
        512,
        ge=1,
        le=1_000_000,
        description="Maximum open connections. One more closes the longest idle one, or is refused with 503.",
    )
    header_timeout_s: Seconds = Field(
        10.0,
        le=3600,
        description="Seconds for a connection to send a request's header; then it is closed with 408.",
    )
    keep_alive_s: Seconds = Field(
        75.0,
        le=3600,
        description="Seconds before an idle connection is closed. Must exceed the load balancer's.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(values.lower_case)] = Field(
        "info", description="Minimum severity of log messages."
    )
    log_format: Annotated[Literal["text", "json"], BeforeValidator(values.lower_case)] = Field(
        "text", description="Log format: `text` for people, `json` for machines; one line a message."
    )
    drain_delay_s: float = Field(
        0.0, ge=0, le=3600, description="Seconds that a stop goes on accepting, not ready, until load balancers notice."
    )
    drain_timeout_s: float = Field(25.0, ge=0, le=3600, description="Seconds that a stop waits for accepted requests.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuse values that cannot work together. Defaults adapt to values that were set, where possible."""
        given = self.model_fields_set
        largest = max(self.max_image_bytes, self.max_request_bytes)
        if {"max_image_bytes", "max_request_bytes"} <= given and self.max_image_bytes > self.max_request_bytes:
            raise ValueError("VIT_MAX_REQUEST_BYTES: must hold at least one image, whose limit is VIT_MAX_IMAGE_BYTES")
        if self.max_inflight_bytes < largest:
            raise ValueError(f"VIT_MAX_INFLIGHT_BYTES: must hold at least one request, whose limit is {largest}")
        if self.max_request_pixels < self.max_image_pixels:
            raise ValueError("VIT_MAX_REQUEST_PIXELS: must hold at least one image, whose limit is VIT_MAX_IMAGE_PIXELS")
        if "decode_timeout_s" in given and self.decode_timeout_s > self.request_timeout_s:
            raise ValueError("VIT_DECODE_TIMEOUT_S: must not be longer than VIT_REQUEST_TIMEOUT_S, which ends first")
        if self.max_queue_delay_ms >= self.request_timeout_s * 1000:
            raise ValueError("VIT_MAX_QUEUE_DELAY_MS: must be shorter than VIT_REQUEST_TIMEOUT_S, or a lone image times out")
        if self.exact_decode and self.scaled_decode:
            raise ValueError("VIT_SCALED_DECODE: contradicts VIT_EXACT_DECODE; unset one of them")
        if self.metrics_port is not None and not self.metrics:
            raise ValueError("VIT_METRICS_PORT: metrics are disabled (VIT_METRICS=false); unset one of them")
        if self.metrics_port and self.metrics_port == self.port:
            raise ValueError("VIT_METRICS_PORT: is the port of the service (VIT_PORT); unset it, or choose another")
        return self


def read_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; `overrides` come from the command line and take precedence.

    Raises:
        StartError: a value is invalid, or a variable has a former name. The message names the variable and shows no secret.
    """
    if renamed := [f"{old} is now called {_RENAMED[old]}" for old in sorted(_RENAMED.keys() & {*map(str.upper, os.environ)})]:
        raise StartError(f"{'; '.join(renamed)}; rename it, its meaning is the same")
    return _validated({name: value for name, value in overrides.items() if value is not None})


def with_changes(settings: Settings, **changes: Any) -> Settings:
    """Return settings with some of them changed, and validated together.

    Raises:
        StartError: a value is invalid, or they cannot work together.
    """
    return _validated({**settings.model_dump(include=settings.model_fields_set), **changes})


def _validated(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        raise StartError(
            "; ".join(
                _sentence(dict(part))
                for part in error.errors(include_url=False, include_input=False)
                if part["type"] != "default_factory_not_called"  # a default that depends on the invalid value
            )
        ) from None


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable with our prefix that is not a setting, such as one with a typo."""
    known = {name.upper() for name in Settings.model_fields}
    sentences = []
    for variable, value in environment.items():
        name = variable.upper().removeprefix(_PREFIX)
        if name in ("", variable.upper(), *known, *_OF_CLIENTS) or values.is_set_by_cluster(name, value):
            continue
        nearest = difflib.get_close_matches(name, known, n=1)
        advice = f"did you mean {_PREFIX}{nearest[0]}?" if nearest else "docs/settings.md lists all settings"
        sentences.append(f"{variable} is not a setting and is ignored; {advice}")
    return sorted(sentences)


def _sentence(error: dict[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    return f"{_PREFIX}{str(error['loc'][0]).upper()}: {message[:1].lower()}{message[1:]}"
