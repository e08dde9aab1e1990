"""Certificates of estimators, checked numerically; the names for users are in :mod:`estimators`.

Empty of imports: what proves inequalities of matrices lies below training, which reports rates, and what certifies
observers, plants and filters above.
"""
