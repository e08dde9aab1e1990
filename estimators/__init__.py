"""Estimators: Gaussian filters, contracting observers, benchmarks and certificates."""

from estimators.base import Estimate, Estimator
from estimators.benchmark import benchmark
from estimators.certificates.certify import certify, refine
from estimators.certificates.error_bound import ErrorBound, certify_error
from estimators.certificates.feedforward import lipschitz_bound
from estimators.certificates.plant_check import PlantCheck, check_plant
from estimators.certificates.result import Certificate
from estimators.consistency import consistency
from estimators.correction import CorrectedState, LearnedCorrection
from estimators.deployment import control_state, export_onnx, to_control
from estimators.gaussian import (
    CubatureKalmanFilter,
    ExogenousKalmanFilter,
    ExtendedKalmanFilter,
    GaussianState,
    IteratedExtendedKalmanFilter,
    KalmanFilter,
    SteadyState,
    TuneResult,
    UnscentedKalmanFilter,
    steady_state,
)
from estimators.luenberger import LuenbergerObserver
from estimators.monte_carlo import monte_carlo
from estimators.moving_horizon import MovingHorizonEstimator
from estimators.network_observer import NetworkObserver, NetworkState
from estimators.networks import R2DN, REN, LipschitzNetwork, R2DNMatrices, RENMatrices
from estimators.observability import Observability, observability
from estimators.observer import ObserverState, R2DNObserver
from estimators.particles import EnsembleKalmanFilter, ParticleFilter, ParticleState
from estimators.plotting import plot_consistency, plot_error_decay, plot_estimates, plot_training, plot_tube
from estimators.replay import Replay
from estimators.run import run, smooth
from estimators.search import SearchResult, search
from estimators.training import FitResult

load = R2DNObserver.load

__all__ = [
    "R2DN",
    "REN",
    "Certificate",
    "CorrectedState",
    "CubatureKalmanFilter",
    "EnsembleKalmanFilter",
    "ErrorBound",
    "Estimate",
    "Estimator",
    "ExogenousKalmanFilter",
    "ExtendedKalmanFilter",
    "FitResult",
    "GaussianState",
    "IteratedExtendedKalmanFilter",
    "KalmanFilter",
    "LearnedCorrection",
    "LipschitzNetwork",
    "LuenbergerObserver",
    "MovingHorizonEstimator",
    "NetworkObserver",
    "NetworkState",
    "Observability",
    "ObserverState",
    "ParticleFilter",
    "ParticleState",
    "PlantCheck",
    "R2DNMatrices",
    "R2DNObserver",
    "RENMatrices",
    "Replay",
    "SearchResult",
    "SteadyState",
    "TuneResult",
    "UnscentedKalmanFilter",
    "benchmark",
    "certify",
    "certify_error",
    "check_plant",
    "consistency",
    "control_state",
    "export_onnx",
    "lipschitz_bound",
    "load",
    "monte_carlo",
    "observability",
    "plot_consistency",
    "plot_error_decay",
    "plot_estimates",
    "plot_training",
    "plot_tube",
    "refine",
    "run",
    "search",
    "smooth",
    "steady_state",
    "to_control",
]
