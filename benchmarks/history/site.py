"""Mark, on the site of `asv publish`, what was last measured on a busy machine: `python -m benchmarks.history.site`.

asv has no place for such a mark, so it is put before a track's name. In the grid and above its graphs a track is marked
if any of its cells is; in the list each such cell of each machine is marked."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.history.stored import HistoryError, read

ROOT = Path(__file__).resolve().parents[2]
MARK = "machine busy: "


def mark(site: Path, busy: set[tuple[str, str, str]]) -> int:
    """Put the mark before the names of those cells, each (machine, track, cell). Returns how many names are marked
    then."""
    from asv.util import sanitize_filename

    index = json.loads((site / "index.json").read_text(encoding="utf-8"))
    tracks = {track for _, track, _ in busy}
    marked = 0
    for track, each in index["benchmarks"].items():
        marked += _rename(each, track in tracks, each.get("pretty_name") or track)
    (site / "index.json").write_text(json.dumps(index), encoding="utf-8")
    for file in (site / "graphs").glob("**/summary.json"):
        here = {(track, cell) for machine, track, cell in busy if sanitize_filename(f"machine-{machine}") in file.parts}
        rows = json.loads(file.read_text(encoding="utf-8"))
        for row in rows:
            cells = list(itertools.product(*index["benchmarks"][row["name"]]["params"]))
            cell = "" if row["idx"] is None else ", ".join(cells[row["idx"]])
            marked += _rename(row, (row["name"], cell) in here, row["pretty_name"])
        file.write_text(json.dumps(rows), encoding="utf-8")
    return marked


def _rename(thing: dict[str, Any], is_busy: bool, name: str) -> bool:
    if is_busy and not name.startswith(MARK):
        thing["pretty_name"] = MARK + name
    return is_busy


def last_busy(root: Path) -> set[tuple[str, str, str]]:
    """The cells whose last number has the spread of a busy machine, each (machine, track, cell)."""
    return {
        (history.machine, series.track, series.cell)
        for history in read(root)
        for series in history.series
        if series.points[-1].place in series.busy
    }


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{mark(ROOT / '.asv' / 'html', last_busy(ROOT))} names are marked: {MARK.strip()}\n")
    except HistoryError as error:
        sys.exit(f"site: {error}")
