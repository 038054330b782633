from pathlib import Path

import pytest

from app.decoding.pool.select import _probe, image_decoder
from app.errors import StartError
from app.settings import BUNDLED_MODEL, read_settings
from model.preprocessing import Preprocessing


def test_defaults_are_safe() -> None:
    settings = read_settings()
    assert (settings.model, settings.host, settings.port) == (str(BUNDLED_MODEL), "127.0.0.1", 8000)
    assert (settings.max_queue_delay_ms, settings.library) == (0, "auto")
    assert (len(settings.protocols), settings.model_aliases, settings.vertex_predict_route) == (9, (), None)
    assert settings.image_formats == {"jpeg", "png", "webp", "gif", "bmp"}


def test_variables_and_lists_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_MAX_BATCH_SIZE", "7")
    monkeypatch.setenv("VIT_IMAGE_FORMATS", "jpeg, png")
    monkeypatch.setenv("VIT_API_KEYS", "one,two")
    settings = read_settings(port=1234, host=None)
    assert (settings.max_batch_size, settings.port) == (7, 1234)
    assert settings.image_formats == {"jpeg", "png"}
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]


@pytest.mark.parametrize(
    ("xdg", "home", "directory"),
    [("/of/mine", "/home/me", "/of/mine/vit-serve"), ("", "/home/me", "/home/me/.cache/vit-serve")],
)
def test_cache_dir_follows_xdg(monkeypatch: pytest.MonkeyPatch, xdg: str, home: str, directory: str) -> None:
    monkeypatch.delenv("VIT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", home)
    assert read_settings().cache_dir == Path(directory)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("VIT_PORT", "99999", "VIT_PORT: input should be less than or equal to 65535"),
        ("VIT_MAX_BATCH_SIZE", "many", "VIT_MAX_BATCH_SIZE: input should be a valid integer"),
        ("VIT_MAX_EXPLAINED_IMAGES", "0", "VIT_MAX_EXPLAINED_IMAGES: input should be greater than or equal to 1"),
        ("VIT_EXPLAIN", "perhaps", "VIT_EXPLAIN: input should be a valid boolean"),
        ("VIT_REQUEST_TIMEOUT_S", "0", "VIT_REQUEST_TIMEOUT_S: input should be greater than 0"),
        ("VIT_ENGINE", "onnx", "VIT_ENGINE: input should be 'auto', 'torch' or 'openvino'"),
        ("VIT_COMPILE", "maybe", "VIT_COMPILE: input should be a valid boolean"),
        ("VIT_DEVICE", "tpu", "VIT_DEVICE: string should match pattern"),
        ("VIT_API_KEYS", "one,,two", "VIT_API_KEYS: an item of the list is empty"),
        ("VIT_API_KEYS", ",", "VIT_API_KEYS: an item of the list is empty"),
        ("VIT_IMAGE_FORMATS", "jxl", "VIT_IMAGE_FORMATS: input should be 'jpeg', 'png', 'webp', 'gif', 'bmp'"),
        ("VIT_RATE_LIMIT_PER_KEY", "often", "VIT_RATE_LIMIT_PER_KEY: 'often' is not a rate limit: write it as"),
        ("VIT_RATE_LIMIT_PER_KEY", "5/fortnight", "VIT_RATE_LIMIT_PER_KEY: '5/fortnight' is not a rate limit"),
        ("VIT_RATE_LIMIT_PER_ADDRESS", "0/minute", "VIT_RATE_LIMIT_PER_ADDRESS: a limit of 0 refuses every request"),
        ("VIT_TRUSTED_PROXIES", "*", "VIT_TRUSTED_PROXIES: '*' does not appear to be an IPv4 or IPv6 network"),
        ("VIT_TRUSTED_PROXIES", "10.0.0.1/8", "VIT_TRUSTED_PROXIES: 10.0.0.1/8 has host bits set"),
        ("VIT_PROTOCOLS", "grpc", "VIT_PROTOCOLS: input should be 'predict', 'v2', 'huggingface', 'v1'"),
        ("VIT_MODEL_ALIASES", "a/b", "VIT_MODEL_ALIASES: 'a/b' cannot be a model's name"),
        ("VIT_MODEL_ALIASES", "cats-pixels", "VIT_MODEL_ALIASES: 'cats-pixels' cannot be a model's name"),
        ("VIT_VERTEX_PREDICT_ROUTE", "predict", "VIT_VERTEX_PREDICT_ROUTE: it must be a path that begins with '/'"),
        ("VIT_LIBRARY", "keras", "VIT_LIBRARY: input should be 'auto', 'none', 'transformers' or 'timm'"),
        ("VIT_ARCHITECTURE", "vit_b_16", "VIT_ARCHITECTURE: string should match pattern"),
    ],
)
def test_wrong_value_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartError) as caught:
        read_settings()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_inflight_bytes_hold_one_request() -> None:
    with pytest.raises(StartError, match="VIT_MAX_INFLIGHT_BYTES: must hold at least one request, whose limit is 67108864"):
        read_settings(max_inflight_bytes=2**20)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("VIT_DECODE_THREADS", "VIT_DECODE_WORKERS"),
        ("VIT_MAX_QUEUE_SIZE", "VIT_MAX_INFLIGHT_IMAGES"),
        ("VIT_MAX_QUEUE_BYTES", "VIT_MAX_INFLIGHT_BYTES"),
        ("vit_run_timeout_s", "VIT_INFERENCE_TIMEOUT_S"),
    ],
)
def test_former_name_is_refused(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    monkeypatch.setenv(old, "8")
    with pytest.raises(StartError, match=f"^{old.upper()} is now called {new}; rename it, its meaning is the same$"):
        read_settings()


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIT_API_KEYS", "hunter2")
    assert "hunter2" not in repr(read_settings())
    monkeypatch.setenv("VIT_PORT", "x")
    with pytest.raises(StartError) as caught:
        read_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("timeout_s", "pixels"), [(30, 400_000_000), (60, 400_000_000), (10, 140_000_000), (1, 50_000_000)])
def test_request_pixels_follow_the_deadline(timeout_s: int, pixels: int) -> None:
    settings = read_settings(request_timeout_s=timeout_s, decode_timeout_s=1, max_queue_delay_ms=0)
    assert settings.max_request_pixels == pixels


def test_exact_and_scaled_decode_conflict() -> None:
    with pytest.raises(StartError, match="VIT_SCALED_DECODE: contradicts VIT_EXACT_DECODE"):
        read_settings(exact_decode=True, scaled_decode=True)


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "gif", "bmp", "avif", "tiff"])
def test_probe_image_fits_the_smallest_limits(image_format: str) -> None:
    settings = read_settings(max_image_pixels=256, max_image_bytes=1000, image_formats=image_format)
    how = Preprocessing((8, 8), None, "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert image_decoder(settings, how).decode(_probe(settings.image_formats)).shape == (3, 8, 8)
