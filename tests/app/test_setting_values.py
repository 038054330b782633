"""Values of settings: normalized, or refused in one sentence."""

import re
from pathlib import Path
from typing import Any

import pytest

from app.errors import StartError
from app.settings import Settings, read_settings, unknown_variables

CORS, RATE, PROXIES = "VIT_CORS_ORIGINS", "VIT_RATE_LIMIT_PER_ADDRESS", "VIT_TRUSTED_PROXIES"


def value_of(variable: str) -> Any:
    return getattr(read_settings(), variable.removeprefix("VIT_").lower())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (CORS, "https://shop.example/", ("https://shop.example",)),
        (CORS, "HTTPS://Shop.Example:443", ("https://shop.example",)),
        (CORS, "http://shop.example:080/,http://shop.example:8080", ("http://shop.example", "http://shop.example:8080")),
        (CORS, "https://[0:0::1]:3000", ("https://[::1]:3000",)),
        (CORS, "chrome-extension://abcdef, null, *", ("chrome-extension://abcdef", "null", "*")),
        (RATE, "10/second;1000/hour", "10/second;1000/hour"),
        (RATE, "1000000/year", "1000000/year"),
        (PROXIES, "10.0.0.0/8, ::1", ("10.0.0.0/8", "::1")),
        ("VIT_IMAGE_FORMATS", "JPEG,Png", frozenset({"jpeg", "png"})),
        ("VIT_LOG_LEVEL", "INFO", "info"),
        ("VIT_LOG_FORMAT", " Json ", "json"),
        ("VIT_DEVICE", "CPU", "cpu"),
        ("VIT_ENGINE", "OpenVINO", "openvino"),
        ("VIT_DTYPE", "BFloat16", "bfloat16"),
        ("VIT_COMPILE", "AUTO", "auto"),
        ("VIT_DECODE_ISOLATION", "Process", "process"),
        ("VIT_HOST", "[::1]", "::1"),
        ("VIT_HOST", " my_host.local ", "my_host.local"),
        ("VIT_MODEL", "~/model", "/home/me/model"),
        ("VIT_CACHE_DIR", "~/cache", Path("/home/me/cache")),
        ("VIT_API_KEYS_FILE", "~", Path("/home/me")),
        ("VIT_REQUEST_TIMEOUT_S", "2", 2.0),  # although the default of VIT_DECODE_TIMEOUT_S is longer
        ("VIT_MAX_REQUEST_BYTES", "20000", 20_000),  # although that of VIT_MAX_IMAGE_BYTES is larger
    ],
)
def test_value_is_normalized(monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: object) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv(name, value)
    assert value_of(name) == expected


def test_larger_images_raise_other_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_MAX_IMAGE_BYTES", "500000000")
    assert (value_of("VIT_MAX_REQUEST_BYTES"), value_of("VIT_MAX_INFLIGHT_BYTES")) == (500_000_000, 500_000_000)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (CORS, "https://shop.example/path", "must have only scheme, host and port"),
        (CORS, "https://shop.example?q", "must have only scheme, host and port"),
        (CORS, "https://me@shop.example", "must have only scheme, host and port"),
        (CORS, "https://shop.example//", "must have only scheme, host and port"),
        (CORS, "shop.example", "is not an origin: write it with its scheme"),
        (CORS, "//shop.example", "is not an origin: write it with its scheme"),
        (CORS, "file:///index.html", "is not an origin"),
        (CORS, "https://*.shop.example", "has no valid host name: patterns are not supported"),
        (CORS, "https://käse.example", "are written as xn--"),
        (CORS, "https://", "has no valid host name"),
        (CORS, "https://shop.example:99999", "out of range"),
        (CORS, "https://shop.example:http", "Port"),
        (CORS, "https://[::1", "IPv6"),
        (RATE, "1/9999999 years", "at most 1000000000 requests in at most a year"),
        (RATE, "99999999999999999999/second", "at most 1000000000 requests in at most a year"),
        (RATE, "10 per 0 seconds", "a period of 0 limits nothing"),
        (RATE, "10/0second", "a period of 0 limits nothing"),
        (RATE, ";".join(["1/second"] * 11), "more than 10 rates"),
        (RATE, "", "is not a rate limit"),
        (RATE, f"{'9' * 5000}/second", "is not a rate limit"),
        (PROXIES, "10.0.0.1/8", "has host bits set"),
        (PROXIES, "0.0.0.0/0", "trusts every client"),
        (PROXIES, "::/0", "trusts every client"),
        (PROXIES, "::ffff:10.0.0.1", "write it as an IPv4 address"),
        ("VIT_IMAGE_FORMATS", "", "it is empty"),
        ("VIT_IMAGE_FORMATS", "JPG", "input should be 'jpeg'"),
        ("VIT_DEVICE", "cuda:128", "no such device"),
        ("VIT_DEVICE", f"cuda:{'9' * 30}", "no such device"),
        ("VIT_HOST", "", "it is empty"),
        ("VIT_HOST", "127.0.0.1:8000", "neither an IP address nor a host name; the port goes into VIT_PORT"),
        ("VIT_HOST", "http://localhost", "neither an IP address nor a host name"),
        ("VIT_HOST", "*", "neither an IP address nor a host name"),
        ("VIT_HOST", "x" * 300, "neither an IP address nor a host name"),
        ("VIT_PORT", "tcp://10.0.0.1:80", "enableServiceLinks: false"),
        ("VIT_METRICS_PORT", "8000", "is the port of the service"),
        ("VIT_MODEL", "", "it is empty"),
        ("VIT_MODEL", "~nobody-has-this-name/model", "home directory of an unknown user"),
        ("VIT_CACHE_DIR", " ", "it is empty"),
        ("VIT_API_KEYS", "", "it is empty"),
        ("VIT_API_KEYS_FILE", "", "it is empty"),
        ("VIT_DECODE_TIMEOUT_S", "31", "must not be longer than VIT_REQUEST_TIMEOUT_S"),
        ("VIT_MAX_IMAGE_BYTES", "3", "greater than or equal to 1000"),
        ("VIT_INFERENCE_TIMEOUT_S", "1e-9", "it must be at least 0.01 s"),
    ],
)
def test_invalid_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match=rf"^{name}: .*{message}") as caught:
        read_settings()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"max_image_bytes": "2000", "max_request_bytes": "1000"}, "VIT_MAX_REQUEST_BYTES: must hold at least one image"),
        ({"request_timeout_s": "2", "decode_timeout_s": "3"}, "VIT_DECODE_TIMEOUT_S: must not be longer"),
        ({"request_timeout_s": "5", "max_queue_delay_ms": "5000"}, "VIT_MAX_QUEUE_DELAY_MS: must be shorter"),
        ({"metrics": "false", "metrics_port": "9100"}, "VIT_METRICS_PORT: metrics are disabled"),
        ({"port": "9100", "metrics_port": "9100"}, "VIT_METRICS_PORT: is the port of the service"),
    ],
)
def test_contradicting_values_are_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"VIT_{name.upper()}", value)
    with pytest.raises(StartError, match=f"^{message}"):
        read_settings()


NUMBERS = [name for name, field in Settings.model_fields.items() if re.search(r"\b(int|float)\b", repr(field.annotation))]


@pytest.mark.parametrize("value", [f"1{'0' * 30}", "9" * 5000, "-1", "nan", "inf", "1e400", "-inf", "", "many"])
def test_every_number_has_bounds(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert len(NUMBERS) > 15
    for name in NUMBERS:
        with monkeypatch.context() as only_here:
            only_here.setenv(f"VIT_{name.upper()}", value)
            with pytest.raises(StartError, match=rf"^VIT_{name.upper()}: [^;]*$"):
                read_settings()


def test_both_ports_may_be_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_PORT", "0")
    monkeypatch.setenv("VIT_METRICS_PORT", "0")
    assert value_of("VIT_METRICS_PORT") == 0


def test_unknown_variables_are_warned_of() -> None:
    environment = {
        "VIT_API_KEY": "secret",
        "VIT_MAX_BATCHSIZE": "8",
        "VIT_COLOUR": "red",
        "VIT_": "",
        "VITAL": "1",
        "vit_port": "8000",
        # set by Kubernetes and Docker for services named vit, vit-serve and vit-cache
        "VIT_SERVICE_HOST": "10.0.0.1",
        "VIT_SERVICE_PORT_HTTP": "80",
        "VIT_PORT_80_TCP": "tcp://10.0.0.1:80",
        "VIT_SERVE_SERVICE_HOST": "10.0.0.1",
        "VIT_SERVE_PORT": "tcp://10.0.0.1:80",
        "VIT_CACHE_PORT_6379_TCP_ADDR": "10.0.0.1",
    }
    assert unknown_variables(environment) == [
        "VIT_API_KEY is not a setting and is ignored; did you mean VIT_API_KEYS?",
        "VIT_COLOUR is not a setting and is ignored; docs/settings.md lists all settings",
        "VIT_MAX_BATCHSIZE is not a setting and is ignored; did you mean VIT_MAX_BATCH_SIZE?",
    ]
