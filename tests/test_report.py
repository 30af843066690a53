"""A page that holds everything itself, reads well on a phone and in the dark, and says what it lacks."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from chromium import needs_browser
from PIL import Image
from scans import save

from iris_pipeline.measures.rows import Origin, Row, write_rows
from iris_pipeline.pages.browser import Screen, open_page
from iris_pipeline.pages.embeddings import FILE as EMBEDDINGS
from iris_pipeline.pages.embeddings import EmbeddingRow, Embeddings, write_embeddings
from iris_pipeline.pages.layers import plane_layers
from iris_pipeline.pages.overlays import view_case
from iris_pipeline.pages.report import (
    LARGEST_PAGE_BYTES,
    PICTURE_PIXELS,
    picture_pixels,
    write_report,
)
from preprocessing.errors import EvaluationError
from preprocessing.runtime.paths import Root
from preprocessing.store import Store
from preprocessing.volume import Volume, read_labels


def test_many_pictures_get_smaller() -> None:
    assert picture_pixels(9) == PICTURE_PIXELS
    many = picture_pixels(19 * 9)
    assert 250 < many < PICTURE_PIXELS
    noise = np.random.default_rng(0).uniform(0, 255, (4, many, many)).astype(np.float32)
    labels = np.ones(noise.shape, np.uint8)
    shown = view_case(Volume(noise, np.eye(4)), Volume(labels, np.eye(4)), labels, {"x": 1}, "MR")
    # Pure noise is dearer than any scan; even so the page would stay within twice its budget.
    assert len(plane_layers(shown, "axial", many, "noise")) * 19 * 9 < 2 * LARGEST_PAGE_BYTES


@pytest.fixture
def root(tiny_raw, tiny_store: Store, tmp_path: Path) -> Root:  # type: ignore[no-untyped-def]
    """A run whose masks are the truth moved by a voxel, evaluated with made-up scores."""
    run = tmp_path / "results" / "night"
    where = Origin("night", "tiny", "paper/test", "one-shot")
    found = []
    (run / "predictions" / "tiny" / "one-shot").mkdir(parents=True)
    for number, case in enumerate(tiny_raw.cases):
        truth = read_labels(tiny_raw.dataset / "labelsTr" / f"{case}.nii.gz")
        path = run / "predictions" / "tiny" / "one-shot" / f"{case}.nii.gz"
        save(path, np.roll(truth.array, 1, axis=2), truth.affine)
        found += [Row(where, case, case[:2], name, 0.5 + number / 10, 9, 9) for name in ("left", "right")]
    classes = tiny_store.manifest.classes
    (run / "predictions" / "tiny" / "one-shot" / "classes.json").write_text(json.dumps(classes))
    write_rows(run / "evaluation" / "tiny__one-shot.csv", found)
    rows = [
        EmbeddingRow("tiny", "Five", name, case, True)
        for name in ("left kidney", "liver")
        for case in ("", "a")
    ]
    rows += [EmbeddingRow("other", "Else", "left_kidney", case, False) for case in ("b", "c")]
    vectors = np.random.default_rng(0).normal(size=(len(rows), 5)).astype(np.float32)
    write_embeddings(run / EMBEDDINGS, Embeddings(tuple(rows), vectors, {"model": "x"}))
    (run / "train.csv").write_text("iteration,loss\n20,1.5\n40,1.1\n")
    (run / "run.json").write_text(json.dumps({"command": "iris_train paper -d <tiny>", "datasets": ["tiny"]}))
    return Root(raw=tiny_raw.root, preprocessed=tiny_store.folder.parent, results=tmp_path / "results")


def test_a_page_that_holds_everything(root: Root) -> None:
    run = root.results / "night"
    page, left_out = write_report(run, root, "Made by `iris_report night`.", progress=False)
    assert page == run / "report.html" and left_out == []
    html = page.read_text(encoding="utf-8")
    assert len(html.encode()) < LARGEST_PAGE_BYTES
    addresses = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"|url\(([^)]*)\)', html)
    flat = ["".join(pair) for pair in addresses]
    assert flat and all(address.startswith(("data:image/webp;base64,", "#")) for address in flat)
    assert "<script src" not in html and "@import" not in html and "<link" not in html

    pictures = [address for address in flat if address.startswith("data:")]
    assert len(pictures) == 9 == len(set(pictures)), "best, median and worst in three planes"
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2]))).format == "WEBP"
    headings = re.findall(r"<h4>(.*?)</h4>", html)
    assert headings == [
        "Best case: s4_a, mean Dice 0.900",
        "Median case: s2_b, mean Dice 0.700",
        "Worst case: s1_a, mean Dice 0.500",
    ]
    assert html.count("<table") == html.count("<caption>") and html.count("<svg class=") > 10
    assert len(re.findall(r'role="img" aria-label="[^"]+"', html)) == 13, (
        "9 planes, boxes, two maps, the curve"
    )
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    assert "the patient's right (R) is at the left" in html.replace("&#39;", "'")
    assert "iris_train paper -d &lt;tiny&gt;" in html, "texts are escaped"
    assert html.count("<code>iris_report night</code>") == 4, "under three tables and at the end"
    assert "<td>5</td><td>0</td><td>0</td>" in html, "the intake's verdicts"
    assert "currentColor" in html


def test_a_page_without_scans_tells_so(root: Root, tmp_path: Path) -> None:
    run = root.results / "night"
    elsewhere = Root(raw=tmp_path / "gone", preprocessed=root.preprocessed, results=root.results)
    _, left_out = write_report(run, elsewhere, "x", progress=False)
    assert len(left_out) == 1 and left_out[0].startswith("No pictures of tiny: The raw folder")
    assert str(tmp_path) not in left_out[0], "no folder of this machine goes onto a page"
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "data:image" not in html and "No pictures: The raw folder" in html and "0.700" in html

    (run / "predictions" / "tiny" / "one-shot" / "s2_b.nii.gz").unlink()
    out, left_out = write_report(run, root, "x", out=tmp_path / "page.html", progress=False)
    assert "The prediction of case 's2_b' is not in" in left_out[0]
    assert out.read_text(encoding="utf-8").count("data:image") == 3, "the best case came first and stays"
    _, left_out = write_report(run, root, "x", strategy="bank", progress=False)
    assert left_out == ["No pictures of tiny: the strategy 'bank' has no scored case here."]


def test_nothing_evaluated_is_no_page(tmp_path: Path) -> None:
    (tmp_path / "results" / "night").mkdir(parents=True)
    with pytest.raises(EvaluationError, match="run iris_evaluate first"):
        write_report(tmp_path / "results" / "night", Root.resolve(str(tmp_path)), "x")


def test_a_page_without_stores_and_embeddings_tells_so(root: Root, tmp_path: Path) -> None:
    (root.results / "night" / EMBEDDINGS).unlink()
    bare = Root(raw=root.raw, preprocessed=tmp_path / "none", results=root.results)
    page, left_out = write_report(root.results / "night", bare, "x", progress=False)
    assert [sentence.partition(":")[0] for sentence in left_out] == [
        *("No pictures of tiny", "No intake of tiny", "No map of embeddings"),
    ]
    html = page.read_text(encoding="utf-8")
    assert "No map: No checkpoint in" in html and 'id="intake"' not in html and "0.700" in html


@needs_browser
def test_a_page_on_a_phone_and_in_the_dark(root: Root) -> None:
    page, _ = write_report(root.results / "night", root, "Made by `x`.", progress=False)
    for screen in (Screen(390, 844, scale=2.0, phone=True), Screen(1280, 900, dark=True)):
        with open_page(page.as_uri(), screen) as shown:
            width = "[innerWidth, document.documentElement.scrollWidth]"
            assert shown.evaluate(width) == [screen.width, screen.width], (
                "nothing scrolls sideways but tables"
            )
            assert [r for r in shown.requests if not r.startswith(("data:", page.as_uri()))] == []
            paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
            assert paper == ("rgb(18, 22, 26)" if screen.dark else "rgb(255, 255, 255)")
            assert shown.evaluate("document.querySelector('nav details').open") is not screen.phone
            assert shown.errors == []


@needs_browser
def test_a_page_does_what_its_buttons_say(root: Root) -> None:
    page, _ = write_report(root.results / "night", root, "Made by `x`.", progress=False)
    with open_page(page.as_uri()) as shown:
        sorted_by = """(name) => {
            const tables = [...document.querySelectorAll("table")];
            const table = tables.find((t) => t.caption.textContent.includes("worst first"));
            const head = [...table.tHead.rows[0].cells].find((cell) => cell.textContent === name);
            head.click();
            return [head.ariaSort, [...table.tBodies[0].rows].map((row) => row.cells[0].textContent)];
        }"""
        first, second = shown.evaluate(
            f"(() => {{ const f = {sorted_by}; return [f('mean'), f('mean')]; }})()"
        )
        assert first == ["ascending", ["s1_a", "s2_a", "s2_b", "s3_a", "s4_a"]]
        assert second == ["descending", first[1][::-1]]

        hidden = "getComputedStyle(document.querySelector('.plane .truth')).display"
        assert shown.evaluate(hidden) == "inline"
        pressed = shown.evaluate("""(() => { const b = document.querySelector("[data-layer=no-truth]");
            b.click(); return b.ariaPressed; })()""")
        assert pressed == "false" and shown.evaluate(hidden) == "none"

        colour = "getComputedStyle(document.querySelector('.plane .prediction path')).stroke"
        before = shown.evaluate(colour)
        shown.evaluate("document.querySelector('[data-layer=by-class]').click()")
        assert before == "rgb(255, 160, 31)" and shown.evaluate(colour) == "rgb(95, 176, 236)"

        shown.evaluate("document.getElementById('theme').click(); document.getElementById('theme').click()")
        assert shown.evaluate("document.documentElement.dataset.theme") == "dark"
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 26)"

        lit = """(() => { document.querySelector('tr[data-place="1"]').focus();
            return [...document.querySelectorAll(".maps .lit")].map((m) => m.dataset.place); })()"""
        assert set(shown.evaluate(lit)) == {"1"}
        assert shown.errors == []
