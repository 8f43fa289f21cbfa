"""A page about a run: one HTML file that needs no other, with summary, pictures, tables of points and failures."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from executors import __version__
from phases.errors import InputError
from phases.history import Run
from phases.pictures import phase_colour
from phases.summaries import first_line, summary_text

PAGE_BEGINS = b"<!doctype html>"
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 0 1rem 3rem; color: #222; background: #fff; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }} h2 {{ font-size: 1.2rem; margin-top: 2rem; }}
img {{ max-width: 100%; height: auto; }} figure {{ margin: 1rem 0; }} figcaption {{ color: #555; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-size: 0.85rem; }}
th, td {{ padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; vertical-align: top; }}
th {{ text-align: left; }} td.text {{ text-align: left; }} td.path {{ text-align: left; white-space: normal; min-width: 18rem; }}
.chip {{ display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin-right: 0.4em; }}
pre {{ overflow-x: auto; font-size: 0.8rem; background: #f4f4f4; padding: 0.5rem; }} ol {{ margin: 0.3rem 0; padding-left: 1.2rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def check_is_page(path: Path) -> None:
    """Raises InputError rather than let a report replace a file of another kind."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(PAGE_BEGINS)).lower() != PAGE_BEGINS:
                raise InputError(f"report {path}: exists and is no HTML page; choose another name")


def escaped(value: Any) -> str:
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already: '<td …>' as they are, all others as numbers."""
    lines = ["".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) for row in rows]
    header, body = "".join(f"<th>{escaped(name)}</th>" for name in head), "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def html_pairs(pairs: Mapping[str, Any]) -> str:
    return html_table(["", ""], [[text(name), f'<td class="path">{escaped(value)}</td>'] for name, value in pairs.items()])


def chip(name: str) -> str:
    return f'<td class="text"><span class="chip" style="background:{phase_colour(name)}"></span>{escaped(name)}</td>'


def text(value: Any) -> str:
    return f'<td class="text">{escaped(value)}</td>'


def folded(summary: str, content: str) -> str:
    """Both are HTML."""
    return f'<td class="path"><details><summary>{summary}</summary>{content}</details></td>'


def coordinates(run: Run, id: int) -> list[str]:
    return [f"{value:.4f}" for value in run.parameters(id).values()]


def points_table(run: Run) -> str:
    rows = []
    for id, event in sorted(run.labelled.items()):
        point, steps = run.explorer.points[id], "".join(f"<li>{escaped(step)}</li>" for step in event["path"])
        path = folded(f"{len(event['path'])} steps", f"<ol>{steps}</ol>")
        numbers = [f"{event['confidence']:.2f}", f"{event['energy']:.6f}", *coordinates(run, id), f"{event['seconds']:.1f}"]
        rows.append([str(id), chip(event["phase"]), *numbers, text(f"{point.origin}, {point.iteration}"), path])
    names = run.explorer.box.names
    return html_table(["point", "phase", "confidence", "energy", *names, "seconds", "from, iteration", "decision path"], rows)


def failures_table(run: Run) -> str:
    rows = []
    for id, event in sorted(run.failures.items()):
        trace = folded(escaped(first_line(event["message"]) or "no message"), f"<pre>{escaped(event['traceback'])}</pre>")
        rows.append([str(id), text(event["failure"]), text(event["error"]), trace, *coordinates(run, id)])
    return html_table(["point", "failure", "error", "message", *run.explorer.box.names], rows)


def report_page(run: Run, options: Mapping[str, Any], pictures: Mapping[str, tuple[str, bytes]], missing: str) -> str:
    """One HTML page that needs no other file; missing: why there are no pictures."""
    parts = [f"<h1>Exploration {escaped(run.directory.name)}</h1>", f"<pre>{escaped(summary_text(run))}</pre>"]
    if missing:
        parts.append(f"<p>{escaped(missing)}</p>")
    for caption, png in pictures.values():
        data = base64.b64encode(png).decode()
        parts.append(
            f'<figure><img alt="{escaped(caption)}" src="data:image/png;base64,{data}"><figcaption>{escaped(caption)}</figcaption></figure>'
        )
    if run.failures:
        parts += [f"<h2>Failures ({len(run.failures)})</h2>", failures_table(run)]
    parts += [f"<h2>Points ({len(run.labelled)})</h2>", points_table(run)]
    box = {name: f"{low:g} to {high:g}" for name, (low, high) in run.explorer.box.bounds().items()}
    parts += ["<h2>Parameters</h2>", html_pairs(box)]
    about_run = {"version": __version__, "seed": run.header["seed"]} | {
        name: json.dumps(value) for name, value in run.header["model"].items()
    }
    parts += ["<h2>Run</h2>", html_pairs(about_run), "<h2>Options of this command</h2>", html_pairs(options)]
    return PAGE.format(title=escaped(f"Exploration {run.directory.name}"), body="\n".join(parts))
