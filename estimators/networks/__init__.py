"""Networks with guarantees by construction: 1-Lipschitz layers, R2DN and REN."""

from estimators.networks.initialise import from_explicit, from_linear, long_memory
from estimators.networks.lipschitz import LipschitzNetwork
from estimators.networks.matrices import R2DNMatrices
from estimators.networks.r2dn import R2DN
from estimators.networks.ren import REN, RENMatrices

__all__ = [
    "R2DN",
    "REN",
    "LipschitzNetwork",
    "R2DNMatrices",
    "RENMatrices",
    "from_explicit",
    "from_linear",
    "long_memory",
]
