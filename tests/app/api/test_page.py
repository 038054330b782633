"""The page's files: what a browser is sent at `/`, what other clients are, and nothing else."""

import re
from pathlib import Path

import httpx
import pytest

from app.api import page
from tests.app.conftest import OpenClient

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}


async def test_browser_gets_the_page(client: httpx.AsyncClient) -> None:
    answer = await client.get("/", headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<title>vit-serve</title>" in answer.text
    assert answer.headers["vary"] == "Accept"
    head = await client.head("/", headers=BROWSER)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(answer.content)))


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html;q=0, */*", "", "text/plain"])
async def test_other_clients_keep_their_answer(client: httpx.AsyncClient, accept: str) -> None:
    answer = await client.get("/", headers={"Accept": accept})
    assert answer.json()["status"] == "alive"
    assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_other_methods_are_not_the_pages(client: httpx.AsyncClient, method: str) -> None:
    answer = await client.request(method, "/", headers=BROWSER)
    assert "text/html" not in answer.headers["content-type"]


async def test_policy_allows_this_host_alone(client: httpx.AsyncClient) -> None:
    for path in ("/", "/page/main.js"):
        policy = (await client.get(path, headers=BROWSER)).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy


async def test_files_name_each_other_and_no_other_host(client: httpx.AsyncClient) -> None:
    asked, seen = ["page/index.html"], set()
    while asked:
        address = asked.pop()
        if address in seen:
            continue
        seen.add(address)
        answer = await client.get(f"/{address}")
        assert answer.status_code == 200, address
        found = re.findall(r"""(?:src|href)=["'](page/[^"']+)|from ["']\./([^"']+)""", answer.text)
        asked += [first or f"page/{second}" for first, second in found]
        addresses = set(re.findall(r"https?://[^\s\"'`]+", answer.text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses
    assert {f"page/{file.name}" for file in (Path(page.__file__).parent.parent / "page").iterdir()} == seen


@pytest.mark.parametrize("name", ["__init__.py", "..%2Fmain.py", "%2Fetc%2Fpasswd", "main.js%00", "missing.js"])
async def test_no_other_file_is_sent(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/page/{name}")).status_code == 404


async def test_page_needs_no_key(open_client: OpenClient) -> None:
    async with open_client(api_keys="secret") as client:
        assert (await client.get("/", headers=BROWSER)).status_code == 200
        assert (await client.get("/page/main.js")).status_code == 200
        assert (await client.get("/model")).status_code == 401


async def test_page_can_be_switched_off(open_client: OpenClient) -> None:
    async with open_client(page=False) as client:
        assert (await client.get("/", headers=BROWSER)).json()["status"] == "alive"
        assert (await client.get("/page/main.js")).status_code == 404


async def test_page_without_other_protocols(open_client: OpenClient) -> None:
    async with open_client(protocols="predict") as client:
        assert (await client.get("/", headers=BROWSER)).status_code == 200
        assert (await client.get("/")).status_code == 404
