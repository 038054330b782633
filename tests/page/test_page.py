"""The page in a real browser: every way to give it images, what it shows, and for whom."""

import base64
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import FilePayload, Page, Route, expect

from model.checkpoints.checkpoint import save_checkpoint
from tests.model.checkpoints.test_encoders import save
from tests.page.conftest import OpenPage
from tests.support.models import TINY_LABELS, TINY_PREPROCESSING, tiny_model
from tests.support.server import Server, running_server

PHOTOGRAPHS = Path(__file__).parents[1] / "photographs"
FLOWER, CHINA, LARGE = (PHOTOGRAPHS / name for name in ("flower.jpg", "china.jpg", "seeding.jpg"))
BAD: FilePayload = {"name": "bad.jpg", "mimeType": "image/jpeg", "buffer": b"no image"}
KEY = "a-key-of-the-tests"

DISPATCH = """([kind, name, encoded]) => {
    const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, {type: 'image/jpeg'}));
    const event = kind === 'paste'
        ? new ClipboardEvent(kind, {clipboardData: data, bubbles: true, cancelable: true})
        : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
    document.body.dispatchEvent(event);
}"""


def dispatch(page: Page, kind: str) -> None:
    page.evaluate(DISPATCH, [kind, "flower.jpg", base64.b64encode(FLOWER.read_bytes()).decode()])


def upload(page: Page, *files: Path | FilePayload) -> None:
    page.set_input_files("#files", [payload(file) if isinstance(file, Path) else file for file in files])


def payload(file: Path) -> FilePayload:
    return {"name": file.name, "mimeType": "image/jpeg", "buffer": file.read_bytes()}


def ranked(page: Page) -> list[str]:
    """Return the labels of the newest card, once it has them."""
    labels = page.locator(".card").first.locator(".answer > .classes .label")
    expect(labels.first).to_be_visible()
    return labels.all_inner_texts()


def ask_why(page: Page) -> None:
    page.click(".why > summary")
    expect(page.locator(".picture canvas")).to_be_visible()


def assert_accessible(page: Page) -> None:
    page.wait_for_timeout(400)  # bars grow, and half a colour has half a contrast
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_upload(open_page: OpenPage, service: Server) -> None:
    page = open_page()
    upload(page, FLOWER)
    answer = httpx.post(f"{service.url}/predict", files={"image": FLOWER.read_bytes()}).json()
    assert ranked(page) == [each["label"] for each in answer["predictions"]]
    shown = page.locator(".card .answer > .classes .value").all_inner_texts()
    assert shown == [f"{100 * each['probability']:.1f} %" for each in answer["predictions"]]
    expect(page.locator("#served")).to_have_text("vit-small-everyday64, 64 classes, on cpu")


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_paste_and_drop(open_page: OpenPage, kind: str) -> None:
    page = open_page()
    dispatch(page, kind)
    assert len(ranked(page)) == 5
    expect(page.locator(".card h2")).to_have_text("pasted-1.jpeg" if kind == "paste" else "flower.jpg")


def test_several_and_a_bad_one(open_page: OpenPage) -> None:
    page = open_page()
    upload(page, FLOWER, BAD, CHINA)
    expect(page.locator(".card")).to_have_count(3)
    expect(page.locator(".card .answer > .classes:has(li)")).to_have_count(2)
    expect(page.locator(".card .answer > .error:visible")).to_have_text(
        "The bytes are no image of a known format; send one of: bmp, gif, jpeg, png, webp."
    )
    expect(page.locator(".card h2")).to_have_text(["china.jpg", "bad.jpg", "flower.jpg"])
    page.get_by_role("button", name="Remove bad.jpg").click()
    expect(page.locator(".card")).to_have_count(2)
    expect(page.get_by_role("button", name="Remove flower.jpg")).to_be_focused()


def test_whole_distribution(open_page: OpenPage) -> None:
    page = open_page()
    upload(page, FLOWER)
    page.click(".all > summary")
    expect(page.locator(".all .classes li")).to_have_count(64)
    page.fill(".find", "BEE")
    assert all("bee" in label for label in page.locator(".all .label").all_inner_texts())


def test_stages_add_up(open_page: OpenPage) -> None:
    page = open_page()
    upload(page, FLOWER)
    page.click(".time > summary")
    shares = page.evaluate(
        "[...document.querySelectorAll('.stages span')].map((bar) => parseFloat(bar.style.getPropertyValue('--share')))"
    )
    assert len(shares) == 5 and sum(shares) == pytest.approx(100, abs=1)
    expect(page.locator(".time dt")).to_have_count(6)


def test_explanation(open_page: OpenPage) -> None:
    page = open_page()
    upload(page, FLOWER)
    ask_why(page)
    canvas = page.locator(".picture canvas")
    expect(page.locator(".explained")).to_contain_text("What speaks for mushroom")
    page.locator(".opacity").fill("30")
    expect(canvas).to_have_css("opacity", "0.3")
    before = canvas.evaluate("(canvas) => canvas.toDataURL()")
    page.locator(".why .class").select_option("9")
    expect(page.locator(".explained")).to_contain_text("What speaks for jellyfish")
    assert canvas.evaluate("(canvas) => canvas.toDataURL()") != before
    page.locator(".why .method").select_option("rollout")
    expect(page.locator(".explained")).to_contain_text("Where attention flows")
    page.click(".why > summary")
    expect(canvas).to_be_hidden()


def test_heat_lies_where_the_patches_are(open_page: OpenPage) -> None:
    page = open_page()
    explanation = {
        **{"model": "m", "method": "relevance", "class_index": 0, "label": "x", "probability": 1},
        "image": {"width": 640, "height": 427},
        "grid": {"rows": 2, "columns": 2, "left": 106.5, "top": 0, "right": 533.5, "bottom": 427},
        "relevance": [[0, 0], [0, 1]],
    }
    page.route("**/explain?*", lambda route: route.fulfill(json=explanation))
    upload(page, FLOWER)
    ask_why(page)
    pixel = "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]"
    canvas = page.locator(".picture canvas")
    light, dark, outside = (canvas.evaluate(pixel, place) for place in ([500, 400], [150, 30], [50, 200]))
    assert light[0] > 200 and light[2] < 100 and light[3] > 240  # yellow, and opaque
    assert dark[2] > 100 and dark[3] < 90  # blue, and transparent
    assert max(outside[:3]) < 30 and 150 < outside[3] < 180


def test_code_runs(open_page: OpenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page()
    upload(page, FLOWER)
    page.click(".code > summary")
    curl, python = page.locator(".snippet code").all_inner_texts()
    assert "curl -H 'Content-Type: image/jpeg'" in curl and "@flower.jpg" in curl
    monkeypatch.chdir(PHOTOGRAPHS)
    printed: list[str] = []
    exec(python, {"print": lambda *words: printed.append(str(words[0]))})  # our own code, as it is shown
    assert printed == ranked(page)


RECORD = """
    window.recorded = [];
    const real = window.fetch;
    window.fetch = async (url, options) => {
        const response = await real(url, options);
        if (url.endsWith('/predict')) {
            const { probabilities } = await response.clone().json();
            window.recorded.push({ bytes: options.body.size, probabilities });
        }
        return response;
    };
"""


def test_scaled_photograph_has_the_same_answer(open_page: OpenPage) -> None:
    page = open_page()
    page.add_init_script(RECORD)
    page.reload()
    for number, scales in enumerate((True, False), start=1):
        page.set_checked("#scale", scales)
        upload(page, LARGE)
        expect(page.locator(".card .answer > .classes:has(li)")).to_have_count(number)
    scaled, whole = page.evaluate("window.recorded")
    assert scaled["bytes"] < whole["bytes"] == LARGE.stat().st_size
    pairs = list(zip(scaled["probabilities"], whole["probabilities"], strict=True))
    assert max(pairs)[0] == max(scaled["probabilities"])
    assert max(abs(one - other) for one, other in pairs) < 0.02


def test_keyboard_alone(open_page: OpenPage) -> None:
    page = open_page()
    page.on("filechooser", lambda chooser: None)  # the browser needs a moment to report them; the first would be missed
    expect(page.locator("#facts dt").first).to_be_attached()
    page.keyboard.press("Tab")
    expect(page.locator("#choose")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(FLOWER)
    ranked(page)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.parentElement.className") == "why":
            break
    page.keyboard.press("Enter")
    expect(page.locator(".picture canvas")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_accessible(open_page: OpenPage, scheme: str, width: int) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    expect(page.locator("#facts dt").first).to_be_attached()
    assert_accessible(page)
    upload(page, BAD, FLOWER)
    ranked(page)
    for part in (".why", ".all", ".time", ".code"):
        page.locator(".card").first.locator(f"{part} > summary").click()
    page.click("#about > summary")
    expect(page.locator(".picture canvas").first).to_be_visible()
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_dark_follows_the_system(open_page: OpenPage) -> None:
    grounds = {
        scheme: open_page(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert grounds == {"light": "rgb(247, 247, 245)", "dark": "rgb(20, 23, 26)"}


def test_reduced_motion(open_page: OpenPage) -> None:
    moving = "getComputedStyle(document.getElementById('drop')).transitionDuration"
    assert open_page(reduced_motion="reduce").evaluate(moving) == "0s"
    assert open_page().evaluate(moving) != "0s"


def test_answers_are_announced(open_page: OpenPage) -> None:
    page = open_page()
    upload(page, FLOWER)
    expect(page.locator("#announcer")).to_contain_text("flower.jpg: mushroom, 7")
    upload(page, BAD)
    expect(page.locator("#announcer")).to_contain_text("bad.jpg: The bytes are no image")


def test_behind_a_prefix(open_page: OpenPage, service: Server) -> None:
    page = open_page()

    def proxy(route: Route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/some/prefix/", "/")))

    page.route("**/some/prefix/**", proxy)
    page.goto(f"{service.url}/some/prefix/")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    upload(page, FLOWER)
    assert len(ranked(page)) == 5
    ask_why(page)
    assert all("/some/prefix/" in url for url in asked if not url.startswith("blob:")) and asked


def test_refusal_can_be_tried_again(open_page: OpenPage) -> None:
    page = open_page()
    busy = {"status": 429, "headers": {"Retry-After": "3"}, "json": {"detail": "Too many images are waiting."}}
    page.route("**/predict", lambda route: route.fulfill(**busy))
    upload(page, FLOWER)
    expect(page.locator(".card .answer > .error")).to_have_text("Too many images are waiting. Try again in 3 s.")
    page.unroute("**/predict")
    page.get_by_role("button", name="Try again").click()
    assert len(ranked(page)) == 5


def test_service_that_cannot_be_reached(open_page: OpenPage) -> None:
    page = open_page()
    page.route("**/predict", lambda route: route.abort())
    upload(page, FLOWER)
    expect(page.locator(".card .answer > .error")).to_contain_text("The service cannot be reached")


def test_loading_is_waited_for(open_page: OpenPage) -> None:
    page = open_page()
    loading = {"status": 503, "json": {"detail": "The model is still loading."}}
    page.route("**/model", lambda route: route.fulfill(**loading))
    page.reload()
    expect(page.locator("#served")).to_have_text("The model is still loading.")
    upload(page, FLOWER)
    page.unroute("**/model")
    assert len(ranked(page)) == 5


def test_key_is_asked_for_once(open_page: OpenPage, tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, api_keys=KEY) as server:
        page = open_page(f"{server.url}/")
        dialog = page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        assert_accessible(page)
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_be_visible()
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        upload(page, FLOWER)
        assert ranked(page)
        page.click(".code > summary")
        assert all("$VIT_API_KEY" in code or "VIT_API_KEY" in code for code in page.locator(".snippet code").all_inner_texts())
        assert KEY not in page.content()
        page.reload()
        expect(page.locator("#facts dt").first).to_be_attached()
        expect(dialog).to_be_hidden()
        other = page.context.new_page()
        other.goto(f"{server.url}/")
        expect(other.locator("#key-dialog")).to_be_visible()
        other.get_by_role("button", name="Cancel").click()
        expect(other.locator("#served")).to_have_text("This service needs an API key.")


def test_encoder(open_page: OpenPage, tmp_path: Path) -> None:
    save("DINOv3ViTModel", tmp_path)
    with running_server(model=tmp_path) as server:
        page = open_page(f"{server.url}/")
        upload(page, FLOWER)
        (label,) = ranked(page)
        assert "features (" in label
        ask_why(page)
        expect(page.locator(".explained")).to_contain_text("Where attention flows")
        page.click(".code > summary")
        assert all("/embed" in code for code in page.locator(".snippet code").all_inner_texts())


def picture(mode: str, size: tuple[int, int], image_format: str = "PNG") -> FilePayload:
    """Return an image of noise, which is large as a file."""
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    if mode == "RGBA":
        noise[..., 3] = np.where(noise[..., 3] < 128, 0, 255)
    file = io.BytesIO()
    Image.fromarray(noise.squeeze()).save(file, image_format)
    return {"name": f"picture.{image_format.lower()}", "mimeType": f"image/{image_format.lower()}", "buffer": file.getvalue()}


def test_transparent_image_has_the_same_answer(open_page: OpenPage) -> None:
    page = open_page()
    page.add_init_script(RECORD)
    page.reload()
    image = picture("RGBA", (1100, 1300))
    for number, scales in enumerate((True, False), start=1):
        page.set_checked("#scale", scales)
        upload(page, image)
        expect(page.locator(".card .answer > .classes:has(li)")).to_have_count(number)
    scaled, whole = page.evaluate("window.recorded")
    assert scaled["bytes"] < whole["bytes"]
    assert max(abs(one - other) for one, other in zip(scaled["probabilities"], whole["probabilities"], strict=True)) < 0.1


@pytest.mark.parametrize("size", [(1200, 60), (60, 1200), (300, 200)])
def test_heat_covers_the_image(open_page: OpenPage, size: tuple[int, int]) -> None:
    page = open_page()
    upload(page, picture("RGB", size))
    ask_why(page)
    image, canvas = (page.locator(f".picture {part}").bounding_box() for part in ("img", "canvas"))
    assert image is not None and canvas is not None
    for side, length in image.items():
        assert canvas[side] == pytest.approx(length, abs=1)  # type: ignore[literal-required]
    assert image["height"] <= page.evaluate("innerHeight")


def test_image_that_the_browser_cannot_show(open_page: OpenPage) -> None:
    page = open_page()
    page.add_init_script(
        "Object.defineProperty(HTMLImageElement.prototype, 'src', {set() { this.dispatchEvent(new Event('error')); }});"
    )
    page.reload()
    upload(page, FLOWER)
    expect(page.locator(".no-preview")).to_be_visible()
    ask_why(page)
    expect(page.locator(".no-preview")).to_be_hidden()  # the service's picture takes its place
    assert page.locator(".picture canvas").evaluate("(canvas) => canvas.width / canvas.height") == pytest.approx(
        640 / 427, abs=0.01
    )


def test_model_that_has_changed(open_page: OpenPage) -> None:
    page = open_page()
    other = {"model": "other", "activation": "softmax", "predictions": [], "logits": [1, 2], "probabilities": [0.3, 0.7]}
    expect(page.locator("#facts dt").first).to_be_attached()
    page.route("**/predict", lambda route: route.fulfill(json=other))
    upload(page, FLOWER)
    expect(page.locator(".card .answer > .error")).to_contain_text("has changed its model")
    page.unroute("**/predict")
    page.get_by_role("button", name="Try again").click()
    assert ranked(page)[0] == "mushroom"


HOLD_A_KEY = """(select) => {
    for (let index = 0; index < 20; index += 1) {
        select.selectedIndex = index;
        select.dispatchEvent(new Event('change'));
    }
}"""


def test_held_key_asks_once(open_page: OpenPage) -> None:
    page = open_page()
    upload(page, FLOWER)
    ask_why(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/explain" in request.url else None)
    page.locator(".why .class").evaluate(HOLD_A_KEY)
    expect(page.locator(".explained")).to_contain_text("What speaks for")
    assert len(asked) == 1


def test_many_classes(open_page: OpenPage) -> None:
    page = open_page()
    labels = [f"class {index}" for index in range(21_000)]
    page.route("**/model", lambda route: route.fulfill(json={**route.fetch().json(), "labels": labels}))
    scores = [index / 21_000 for index in range(21_000)]
    name = "vit-small-everyday64"
    page.route("**/predict", lambda route: route.fulfill(json={"model": name, "logits": scores, "probabilities": scores}))
    page.reload()
    upload(page, FLOWER)
    page.click(".all > summary")
    expect(page.locator(".all .classes li")).to_have_count(200)
    expect(page.locator(".rest")).to_have_text("the first 200 of 21,000")
    expect(page.locator(".why .class option")).to_have_count(100)


def test_labels_that_are_numbers(open_page: OpenPage, tmp_path: Path) -> None:
    labels = ("1", "10", *map(str, range(2, 2 + len(TINY_LABELS) - 2)))
    save_checkpoint(tmp_path / "numbers", tiny_model(), TINY_PREPROCESSING, labels, torch.float32)
    with running_server(model=tmp_path / "numbers") as server:
        page = open_page(f"{server.url}/")
        upload(page, FLOWER)
        ask_why(page)
        page.locator(".why .class").select_option("1")
        expect(page.locator(".explained")).to_contain_text("What speaks for 10")


def test_key_is_not_asked_for_again_and_again(open_page: OpenPage, tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, api_keys=KEY) as server:
        page = open_page(f"{server.url}/")
        page.fill("#key", f"{KEY}\u200b")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_be_visible()  # no header can hold it
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#facts dt").first).to_be_attached()
        page.evaluate("sessionStorage.setItem('vit-serve api key', 'revoked')")
        upload(page, *[FLOWER] * 4)
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator(".card .answer > .error:visible")).to_have_count(4)
        expect(page.locator("#key-dialog")).to_be_hidden()
