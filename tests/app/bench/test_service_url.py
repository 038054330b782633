"""URLs that are refused, and hosts that are not this machine."""

import socket

import pytest

from app.bench.service_url import ServiceUrl, addresses, check_path, parse_url
from app.errors import StartError


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("http://127.0.0.1:8000", ServiceUrl("http", "127.0.0.1", 8000, "")),
        ("http://127.0.0.1:8000/", ServiceUrl("http", "127.0.0.1", 8000, "")),
        ("https://localhost/vit/", ServiceUrl("https", "localhost", 443, "/vit")),
        ("HTTP://LOCALHOST/a/b", ServiceUrl("http", "localhost", 80, "/a/b")),
        ("http://[::1]:80", ServiceUrl("http", "::1", 80, "")),
    ],
)
def test_urls_are_parsed(text: str, parsed: ServiceUrl) -> None:
    assert parse_url(text) == parsed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1:8000", "must begin with http:// or https://"),
        ("ftp://127.0.0.1", "ftp:// is not a scheme"),
        ("http://", "no host"),
        ("http://127.0.0.1:0", "0 as its port"),
        ("http://127.0.0.1:99999", "is not a URL: Port out of range"),
        ("http://127.0.0.1:x", "is not a URL"),
        ("http://[::1", "is not a URL"),
        ("http://me:secret@127.0.0.1", "VIT_SERVE_API_KEY has the key"),
        ("http://@127.0.0.1", "no user name"),
        ("http://127.0.0.1/?top_k=3", "no query"),
        ("http://127.0.0.1/#", "no query or fragment"),
        ("http://127.0.0.1/a b", "printable ASCII"),
        ("http://127.0.0.1\r\nX: y", "printable ASCII"),
        ("http://exämple.org", "printable ASCII"),
        ("", "printable ASCII"),
    ],
)
def test_other_urls_are_refused(text: str, reason: str) -> None:
    with pytest.raises(StartError, match=reason) as caught:
        parse_url(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "predict", "/a b", "/a\r\nX: y", "/a#b", "/ä", f"/{'a' * 3000}"])
def test_paths_are_checked(path: str) -> None:
    assert check_path("/predict?top_k=3&vectors=false") == "/predict?top_k=3&vectors=false"
    with pytest.raises(StartError, match="is not a path"):
        check_path(path)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_allowed(host: str) -> None:
    assert addresses(ServiceUrl("http", host, 80, ""), foreign=False)


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "2001:db8::1", "10.0.0.1"])
def test_other_hosts_need_the_word(host: str) -> None:
    url = ServiceUrl("http", host, 80, "")
    with pytest.raises(StartError, match="--yes-this-host-is-mine"):
        addresses(url, foreign=False)
    assert addresses(url, foreign=True) == [host]


def test_name_of_both_is_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 80)) for host in ("127.0.0.1", "192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    url = ServiceUrl("http", "rebound.test", 80, "")
    with pytest.raises(StartError, match=r"rebound.test \(192.0.2.1\)"):
        addresses(url, foreign=False)
    assert addresses(url, foreign=True) == ["127.0.0.1", "192.0.2.1"]


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 70])
def test_unknown_hosts_are_refused(host: str) -> None:
    with pytest.raises(StartError, match="is not known"):
        addresses(ServiceUrl("http", host, 80, ""), foreign=True)
