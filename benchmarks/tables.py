"""The table results.md from the files of results: `python -m benchmarks.tables`."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["HEAD", "write_table"]

HEAD = ["| question | sdgpu | rival | ratio | target |", "|---|---|---|---|---|"]
DATED = ["| question | sdgpu | rival | ratio | target | measured |", "|---|---|---|---|---|---|"]


def write_table(folder: Path) -> Path:
    """All rows of the files in a folder, file by file, in the page beside it.

    What was measured before there were such files is in ``earlier.json``: each of its rows stays until its
    question is measured again.
    """
    files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    earlier = files.pop("earlier", None)
    lines = [
        "Made by `make bench` from the files in `results/`. Medians of runs taken in turns.",
        "",
    ]
    for name, fields in files.items():
        lines += [f"## {name}", fields["machine"], "", *DATED]
        lines += [f"| {' | '.join([*row['cells'], row['measured']])} |" for row in fields["rows"]]
        lines.append("")
    if earlier is not None:
        again = {row["cells"][0] for fields in files.values() for row in fields["rows"]}
        rows = [row for row in earlier["rows"] if row[0] not in again]
        if rows:
            lines += [
                "## Not measured since",
                f"{earlier['finished']}, {earlier['machine']}",
                "",
                *HEAD,
            ]
            lines += [f"| {' | '.join(row)} |" for row in rows]
            lines.append("")
    page = folder.with_suffix(".md")
    page.write_text("\n".join(lines))
    return page


if __name__ == "__main__":
    print(f"wrote {write_table(Path(__file__).parent / 'results')}")
