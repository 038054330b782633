"""Fixtures: the page in a real browser, beside a service with the bundled model."""

import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.server import Server, running_server

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)

OpenPage = Callable[..., Page]

PATIENCE_S = 180
"""Seconds for an answer: explanations take only CPU time that nothing else wants, and a busy machine has little of it."""

expect.set_options(timeout=1000 * PATIENCE_S)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # of the module alone: the event loop of playwright is in the way of asynchronous tests elsewhere
    if CHROMIUM is None:
        pytest.skip("no Chromium here; Debian's package chromium has one")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def service(browser: Browser) -> Iterator[Server]:
    with running_server(request_timeout_s=PATIENCE_S) as server:
        yield server


@pytest.fixture
def open_page(browser: Browser, service: Server) -> Iterator[OpenPage]:
    """Open the page in a new browser context; at the end, no other host was asked and no policy violated."""
    contexts, complaints = [], []

    def open_page(url: str = "", **options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        context.set_default_timeout(1000 * PATIENCE_S)
        contexts.append(context)
        address = url or f"{service.url}/"
        context.on("request", lambda request: complaints.append(request.url) if not _is_own(request.url, address) else None)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if "Security Policy" in message.text else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def _is_own(url: str, address: str) -> bool:
    return url.startswith(("blob:", "data:", "/".join(address.split("/")[:3]) + "/"))
