"""The answer of a check."""

from dataclasses import dataclass, field

import numpy as np

VERDICTS = ("proved", "sampled", "refuted", "inconclusive")


@dataclass(frozen=True, eq=False)
class Certificate:
    """What was claimed of an estimator, and whether it holds.

    Attributes
    ----------
    property : str
        The claim, in words.
    verdict : str
        ``'proved'`` (rounding errors bounded rigorously), ``'sampled'`` (held wherever tried),
        ``'refuted'`` (with what refutes it in `evidence`) or ``'inconclusive'``.
    bound : float
        The number certified: for contraction the rate per step.
    margin : float
        How far the inequality is from failing, as the smallest eigenvalue of its matrix scaled to
        unit diagonal; a rigorous lower bound where proved, negative where refuted.
    metric : numpy.ndarray
        P in the plant's units, (nstates, nstates): the distance that contracts is
        sqrt(e' P e).
    dtype : str
        Arithmetic of the check.
    evidence : dict
        Further numbers, named.
    """

    property: str
    verdict: str
    bound: float
    margin: float
    metric: np.ndarray
    dtype: str = "float64"
    evidence: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {VERDICTS}, got {self.verdict!r}")

    def __str__(self) -> str:
        lines = [
            f"{self.property}: {self.verdict.upper()}",
            f"  certified rate {self.bound:.6f} a step, margin {self.margin:.3g} ({self.dtype})",
        ]
        lines += [
            f"  {name}: {np.array2string(np.asarray(value), precision=4, threshold=12)}"
            for name, value in self.evidence.items()
            if np.ndim(value) < 2
        ]
        return "\n".join(lines)
