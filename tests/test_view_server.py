"""The viewer's server: this machine alone, the listed cases alone; and the page in a browser, served or by itself."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from chromium import needs_browser
from PIL import Image
from scans import save

from iris_pipeline.pages import view_server
from iris_pipeline.pages.browser import Page, Screen, open_page
from iris_pipeline.pages.view import Gallery, layer_bytes, make_gallery
from iris_pipeline.pages.view_server import address_of, make_server, write_page
from preprocessing.errors import BrowserError
from preprocessing.runtime.paths import Root

pytest.importorskip("ipyniivue", reason="the extra 'view' is not installed")


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    """Three small cases with truth; case a scores worst. A secret lies beside them."""
    rng = np.random.default_rng(0)
    lines = ["run,dataset,split,strategy,case,subject,class,dice,truth_voxels,predicted_voxels"]
    for number, case in enumerate("abc"):
        labels = np.zeros((20, 24, 28), np.uint8)
        labels[5:14, 6:16, 8:20] = 1
        labels[15:18, 6:10, 8:12] = 2
        grey = labels * 60 + rng.normal(100, 5, labels.shape)
        affine = np.diag([1.5, 1.5, 2.0, 1.0])
        save(tmp_path / "scans" / f"{case}.nii.gz", grey.astype(np.float32), affine)
        save(tmp_path / "truth" / f"{case}.nii.gz", labels, affine)
        save(tmp_path / "masks" / f"{case}.nii.gz", np.roll(labels, number, axis=1), affine)
        lines += [f",,,masks,{case},,{name},{0.3 + number / 5},9,9" for name in ("liver", "</script>cyst")]
    for folder in ("truth", "masks"):
        (tmp_path / folder / "classes.json").write_text(json.dumps({"liver": 1, "</script>cyst": 2}))
    (tmp_path / "masks" / "evaluation.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "secret.txt").write_text("secret")
    return make_gallery(
        tmp_path / "masks",
        Root.resolve(str(tmp_path)),
        images=tmp_path / "scans",
        truth=tmp_path / "truth",
    )


@pytest.fixture
def server(gallery: Gallery) -> Iterator[ThreadingHTTPServer]:
    with make_server(gallery) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(
    server: ThreadingHTTPServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
    connection.putrequest(method, path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def test_it_gives_the_page_the_viewer_and_the_layers(server: ThreadingHTTPServer, gallery: Gallery) -> None:
    status, page, headers = ask(server, "/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"</script>cyst" not in page, "a class's name cannot end the script"
    status, script, _ = ask(server, "/viewer.js")
    assert status == 200 and b"Niivue" in script
    status, image, headers = ask(server, "/case/1/image.nii")
    assert (
        status == 200 and image == layer_bytes(gallery, 1, "image") and headers["Cache-Control"] == "no-store"
    )
    assert nib.Nifti1Image.from_bytes(image).shape == (28, 24, 20)
    status, centre, _ = ask(server, "/case/1/centre.json")
    assert status == 200 and len(json.loads(centre)) == 3


@pytest.mark.parametrize(
    "path",
    [
        "/case/3/image.nii",
        "/case/-1/image.nii",
        "/case/0/image.nii/../../secret.txt",
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/case/0/../../secret.txt",
        "//etc/passwd",
        "/secret.txt",
        "/case/0/secret.txt",
        "/case/0/image.nii?x=1",
        "/case/٠/image.nii",
        "http://127.0.0.1/secret.txt",
        "",
    ],
)
def test_nothing_but_the_listed_cases(server: ThreadingHTTPServer, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=120) as connection:
        host = f"127.0.0.1:{server.server_port}"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    # "" makes a request line without an address, which HTTP/0.9 answers without a status line.
    assert b" 404 " in answer.splitlines()[0] or b" 400 " in answer.splitlines()[0] or path == ""
    assert b"Only the listed cases" in answer or b" 400 " in answer
    assert b"secret\n" not in answer and not answer.endswith(b"secret") and b"root:" not in answer


def test_this_machine_alone(server: ThreadingHTTPServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert address_of(server) == f"http://127.0.0.1:{server.server_port}/"
    assert ask(server, "/", host=f"localhost:{server.server_port}")[0] == 200
    for other in ("example.org", f"example.org:{server.server_port}", "", "127.0.0.1.example.org"):
        status, text, _ = ask(server, "/", host=other)
        assert status == 403 and b"answers to 127.0.0.1 only" in text, (
            "a foreign name may be a foreign page's trick"
        )
    assert ask(server, "/", method="POST")[0] == 501
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {"127.0.0.1", "127.0.1.1"}:
        with pytest.raises(OSError):
            socket.create_connection((str(address), server.server_port), timeout=2).close()


def test_a_file_that_cannot_be_read_is_a_sentence(server: ThreadingHTTPServer, gallery: Gallery) -> None:
    gallery.cases[0].image.files[0].write_bytes(b"broken")
    status, text, _ = ask(server, "/case/0/image.nii")
    assert status == 422 and text.count(b"\n") == 1
    assert ask(server, "/case/1/image.nii")[0] == 200, "the others go on"


def test_a_taken_port_is_a_sentence(server: ThreadingHTTPServer, gallery: Gallery) -> None:
    with pytest.raises(BrowserError, match=f"cannot listen on port {server.server_port} .*another --port"):
        make_server(gallery, server.server_port)


def test_a_page_of_its_own(gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = write_page(gallery, tmp_path / "one.html", ["b"], progress=False)
    html = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert size == len(html.encode()) and '"b"' in html and '"a"' not in html
    assert "BSD 2-Clause License" in html and "src=" not in html
    assert str(tmp_path) not in html
    monkeypatch.setattr(view_server, "LARGEST_PAGE_BYTES", 1000)
    with pytest.raises(BrowserError, match="name fewer with --cases"):
        write_page(gallery, tmp_path / "two.html", progress=False)


@needs_browser
def test_scrolling_through_the_cases(server: ThreadingHTTPServer) -> None:
    with open_page(address_of(server), Screen(720, 480), webgl=True) as shown:
        shown.wait_for("document.documentElement.dataset.shown === 'a'")
        listed = "[...document.querySelectorAll('#cases button')].map((b) => b.textContent)"
        assert shown.evaluate(listed) == ["a0.300", "b0.500", "c0.700"], "worst first"
        assert shown.evaluate("document.getElementById('told').textContent") == "a, mean Dice 0.300"
        grey, coloured = seen(shown)
        assert coloured > 2000 and grey > coloured, "masks on a scan"
        shown.key("t")
        shown.key("m")
        assert shown.evaluate("[truth.checked, prediction.checked]") == [False, False]
        grey_alone, left = seen(shown)
        assert left < 100 and grey_alone > grey, "the masks are gone, the scan stays"
        shown.key("n")
        shown.wait_for("document.documentElement.dataset.shown === 'b'")
        shown.key("p")
        shown.wait_for("document.documentElement.dataset.shown === 'a'")
        shown.evaluate("document.querySelectorAll('#cases button')[2].click()")
        shown.wait_for("document.documentElement.dataset.shown === 'c'")
        assert shown.evaluate("document.querySelector('[aria-current]').textContent") == "c0.700"
        assert shown.evaluate("document.getElementById('legend').textContent").endswith("</script>cyst 0.700")
        own = address_of(server)
        assert [r[:60] for r in shown.requests if not r.startswith((own, "data:", "blob:"))] == []
        assert shown.errors == []


@needs_browser
def test_a_page_without_a_server(gallery: Gallery, tmp_path: Path) -> None:
    write_page(gallery, tmp_path / "page.html", progress=False)
    page = (tmp_path / "page.html").as_uri()
    with open_page(page, Screen(390, 700), webgl=True) as shown:
        shown.wait_for("document.documentElement.dataset.shown === 'a'")
        assert shown.evaluate("document.documentElement.scrollWidth") == 390
        assert [r[:60] for r in shown.requests if not r.startswith((page, "data:", "blob:"))] == []
        assert shown.errors == []


def seen(shown: Page) -> tuple[int, int]:
    """How many pixels of the stage are grey and not black, and how many have a colour."""
    box = shown.evaluate("""(() => { const r = document.getElementById("stage").getBoundingClientRect();
        return [r.left, r.top, r.right, r.bottom].map(Math.round); })()""")
    stage = Image.open(io.BytesIO(shown.picture())).convert("RGB").crop(tuple(box))
    colours = np.asarray(stage).astype(int)
    spread = colours.max(axis=2) - colours.min(axis=2)
    return int(((spread <= 12) & (colours.max(axis=2) > 20)).sum()), int((spread > 25).sum())
