"""The report of a comparison: one HTML file with its tables, charts and pictures inside."""

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from snr_jax.core.labels import classes
from snr_jax.report.chart import Curve, line_chart
from snr_jax.report.tables import Results, class_names, percent
from snr_jax.runs.writer import write_text


def write_html(
    path: str | os.PathLike,
    *,
    title: str,
    summary: Mapping[str, Mapping[str, float]],
    results: Results,
    curves: Mapping[str, Mapping[str, Curve]] | None = None,
    images: Sequence[Mapping[str, np.ndarray]] = (),
    notes: Mapping[str, str | Sequence[str]] | None = None,
    lead: str = "",
    num_classes: int = 19,
) -> None:
    """Writes one HTML file that needs nothing beside it, under a temporary name, then renamed.

    Args:
      summary: run -> {domain: mIoU as a fraction}, runs in the order of their story, the target
        domain last. The headline compares each run with the one before.
      results: run -> metrics on the target, for the table and bars by class.
      curves: chart -> {series: (steps, values)}; a series named like a run has its colour.
      images: a mapping per sample, caption -> uint8 [H,W,3].
      notes: how it was made; a text is a paragraph, a list is shown as lines of code.
      lead: a sentence under the title.
    """
    colors = {run: i for i, run in enumerate(dict.fromkeys([*summary, *results]))}
    sections = [
        f"<h1>{_text(title)}</h1>" + (f"<p class=lead>{_text(lead)}</p>" if lead else ""),
        _tiles(summary, colors),
        "<h2>Mean IoU by domain</h2>" + _summary_table(summary),
        "<h2>IoU by class</h2>" + _key(results, colors) + _bars(results, colors, num_classes),
        f"<details><summary>The same as a table</summary>{_results_table(results)}</details>",
    ]
    if curves:
        charts = "".join(_chart(name, series, colors) for name, series in curves.items())
        sections.append(f"<h2>Training</h2><div class=charts>{charts}</div>")
    if images:
        sections.append(
            "<h2>Pictures</h2><p>Click a picture to enlarge it.</p>"
            + _pictures(images)
            + _legend(num_classes)
        )
    if notes:
        sections.append("<h2>How it was made</h2>" + _notes(notes))
    body = "".join(f"<section>{section}</section>\n" for section in sections)
    write_text(
        path,
        "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{body}</main></body></html>\n",
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML; the first of a row names it."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th>{row[0]}</th>" + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class=scroll><table class="{kind}"><tr>{top}</tr>{body}</table></div>'


def _swatch(color: Sequence[int]) -> str:
    return f'<i style="background:rgb({color[0]},{color[1]},{color[2]})"></i>'


def _key(runs: Sequence[str], colors: Mapping[str, int]) -> str:
    chips = "".join(
        f'<span><i style="background:{_color(colors[run])}"></i>{_text(run)}</span>' for run in runs
    )
    return f"<p class=key>{chips}</p>"


def _color(index: int) -> str:
    return f"var(--c{index % 6})"


def _points(after: float, before: float, sign: str = "") -> str:
    """A difference of the rounded numbers that stand beside it, so that the reader's sum agrees."""
    return percent(round(after, 3) - round(before, 3), sign)


def _tiles(summary: Mapping[str, Mapping[str, float]], colors: Mapping[str, int]) -> str:
    target = list(next(iter(summary.values())))[-1]
    tiles, previous = [], None
    for run, scores in summary.items():
        note = f"mIoU, {target}"
        if previous is not None:
            gain = _points(scores[target], summary[previous][target], sign="+")
            note = f"{gain} over {previous}"
        tiles.append(
            f'<div style="border-top-color:{_color(colors[run])}"><span>{_text(run)}</span>'
            f"<b>{percent(scores[target])}<small>%</small></b><span>{_text(note)}</span></div>"
        )
        previous = run
    return f"<div class=tiles>{''.join(tiles)}</div>"


def _summary_table(summary: Mapping[str, Mapping[str, float]]) -> str:
    domains = list(next(iter(summary.values())))
    first, last = domains[0], domains[-1]
    gap = ["gap"] if len(domains) > 1 else []
    rows = [
        [_text(run), *(percent(scores[d]) for d in domains)]
        + [_points(scores[first], scores[last]) for _ in gap]
        for run, scores in summary.items()
    ]
    return _table(["mIoU, %", *map(_text, domains), *gap], rows)


def _results_table(results: Results) -> str:
    def row(name: str, values: Sequence[float | None]) -> list[str]:
        cells = [percent(v) for v in values]
        best = max((c for c in cells if c != "-"), key=float, default=None)
        return [name, *(f"<b>{c}</b>" if c == best else c for c in cells)]

    rows = [
        row(_text(name), [m["iou"].get(name) for m in results.values()])
        for name in class_names(results)
    ]
    rows.append(row("mIoU", [m["miou"] for m in results.values()]))
    return _table(["IoU, %", *map(_text, results)], rows, "classes")


def _bars(results: Results, colors: Mapping[str, int], num_classes: int) -> str:
    swatches = {c.name: _swatch(c.color) for c in classes(num_classes)}
    groups = []
    for name in class_names(results):
        bars = []
        for run, metrics in results.items():
            score = percent(metrics["iou"].get(name))
            width = "0" if score == "-" else score
            fill = f'<i style="width:{width}%;background:{_color(colors[run])}"></i>'
            bars.append(f'<div title="{_text(run)}"><b>{fill}</b><span>{score}</span></div>')
        groups.append(
            f"<div class=group><h3>{swatches.get(name, '')}{_text(name)}</h3>"
            f"<div>{''.join(bars)}</div></div>"
        )
    return f"<div class=bars>{''.join(groups)}</div>"


def _chart(name: str, series: Mapping[str, Curve], colors: Mapping[str, int]) -> str:
    colors = {label: colors.get(label, len(colors) + i) for i, label in enumerate(series)}
    svg = line_chart(series, [_color(colors[label]) for label in series])
    head = f"<figcaption>{_text(name)}</figcaption>"
    return f"<figure>{head}{svg}{_key(list(series), colors)}</figure>"


def _data_uri(image: np.ndarray) -> str:
    """PNG, exact and small, for pictures of few colours; JPEG for photographs."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    if picture.getcolors(256):
        picture.save(buffer, kind := "png", optimize=True)
    else:
        picture.save(buffer, kind := "jpeg", quality=90, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _pictures(images: Sequence[Mapping[str, np.ndarray]]) -> str:
    columns = list(dict.fromkeys(key for row in images for key in row))

    def cell(row: Mapping[str, np.ndarray], key: str) -> str:
        if key not in row:
            return "<span></span>"
        return f'<img tabindex=0 alt="{_text(key)}" src="{_data_uri(row[key])}">'

    cells = [f"<b>{_text(key)}</b>" for key in columns]
    cells += [cell(row, key) for row in images for key in columns]
    grid = f"<div class=grid style=--n:{len(columns)}>{''.join(cells)}</div>"
    return f"<div class=scroll>{grid}</div>"


def _legend(num_classes: int) -> str:
    chips = [f"<span>{_swatch(c.color)}{c.name}</span>" for c in classes(num_classes)]
    chips.append(f"<span>{_swatch((0, 0, 0))}ignored</span>")
    return f"<p class=key>{''.join(chips)}</p>"


def _notes(notes: Mapping[str, str | Sequence[str]]) -> str:
    def content(note: str | Sequence[str]) -> str:
        if isinstance(note, str):
            return f"<p>{_text(note)}</p>"
        return f"<pre>{_text(chr(10).join(note))}</pre>"

    items = "".join(f"<dt>{_text(k)}</dt><dd>{content(note)}</dd>" for k, note in notes.items())
    return f"<dl>{items}</dl>"


_STYLE = """
:root{color-scheme:light dark;--bg:#fcfcfb;--card:#fff;--line:#e3e5e8;--ink:#1b1f24;--soft:#5c6570;
--track:#eceef1;--c0:#868e99;--c1:#2f6fd6;--c2:#d9622b;--c3:#2a9d74;--c4:#8b5fc7;--c5:#b08a10}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--line:#31373d;--ink:#e8eaed;
--soft:#a0a8b2;--track:#2a3036;--c0:#98a1ac;--c1:#5f9bf7;--c2:#f28b54;--c3:#45c493;--c4:#b391ec;
--c5:#dcb13e}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:48px 24px 72px}
h1{font-size:32px;line-height:1.2;letter-spacing:-.02em;margin:0}
h2{font-size:20px;letter-spacing:-.01em;margin:52px 0 14px}
h3{font-size:14px;font-weight:500;margin:0}
.lead{color:var(--soft);font-size:18px;max-width:46em;margin:12px 0 0}
i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:7px;flex:none;
box-shadow:inset 0 0 0 1px #8886}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:16px;
margin-top:32px}
.tiles div{background:var(--card);border:1px solid var(--line);border-top-width:4px;
border-radius:8px;padding:16px 20px}
.tiles b{display:block;font-size:40px;line-height:1.2;letter-spacing:-.02em}
.tiles small{font-size:20px;font-weight:500;color:var(--soft);margin-left:3px}
.tiles span{color:var(--soft);font-size:14px}
h2+p{color:var(--soft);font-size:14px;margin:0 0 10px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:15px}
th,td{text-align:right;padding:7px 0 7px 32px;border-bottom:1px solid var(--line);font-weight:400;
white-space:nowrap}
th:first-child{text-align:left;padding-left:0}
tr:first-child th{color:var(--soft);font-size:14px}
.classes tr:last-child>*{border-top:2px solid var(--line);border-bottom:0}
.classes td,.classes th{padding-top:4px;padding-bottom:4px}
.bars{columns:2;column-gap:48px}
.group{display:grid;grid-template-columns:116px 1fr;align-items:center;break-inside:avoid;
padding:8px 0;border-bottom:1px solid var(--line)}
.group h3{display:flex;align-items:center}
.group div div{display:flex;align-items:center;height:15px}
.group b{flex:1;height:9px;background:var(--track);border-radius:2px;overflow:hidden}
.group b i{display:block;height:100%;border-radius:0;box-shadow:none;margin:0}
.group span{width:44px;text-align:right;font-size:12px;font-variant-numeric:tabular-nums}
.key{display:flex;flex-wrap:wrap;gap:6px 20px;margin:10px 0;font-size:14px}
.key span{display:flex;align-items:center}
details{margin-top:18px}summary{cursor:pointer;color:var(--soft);margin-bottom:10px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:20px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:16px 18px 8px}
figcaption{font-weight:500;margin-bottom:10px}
svg{display:block;width:100%}svg text{font-size:12px;fill:var(--soft)}
.grid{stroke:var(--line)}polyline{fill:none;stroke-width:2;stroke-linejoin:round}
.faint{stroke-width:1;opacity:.3}
div.grid{display:grid;grid-template-columns:repeat(var(--n),minmax(150px,1fr));gap:8px;font-size:14px}
.grid b{font-weight:500}.grid img{width:100%;display:block;border-radius:4px;cursor:zoom-in}
.grid img:focus{position:fixed;inset:0;height:100%;z-index:1;padding:4vmin;object-fit:contain;
background:#000c;border-radius:0;image-rendering:pixelated;pointer-events:none}
dl{display:grid;grid-template-columns:minmax(110px,auto) 1fr;gap:10px 28px;margin:0}
dt{color:var(--soft)}dd{margin:0;min-width:0}dd p{margin:0}
pre{margin:0;padding:12px 16px;background:var(--track);border-radius:6px;overflow-x:auto;
font:13px/1.6 ui-monospace,"DejaVu Sans Mono",monospace}
@media (max-width:760px){.bars{columns:1}main{padding:28px 16px 48px}
dl{grid-template-columns:1fr;gap:4px}dd{margin-bottom:12px}h1{font-size:26px}}
"""
