"""Poses and scales that are kept beside a run: found again by another process, and never a hindrance."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from stub_model import loaded_with
from test_showing import KnowsOneSize, ball, plan_at

from iris_pipeline.inference.pool import EmbeddingCache
from iris_pipeline.search.kept_showings import FILE, KeptShowings, kept_showings
from iris_pipeline.search.showing import Showing, settle_showing
from preprocessing.plan import Plan


def settle(model: KnowsOneSize, run: Path, fresh: bool = False) -> float:
    """The spacing that two balls are shown at, in mm."""

    def prepare_at(plan: Plan):  # type: ignore[no-untyped-def]
        return lambda name: ball(name, plan.spacing_mm[0])

    cache = EmbeddingCache(showings=kept_showings(run, fresh))
    loaded = loaded_with(model)
    return settle_showing(
        loaded, plan_at, Showing(), ["a", "b"], prepare_at, np.eye(4), cache=cache
    ).spacing_mm[0]


def test_another_process_need_not_search(tmp_path: Path) -> None:
    model = KnowsOneSize(7.5)
    assert settle(model, tmp_path) == 1.6
    (kept,) = json.loads((tmp_path / FILE).read_text(encoding="utf-8")).values()
    assert kept[1] == 1.6
    before = model.encoded
    assert settle(model, tmp_path) == 1.6 and model.encoded == before > 0
    assert settle(model, tmp_path, fresh=True) == 1.6 and model.encoded > before, "overwrite searches again"


def test_what_two_processes_find_is_kept_of_both(tmp_path: Path) -> None:
    first, second = kept_showings(tmp_path), kept_showings(tmp_path)
    first["a"] = ("SAR", 1.25, False)
    second["b"] = ("LIP", 2.0, True)
    assert dict(kept_showings(tmp_path)) == {"a": ("SAR", 1.25, False), "b": ("LIP", 2.0, True)}
    fresh = kept_showings(tmp_path, fresh=True)
    assert dict(fresh) == {}
    fresh["a"] = ("RIP", 1.0, False)
    assert dict(kept_showings(tmp_path)) == {"a": ("RIP", 1.0, False), "b": ("LIP", 2.0, True)}


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1}', '{"a": ["up", 1]}', '{"a": ["SAR"]}', '{"a": ["SAR", "x"]}', "\udcff"]
)
def test_a_spoilt_file_says_nothing_and_is_mended(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    spoilt = kept_showings(tmp_path)
    assert dict(spoilt) == {}
    spoilt["b"] = ("SAR", 1.0, False)
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8")) == {"b": ["SAR", 1.0, False]}


def test_where_nothing_can_be_written_the_search_still_counts(tmp_path: Path) -> None:
    nowhere = KeptShowings(tmp_path / "missing" / FILE)
    nowhere["a"] = ("SAR", 1.25, False)
    assert nowhere["a"] == ("SAR", 1.25, False) and not (tmp_path / "missing").exists(), (
        "no folder is made for it"
    )
    in_the_way = tmp_path / FILE
    in_the_way.mkdir()
    (in_the_way / "full").touch()
    refused = kept_showings(tmp_path)
    refused["a"] = ("SAR", 1.25, False)
    assert refused["a"] == ("SAR", 1.25, False)
    assert os.listdir(tmp_path) == [FILE], "no temporary file is left"
