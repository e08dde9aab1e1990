"""Certificates of estimators, checked numerically."""

from estimators.certificates.linear_matrix import certify
from estimators.certificates.result import Certificate

__all__ = ["Certificate", "certify"]
