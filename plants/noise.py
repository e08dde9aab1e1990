"""Additive process and measurement noise, Gaussian and otherwise."""

from dataclasses import dataclass, field

import numpy as np
import scipy.stats

from plants.arrays import as_covariance, as_tensor, covariance_factor


@dataclass(frozen=True, eq=False)
class GaussianNoise:
    """White Gaussian noise: x_{k+1} = f(x_k, u_k + n_k) + w_k, y_k = h(x_k, u_k + n_k) + v_k.

    Noise that is not additive enters through inputs of the plant: a disturbance, an actuator's error, a
    sensor's gain error are inputs with a variance here, whose recorded value is the known part (often zero).

    Parameters
    ----------
    process_cov : array_like
        Covariance of w per step, (nstates, nstates), or variances (nstates,).
    measurement_cov : array_like
        Covariance of v, (noutputs, noutputs), or variances (noutputs,).
    input_cov : array_like, optional
        Covariance of n, (ninputs, ninputs), or variances (ninputs,). Default: inputs are known exactly.

    Raises
    ------
    ValueError
        Not symmetric, not positive semidefinite, not finite.
    """

    process_cov: np.ndarray
    measurement_cov: np.ndarray
    input_cov: np.ndarray | None = field(default=None, kw_only=True)

    def __post_init__(self):
        for name in ("process_cov", "measurement_cov", "input_cov"):
            if getattr(self, name) is None and name == "input_cov":
                continue
            value = as_tensor(getattr(self, name), name)
            size = value.shape[-1] if value.ndim else 1
            object.__setattr__(self, name, as_covariance(value, name, size))

    @classmethod
    def from_control(cls, QN, RN, G=None) -> "GaussianNoise":
        """Take python-control's matrices of a discrete plant, x+ = A x + B u + G w, as in ``control.dlqe``.

        Parameters
        ----------
        QN, RN : array_like
            Covariances of w and v, (nw, nw) and (noutputs, noutputs).
        G : array_like, optional
            (nstates, nw). Default: the identity.

        Returns
        -------
        GaussianNoise
        """
        if G is None:
            return cls(QN, RN)
        G = as_tensor(G, "G").numpy()
        if G.ndim != 2:
            raise ValueError(f"G must be a matrix (nstates, nw), got shape {G.shape}")
        return cls(G @ as_covariance(QN, "QN", G.shape[1]) @ G.T, RN)

    def check_sizes(self, model) -> None:
        """Raise ValueError unless the covariances fit the plant."""
        for name, size, what in (
            ("process_cov", model.nstates, "states"),
            ("measurement_cov", model.noutputs, "outputs"),
            ("input_cov", model.ninputs, "inputs"),
        ):
            if getattr(self, name) is not None and len(getattr(self, name)) != size:
                raise ValueError(
                    f"{name} must be ({size}, {size}) for the plant's {size} {what}, got {getattr(self, name).shape}"
                )

    def _unit(self, rng: np.random.Generator, shape: tuple) -> np.ndarray:
        """White noise with unit variance."""
        return rng.standard_normal(shape)

    def process(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """Draw process noise, (*shape, nstates)."""
        return self._unit(rng, (*shape, len(self.process_cov))) @ covariance_factor(self.process_cov).T

    def measurement(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """Draw measurement noise, (*shape, noutputs)."""
        return self._unit(rng, (*shape, len(self.measurement_cov))) @ covariance_factor(self.measurement_cov).T

    def input(self, rng: np.random.Generator, *shape: int) -> np.ndarray | float:
        """Draw the noise of the inputs, (*shape, ninputs); 0 where they are known exactly."""
        if self.input_cov is None:
            return 0.0
        return self._unit(rng, (*shape, len(self.input_cov))) @ covariance_factor(self.input_cov).T


@dataclass(frozen=True, eq=False)
class OutlierNoise(GaussianNoise):
    """Gaussian noise in which a measurement is an outlier with some probability.

    ``measurement_cov`` is that of the ordinary samples. An outlier's noise is larger by a
    factor `scale`, in all outputs of the instant together.

    Parameters
    ----------
    process_cov, measurement_cov, input_cov : array_like
        As for :class:`GaussianNoise`.
    probability : float
        Share of outliers, in [0, 1].
    scale : float
        Standard deviation of an outlier over that of an ordinary sample.
    """

    probability: float = 0.1
    scale: float = 10.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {self.probability}")
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    def measurement(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """Draw measurement noise, (*shape, noutputs)."""
        outlier = rng.random(shape) < self.probability
        return super().measurement(rng, *shape) * np.where(outlier, self.scale, 1.0)[..., None]


@dataclass(frozen=True, eq=False)
class StudentNoise(GaussianNoise):
    """Measurement noise with heavy tails: Student's t, scaled to the stated covariance.

    Parameters
    ----------
    process_cov, measurement_cov, input_cov : array_like
        As for :class:`GaussianNoise`.
    degrees_of_freedom : float
        Above 2, so that there is a covariance; all outputs of an instant share one draw of the scale.
    """

    degrees_of_freedom: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        if not self.degrees_of_freedom > 2:
            raise ValueError(f"degrees_of_freedom must be above 2, got {self.degrees_of_freedom}")

    def measurement(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """Draw measurement noise, (*shape, noutputs)."""
        df = self.degrees_of_freedom
        scale = np.sqrt((df - 2) / rng.chisquare(df, shape))
        return super().measurement(rng, *shape) * scale[..., None]


@dataclass(frozen=True, eq=False)
class BoundedNoise(GaussianNoise):
    """Gaussian noise without its tails: draws beyond a bound are drawn again.

    What an error bound for bounded noise presupposes. The covariances are those of the Gaussian before.

    Parameters
    ----------
    process_cov, measurement_cov, input_cov : array_like
        As for :class:`GaussianNoise`; for channels that are correlated the bound is on the independent parts.
    bound : float
        In standard deviations, positive.
    """

    bound: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        if not self.bound > 0:
            raise ValueError(f"bound must be positive, got {self.bound}")

    def _unit(self, rng: np.random.Generator, shape: tuple) -> np.ndarray:
        """Draw truncated white noise, by the quantiles of what is left."""
        tail = scipy.stats.norm.cdf(-self.bound)
        return scipy.stats.norm.ppf(rng.uniform(tail, 1 - tail, shape))

    @property
    def process_bound(self) -> np.ndarray:
        """Largest process noise of each state, (nstates,)."""
        return self.bound * np.abs(covariance_factor(self.process_cov)).sum(1)

    @property
    def measurement_bound(self) -> np.ndarray:
        """Largest measurement noise of each output, (noutputs,)."""
        return self.bound * np.abs(covariance_factor(self.measurement_cov)).sum(1)


@dataclass(frozen=True, eq=False)
class BiasedNoise(GaussianNoise):
    """Gaussian noise with a constant sensor bias.

    Parameters
    ----------
    process_cov, measurement_cov, input_cov : array_like
        As for :class:`GaussianNoise`.
    bias : array_like
        (noutputs,), added to every measurement.
    """

    bias: np.ndarray = 0.0

    def measurement(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """Draw measurement noise, (*shape, noutputs)."""
        return super().measurement(rng, *shape) + np.asarray(self.bias, dtype=float)
