"""Images side by side: of real weights alone, captioned, small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from synthetic import record

from xdit_bench.reporting.images import WIDTH, side_by_side
from xdit_bench.reporting.study import group_records
from xdit_bench.reporting.style import DPI, save
from xdit_bench.results.schema import Record


def saved(folder: Path, item: Record) -> Record:
    path = folder / item.run_id / "image.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (item.point["width"], item.point["height"]), "navy").save(path)
    return item


def test_random_weights_show_no_image_and_say_why(tmp_path: Path) -> None:
    shots, note = side_by_side(group_records([saved(tmp_path, record())]), tmp_path, tmp_path)
    assert shots == ()
    assert "noise" in note


def test_real_weights_stand_side_by_side_by_size_and_vae(tmp_path: Path) -> None:
    points = [(2048, "single"), (1024, "single"), (1024, "parallel")]
    records = [saved(tmp_path / "o", record(res=res, vae=vae, weights="some/model")) for res, vae in points]
    records += [saved(tmp_path / "o", record(5.0, res=1024, vae="single", ulysses=2, weights="some/model"))]
    shots, _ = side_by_side(group_records(records), tmp_path / "o", tmp_path / "r")
    assert [shot.caption.split(", ")[:2] for shot in shots] == [
        ["1024px", "vae=parallel"], ["1024px", "vae=single"], ["2048px", "vae=single"],
    ]  # fmt: skip
    with Image.open(tmp_path / "r" / shots[0].file) as small:
        assert small.size == (WIDTH, WIDTH)


def test_images_that_were_not_saved_are_said_to_be_missing(tmp_path: Path) -> None:
    shots, note = side_by_side(group_records([record(weights="some/model")]), tmp_path, tmp_path)
    assert shots == ()
    assert "save_outputs=true" in note


def test_a_drawing_is_saved_in_256_colours_that_look_the_same_and_a_photograph_in_its_own(tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 2), facecolor="white")
    axis = figure.subplots()
    axis.plot([0, 1, 4, 9])
    drawn, whole = tmp_path / "drawn.png", tmp_path / "whole.png"
    save(figure, tmp_path / "drawn", ("png",))
    figure.savefig(whole, dpi=DPI)
    with Image.open(drawn) as few, Image.open(whole) as all_of_them:
        assert few.mode == "P"
        worst = np.abs(np.asarray(few.convert("RGB"), int) - np.asarray(all_of_them.convert("RGB"), int)).max()
    assert worst <= 8
    assert drawn.stat().st_size < whole.stat().st_size / 2
    axis.imshow(np.random.default_rng(0).random((200, 200, 3)))
    save(figure, tmp_path / "photograph", ("png",))
    with Image.open(tmp_path / "photograph.png") as photograph:
        assert photograph.mode == "RGBA"
