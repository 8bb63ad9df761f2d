"""Pictures of panels, and the page that shows them."""

from pathlib import Path

import pytest
from PIL import Image

from dashboards.__main__ import BOARDS
from dashboards.page import FOLDER, picture_name, render_page
from dashboards.parts import Plot, Series
from dashboards.pictures import Line, draw, find_ticks

DOCS = Path(__file__).resolve().parents[3] / "docs"
MOST_BYTES = 2_000_000
SPAN_S = 120.0
TIMES = [2.0 * i for i in range(60)]
PLOT = Plot("Rows", "About rows.", "short", (Series("x", "rows"),), axis="rows")


NEAR = 12


def has_colour(path: Path, *wanted: int) -> bool:
    """Tell whether a picture has a colour, or one that is hardly another."""
    with Image.open(path) as picture:
        pixels = picture.convert("RGB").getcolors(1 << 20)
    return any(
        max(abs(here - there) for here, there in zip(colour, wanted, strict=True)) < NEAR
        for _, colour in pixels or ()
    )


def test_each_line_has_its_colour_and_more_lines_make_a_longer_legend(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 3):
        path = tmp_path / f"{count}.png"
        draw(
            PLOT, [Line(f"{i}", TIMES, [i + t for t in TIMES]) for i in range(count)], SPAN_S, path
        )
        with Image.open(path) as picture:
            sizes.append(picture.size)
        assert has_colour(path, 0x57, 0x94, 0xF2)
        assert has_colour(path, 0x73, 0xBF, 0x69) is (count > 1)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] < sizes[1][1]


@pytest.mark.parametrize(
    ("top", "unit", "axis", "ticks"),
    [
        (1.06, "short", "workers", [0, 1]),
        (4.2, "short", "workers", [0, 1, 2, 3, 4]),
        (0.9, "short", "", [0, 0.2, 0.4, 0.6, 0.8]),
        (1, "percentunit", "", [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (9 * 2**20, "bytes", "", [number * 2**21 for number in range(5)]),
        (100, "s", "", [0, 30, 60, 90]),
        (0.05, "s", "", [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
    ],
)
def test_axes_have_round_numbers(top: float, unit: str, axis: str, ticks: list[float]) -> None:
    assert find_ticks(top, unit, axis) == pytest.approx(ticks)


def test_a_figure_beyond_its_alarm_is_red(tmp_path: Path) -> None:
    plot = Plot("Due", "Due.", "short", (Series("x", "x"),), is_stat=True, alarm_above=1)
    found = []
    for value in (0.0, 2.0):
        draw(plot, [Line("x", TIMES, [value for _ in TIMES])], SPAN_S, tmp_path / "one.png")
        found.append(has_colour(tmp_path / "one.png", 0xC4, 0x31, 0x4B))
    assert found == [False, True]


def test_a_panel_without_data_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Rows"):
        draw(PLOT, [], SPAN_S, tmp_path / "one.png")


def test_the_page_is_that_of_the_code_and_has_every_picture() -> None:
    page = (DOCS / "dashboards.md").read_text(encoding="utf-8")
    assert page == render_page(BOARDS), "run `make pictures`"
    names = {
        picture_name(name, row, plot)
        for name, board in BOARDS.items()
        for row in board.rows
        for plot in row.plots
    }
    pictures = {path.name: path for path in (DOCS / FOLDER).glob("*.png")}
    assert set(pictures) == names, "run `make pictures`"
    assert sum(path.stat().st_size for path in pictures.values()) < MOST_BYTES
