"""One place for tolerances; a test that overrides one says why."""

ROUNDING = 1e-12
"""float64 arithmetic of a few hundred operations."""
REFERENCE = 1e-10
"""Agreement with the published implementation's float64 vectors, as the project asks."""
FIELD_CASE = 1e-6
"""Relative agreement with the field cases' independent values, float64."""
EQUAL_FILTERS = 1e-8
"""KF, EKF and UKF on a linear plant."""
TRACED_VALUE = 1e-10
"""A plant's batched map against column-by-column calls of the function itself."""
TRACED_JACOBIAN = 1e-6
"""Jacobians against analytic ones; central differences reach about 1e-9 relative."""
TWO_SPEEDS = 1e-10
"""A filter's straight-line code against its tensors, as the project asks; relative to the largest value."""
