"""docs/dashboards.md: every panel with what it shows and its picture."""

import re
from collections.abc import Mapping

from dashboards.parts import Board, Plot, Row

HEAD = """\
# Dashboards

This page is generated from the code of the dashboards: `make pictures`.

The chart brings three dashboards for Grafana, as ConfigMaps that its sidecar picks up by the label
`grafana_dashboard` ([Kubernetes](install.md#monitoring)). Without the sidecar, import the files of
`charts/glinthawk/dashboards` by hand. Each asks for its Prometheus, and where it is about one
deployment, for its namespace and name. They lead to each other, and keep what was chosen.

The pictures are drawn from a real Prometheus over a few minutes of a tiny model on one machine and
of the operator on a test cluster's control plane. They show what the panels look like; their
figures say nothing about speed.
"""
FOLDER = "dashboards"


def picture_name(board: str, row: Row, plot: Plot) -> str:
    """Return the file name of a panel's picture."""
    return f"{board}-{_slug(row.title)}-{_slug(plot.title)}.png"


def render_page(boards: Mapping[str, Board]) -> str:
    """Return the page."""
    parts = [HEAD]
    for name, board in boards.items():
        parts.append(f"\n## {board.title}\n\n{board.about}\n")
        for row in board.rows:
            parts.append(f"\n### {board.title.split(' / ')[1]}: {row.title}\n")
            stats = [plot for plot in row.plots if plot.is_stat]
            if stats:
                parts.append("\n| panel | picture | what it shows |\n| --- | --- | --- |\n")
                parts += [
                    f"| {plot.title} | {_picture(name, row, plot)} | {plot.about} |\n"
                    for plot in stats
                ]
            for plot in row.plots:
                if not plot.is_stat:
                    parts.append(f"\n**{plot.title}.** {plot.about}\n\n")
                    parts.append(f"{_picture(name, row, plot)}\n")
    return "".join(parts)


def _picture(board: str, row: Row, plot: Plot) -> str:
    return f"![{plot.title}]({FOLDER}/{picture_name(board, row, plot)})"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
