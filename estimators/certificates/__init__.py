"""Certificates of estimators, checked numerically."""

from estimators.certificates.feedforward import lipschitz_bound
from estimators.certificates.linear_matrix import certify
from estimators.certificates.result import Certificate

__all__ = ["Certificate", "certify", "lipschitz_bound"]
