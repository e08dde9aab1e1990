"""The answer of a check."""

import math
from dataclasses import dataclass, field, fields

import numpy as np
import xarray as xr

VERDICTS = ("proved", "sampled", "refuted", "inconclusive")


@dataclass(frozen=True, eq=False)
class Certificate:
    """What was claimed of an estimator, and whether it holds.

    Attributes
    ----------
    property : str
        The claim, in words.
    verdict : str
        ``'proved'`` (rounding errors bounded rigorously), ``'sampled'`` (held wherever tried; `evidence` says where
        and what that means), ``'refuted'`` (with what refutes it in `evidence`) or ``'inconclusive'``.
    bound : float
        The number certified: for contraction the rate per step, for a Lipschitz bound the constant, for the starts
        that a filter forgets their share.
    margin : float
        How far the inequality is from failing, as the smallest eigenvalue of its matrix scaled to unit diagonal (by
        powers of two, so up to a factor 2); a rigorous lower bound where proved, negative where refuted, NaN where
        there is no inequality.
    metric : numpy.ndarray or None
        P in the plant's units, (nstates, nstates): the distance that contracts is
        sqrt(e' P e).
    dtype : str
        Arithmetic of the check.
    evidence : dict
        Further numbers, named.
    gains : xarray.DataArray or None
        Proved bounds of the gain from each measurement (or input) to each estimate (or output), in the plant's
        units: for two runs from the same start, root-mean-square change of the estimate over that of the measurement.
        Infinite where none was found.
    """

    property: str
    verdict: str
    bound: float
    margin: float
    metric: np.ndarray | None
    dtype: str = "float64"
    evidence: dict = field(default_factory=dict)
    gains: xr.DataArray | None = None

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {VERDICTS}, got {self.verdict!r}")

    @property
    def overshoot(self) -> float:
        """Bound on how much a difference can grow before it shrinks: root of the metric's condition number.

        In states scaled to unit diagonal of the metric; NaN without metric.
        """
        if self.metric is None:
            return math.nan
        unit = 1 / np.sqrt(np.diag(self.metric))
        return float(np.sqrt(np.linalg.cond(self.metric * unit * unit[:, None])))

    def __str__(self) -> str:
        certified = "certified " if self.verdict == "proved" else ""
        text = (
            f"  {certified}bound {self.bound:.6f}"
            if self.metric is None
            else f"  {certified}rate {self.bound:.6f} a step"
        )
        if not math.isnan(self.margin):
            text += f", margin {self.margin:.3g} ({self.dtype})"
        lines = [f"{self.property}: {self.verdict.upper()}", text]
        for name, value in self.evidence.items():
            if isinstance(value, str):
                lines.append(f"  {name}: {value}")
            elif np.ndim(value) < 2 or np.size(value) <= 12:
                lines.append(f"  {name}: {np.array2string(np.asarray(value), precision=4, threshold=12)}")
        if self.gains is not None:
            lines.append("  " + _table(self.gains))
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """All fields as JSON knows them; numbers that are not finite become None."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}


def plain(value):
    """Turn arrays and numbers into what JSON knows; not finite becomes None."""
    if isinstance(value, xr.DataArray):
        return plain(value.to_dict()) | {"dtype": str(value.dtype)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _table(gains):
    """Lay gains out as text, but only the largest where there are many."""
    flat = gains.stack(pair=gains.dims)
    what = " ".join(gains.dims[:-1])
    parts = []
    for pair, value in zip(flat["pair"].values, flat.values, strict=True):
        *to, source = pair
        parts.append((float(value), f"{source} -> {' '.join(map(str, to))} {value:.3g}"))
    if len(parts) > 12:
        parts = sorted(parts, reverse=True)[:6]
        what += ", largest six"
    return f"gains of noise ({gains.dims[-1]} -> {what}): " + "; ".join(text for _, text in parts)
