"""Networks with guarantees by construction: 1-Lipschitz layers and the contracting R2DN."""

from estimators.networks.lipschitz import LipschitzNetwork
from estimators.networks.matrices import R2DNMatrices
from estimators.networks.r2dn import R2DN

__all__ = ["R2DN", "LipschitzNetwork", "R2DNMatrices"]
