"""One namespace for plant functions that run on NumPy arrays and on torch tensors."""

from types import ModuleType

import numpy as np
import torch


def array_namespace(x) -> ModuleType:
    """Return the module whose ``sin``, ``sqrt``, ``where``, ... act on `x`.

    A plant written with it is differentiable and batched without tracing
    (the ``'autodiff'`` route of :func:`plants.discretize`) and still works with
    python-control, which calls it with NumPy arrays.

    Parameters
    ----------
    x : array_like or torch.Tensor
        State or input as passed to the plant function.

    Returns
    -------
    module
        ``torch`` for a tensor, ``numpy`` for everything else.

    Examples
    --------
    >>> def update(t, x, u, params):
    ...     xp = array_namespace(x)
    ...     return [x[1], u[0] - 9.81 * xp.sin(x[0])]
    """
    return torch if isinstance(x, torch.Tensor) else np


def as_tensor(value, name: str, size: int | None = None, *, finite: bool = True) -> torch.Tensor:
    """Convert array-likes to a float64 tensor and check the length of the last axis.

    Parameters
    ----------
    value : array_like or torch.Tensor
        Real numbers of any dtype; integers, booleans and float32 are widened exactly.
    name : str
        The caller's argument, named in errors.
    size : int, optional
        Required length of the last axis.
    finite : bool
        Refuse NaN and infinities.

    Returns
    -------
    torch.Tensor
        float64, same shape and device.

    Raises
    ------
    TypeError
        `value` is not numeric or is complex.
    ValueError
        The last axis has another length, or `value` is not finite.
    """
    if hasattr(value, "index") and hasattr(value, "to_numpy") and any(isinstance(key, str) for key in value.index):
        raise TypeError(f"{name} has labels {list(value.index)}, which are not matched here: give its values in order")
    try:
        tensor = (
            value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value, dtype=_real_dtype(value)))
        )
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers, got {value!r}") from error
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got dtype {tensor.dtype}")
    tensor = tensor.to(torch.float64)
    if size is not None and (tensor.ndim == 0 or tensor.shape[-1] != size):
        raise ValueError(f"{name} must have shape (..., {size}), got {tuple(tensor.shape)}")
    if finite and not bool(torch.isfinite(tensor).all()):
        where = np.argwhere(~np.isfinite(tensor.detach().cpu().numpy()))[0].tolist()
        raise ValueError(f"{name} must be finite, got {tensor[tuple(where)].item()} at index {where}")
    return tensor


def _real_dtype(value):
    if np.iscomplexobj(value):
        raise TypeError("complex")
    return np.float64


def as_covariance(value, name: str, size: int, *, batch: bool = False) -> np.ndarray:
    """Validate a covariance matrix; a vector is taken as variances, a scalar as a common variance.

    Parameters
    ----------
    value : array_like
        Scalar, (size,) variances or (size, size) matrix.
    name : str
        The caller's argument, named in errors.
    size : int
        Dimension of the random vector.
    batch : bool
        Take (..., size, size) matrices as well.

    Returns
    -------
    numpy.ndarray
        (size, size), or (..., size, size), float64, exactly symmetric.

    Raises
    ------
    ValueError
        Wrong shape (a sequence of matrices included, unless `batch`), not finite, not symmetric, or with an
        eigenvalue below rounding level.
    """
    matrix = as_tensor(value, name).detach().cpu().numpy()
    if matrix.ndim == 0:
        matrix = matrix * np.eye(size)
    elif matrix.shape == (size,):
        matrix = np.diag(matrix)
    if matrix.shape[-2:] != (size, size) or (matrix.ndim > 2 and not batch):
        raise ValueError(
            f"{name} must be a scalar, ({size},) variances or a ({size}, {size}) matrix, got shape {matrix.shape}"
        )
    unit = _deviations(matrix)
    scale = unit[..., :, None] * unit[..., None, :] + np.finfo(float).tiny
    asymmetry = np.abs(matrix - matrix.swapaxes(-1, -2)) / scale
    if np.any(asymmetry > 1e-8):
        *lead, i, j = (int(k) for k in np.unravel_index(np.argmax(asymmetry), matrix.shape))
        raise ValueError(
            f"{name} must be symmetric, got entries {matrix[(*lead, i, j)]:g} and {matrix[(*lead, j, i)]:g} at "
            f"({i}, {j}) and ({j}, {i})" + (f" of matrix {lead}" if lead else "")
        )
    matrix = (matrix + matrix.swapaxes(-1, -2)) / 2
    # judged as a correlation matrix, so that units (1e-9 beside 1e6) do not hide a negative eigenvalue
    smallest = np.linalg.eigvalsh(matrix / scale)[..., 0] if size else np.zeros(matrix.shape[:-2])
    if np.any(smallest < -1e-10 * max(size, 1)):
        where = np.unravel_index(np.argmin(smallest), smallest.shape)
        raise ValueError(
            f"{name} must be positive semidefinite, its scaled smallest eigenvalue is {smallest[where]:.3g}"
            + (f" in matrix {[int(k) for k in where]}" if where else "")
        )
    return matrix


def _deviations(matrix: np.ndarray) -> np.ndarray:
    deviation = np.sqrt(np.maximum(np.diagonal(matrix, axis1=-2, axis2=-1), 0))
    return np.where(deviation > 0, deviation, 1.0)


def covariance_factor(matrix: np.ndarray) -> np.ndarray:
    """Return F with F F' = `matrix`, also where it is singular or badly scaled.

    Parameters
    ----------
    matrix : numpy.ndarray
        (..., n, n) symmetric positive semidefinite.

    Returns
    -------
    numpy.ndarray
        (..., n, n) factor; not triangular in general.
    """
    unit = _deviations(matrix)
    values, vectors = np.linalg.eigh(matrix / (unit[..., :, None] * unit[..., None, :]))
    return unit[..., None] * vectors * np.sqrt(np.maximum(values, 0))[..., None, :]
