"""A page in a headless browser: what it says, asks for and looks like, and sentences where it cannot be."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from chromium import needs_browser
from PIL import Image

from iris_pipeline.pages import browser
from iris_pipeline.pages.browser import Screen, open_page, picture_page
from preprocessing.errors import BrowserError

PAGE = """<!DOCTYPE html><html><head><meta name="viewport" content="width=device-width"><style>
body { margin: 0; background: rgb(250, 0, 0); } p { height: 3000px; margin: 0; }
@media (prefers-color-scheme: dark) { body { background: rgb(0, 0, 250); } }
</style></head><body><p id="long">x</p><p id="last">y</p><script>
document.addEventListener("keydown", (event) => { document.title = event.key; });
</script></body></html>"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    return path


def pixel(picture: bytes) -> tuple[int, ...]:
    found = Image.open(io.BytesIO(picture)).convert("RGB").getpixel((300, 600))
    assert isinstance(found, tuple)
    return found


@needs_browser
def test_a_phone_in_the_dark(page: Path) -> None:
    with open_page(page.as_uri(), Screen(390, 700, scale=2.0, dark=True, phone=True)) as shown:
        assert shown.evaluate("[innerWidth, innerHeight, devicePixelRatio]") == [390, 700, 2]
        assert pixel(shown.picture()) == (0, 0, 250)
        assert Image.open(io.BytesIO(shown.picture())).size == (780, 1400)
        assert Image.open(io.BytesIO(shown.picture(whole=True))).size == (780, 12000)
        shown.key("n")
        shown.wait_for("document.title === 'n'")
        assert shown.requests == [page.as_uri()] and shown.errors == []


@needs_browser
def test_complaints_are_heard(page: Path) -> None:
    page.write_text(PAGE.replace("</script>", "console.error('alas', 7); missing();</script>"))
    with open_page(page.as_uri()) as shown:
        assert shown.errors[0] == "alas 7"
        assert "ReferenceError: missing is not defined" in shown.errors[1]
        with pytest.raises(BrowserError, match="The page threw Error: no"):
            shown.evaluate("(() => { throw new Error('no'); })()")
        with pytest.raises(BrowserError, match="was to reach 'false' within 0 s.*alas 7; ReferenceError"):
            shown.wait_for("false", seconds=0.1)


@needs_browser
def test_a_picture_begins_where_it_is_told(page: Path, tmp_path: Path) -> None:
    out = tmp_path / "there" / "page.png"
    picture_page(page, out, Screen(640, 700), part="last")
    assert pixel(out.read_bytes()) == (250, 0, 0) and Image.open(out).size == (640, 700)
    with pytest.raises(BrowserError, match="has no part 'chapter'"):
        picture_page(page, out, part="chapter")
    with pytest.raises(BrowserError, match=r"cannot open file:///.*gone\.html \(net::ERR_FILE_NOT_FOUND\)"):
        picture_page(tmp_path / "gone.html", out)


def test_no_browser_is_one_sentence(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    with pytest.raises(BrowserError, match="need a browser, and none of chromium, .* install Chromium"):
        picture_page(page, tmp_path / "page.png")


@pytest.mark.parametrize("program", ["#!/bin/sh\nexit 3\n", "#!/bin/sh\ncat <&3 >/dev/null\n"])
def test_a_browser_that_does_not_answer(
    program: str, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "chromium"
    fake.write_text(program)
    fake.chmod(0o755)
    monkeypatch.setattr(browser, "find_browser", lambda: fake)
    monkeypatch.setattr(browser, "PATIENCE_S", 1.0)
    with pytest.raises(BrowserError, match=r"The browser (ended|gave no answer|went away)"):
        picture_page(page, tmp_path / "page.png")
