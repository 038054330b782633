"""The choice of a model on the page, where several are served."""

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.page.conftest import PATIENCE_S, OpenPage
from tests.page.test_page import FLOWER, assert_accessible, ranked, upload
from tests.support.server import Server, running_server
from tests.support.versions import write_version


@pytest.fixture(scope="module")
def several(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("models")
    models = ",".join(f"{name}={write_version(directory / name, index)}" for name, index in (("a", 1), ("b", 2), ("c", 3)))
    with running_server(models=models, engine="torch", admin_key="an admin's own key", request_timeout_s=PATIENCE_S) as server:
        yield server


def test_one_model_is_no_choice(open_page: OpenPage) -> None:
    page = open_page()
    upload(page, FLOWER)
    ranked(page)
    expect(page.locator("#choice")).to_be_hidden()


def test_chosen_model_answers(open_page: OpenPage, several: Server) -> None:
    page = open_page(f"{several.url}/")
    upload(page, FLOWER)
    assert ranked(page)[0] == "class 1"
    page.locator("#choice select").select_option("b")
    expect(page.locator("#served")).to_contain_text("b, 10 classes")
    upload(page, FLOWER)
    expect(page.locator(".card")).to_have_count(2)
    assert ranked(page)[0] == "class 2"
    expect(page.locator(".card .by")).to_have_text(["by b", "by a"])
    page.locator(".why > summary").first.click()
    expect(page.locator(".picture canvas").first).to_be_visible()
    expect(page.locator(".explained").first).to_contain_text("class 2")
    page.locator(".code > summary").first.click()
    curl, python = page.locator(".card").first.locator(".code code").all_inner_texts()
    assert "/predict?vectors=false&model=b'" in curl
    assert 'params={"model": "b", "vectors": False}' in python
    assert_accessible(page)


def test_model_that_is_not_loaded(open_page: OpenPage, several: Server) -> None:
    url = f"{several.url}/v2/repository/models/c"
    headers = {"X-API-Key": "an admin's own key"}
    httpx.post(f"{url}/unload", headers=headers, timeout=60).raise_for_status()
    page = open_page(f"{several.url}/")
    option = page.locator("#choice option", has_text="c (unloaded)")
    expect(option).to_be_disabled()
    httpx.post(f"{url}/load", headers=headers, timeout=60).raise_for_status()
