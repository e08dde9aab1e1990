"""One HTML file that tells everything about a benchmark: tables, figures, settings, versions, certificate."""

import base64
import html
import io
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from estimators.certificates.result import Certificate

PACKAGES = ("contracting-observers", "torch", "control", "numpy", "scipy", "xarray")
STYLE = """
body { font-family: system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .6rem; text-align: right }
th { text-align: left }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto }
img { max-width: 100% }
"""


def render(
    title: str,
    settings: Mapping[str, object],
    table: xr.Dataset,
    certificates: Mapping[str, Certificate],
    figures: Mapping[str, Figure],
    robustness: xr.Dataset | None = None,
) -> str:
    """Render a report; nothing in it points outside the file.

    Parameters
    ----------
    title : str
        Of the page.
    settings : mapping
        What the run was asked to do: plant, seed, updates, ...
    table : xarray.Dataset
        From :func:`estimators.benchmark`.
    certificates : mapping
        By estimator.
    figures : mapping
        Caption to matplotlib figure.
    robustness : xarray.Dataset, optional
        From :func:`estimators.monte_carlo`.

    Returns
    -------
    str
    """
    parts = [f"<h1>{html.escape(title)}</h1>", "<h2>Accuracy</h2>", _table(table.est.summary(), "{:.4g}")]
    parts.append(
        "<p>Predicted estimates are compared with predicted, filtered with filtered; <i>to best</i> is the steady RMSE "
        "over that of the best estimator of the row's kind and state.</p>"
    )
    if robustness is not None:
        parts.append("<h2>Robustness</h2>")
        parts.append(_table(robustness.est.robustness(), "{:.3f}"))
        parts.append(
            "<p>RMSE over that of the best other estimator (below 1: ahead), predicted, geometric mean over states; "
            f"standard errors over {robustness.sizes['seed']} seeds of {robustness.attrs['trajectories']} trajectories."
            "</p>"
        )
        if robustness.attrs["failures"]:
            parts.append(f"<pre>{html.escape(robustness.attrs['failures'])}</pre>")
    parts.append("<h2>Figures</h2>")
    parts += [
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{_png(figure)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, figure in figures.items()
    ]
    parts.append("<h2>Certificates</h2>")
    parts += [f"<h3>{html.escape(name)}</h3><pre>{html.escape(str(c))}</pre>" for name, c in certificates.items()]
    versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    made = {"written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    for heading, values in (("Settings", {**settings, **made}), ("Versions", versions)):
        rows = "".join(
            f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>" for k, v in values.items()
        )
        parts.append(f"<h2>{heading}</h2><table>{rows}</table>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def write(text: str, path: Path) -> None:
    """Write a file whole or not at all; ValueError where the place cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error}") from error


def _table(frame, form):
    return frame.to_html(float_format=form.format, border=0, na_rep="-")


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
