"""iris_view as a command: serves until it is interrupted, writes a page, and one sentence for each mistake."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from scans import save

from iris_pipeline.cli.view import view_main


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    labels = np.zeros((8, 9, 10), np.uint8)
    labels[2:5, 3:6, 4:7] = 1
    save(tmp_path / "scans" / "a.nii.gz", labels * 9.0, np.eye(4))
    save(tmp_path / "masks" / "a.nii.gz", labels, np.eye(4))
    (tmp_path / "masks" / "classes.json").write_text('{"cyst": 1}')
    return tmp_path / "masks"


def test_it_serves_until_it_is_interrupted(masks: Path) -> None:
    pytest.importorskip("ipyniivue", reason="the extra 'view' is not installed")
    program = "import sys; from iris_pipeline.cli.view import view_main; sys.exit(view_main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(masks), "-i", str(masks.parent / "scans")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        # A shell's background job ignores Ctrl-C, and so would its children, these tests' servers among them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    address = re.fullmatch(
        r"1 case at (http://127\.0\.0\.1:\d+/) \(this machine only\); Ctrl-C ends it\.\n", said
    )
    assert address is not None, said
    with urllib.request.urlopen(address[1] + "case/0/prediction.nii", timeout=120) as answer:
        assert len(answer.read()) == 352 + 8 * 9 * 10
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 0 and process.stdout.read() == "\nEnded.\n"


def test_it_writes_a_page(masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ipyniivue", reason="the extra 'view' is not installed")
    page = masks.parent / "page.html"
    assert view_main([str(masks), "-i", str(masks.parent / "scans"), "--html", str(page)]) == 0
    assert f"Written: {page} (" in capsys.readouterr().out and page.stat().st_size > 1_000_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "'nowhere' is neither"),
        (["{masks}"], "A viewer needs the scans of the predictions"),
        (["{masks}", "-i", "{masks}/../scans", "--cases", "z"], "There is no prediction of z"),
    ],
)
def test_one_sentence_for_each_mistake(
    masks: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert view_main([argument.replace("{masks}", str(masks)) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert says in error and error.startswith("Error: ") and error.count("\n") == 1


def test_a_port_is_a_port(masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        view_main([str(masks), "--port", "99999"])
    assert "takes a port from 0 to 65535, not '99999'" in capsys.readouterr().err
