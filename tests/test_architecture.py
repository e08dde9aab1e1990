"""One direction of dependency, documented public names."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import estimators
import plants

ROOT = Path(__file__).parents[1]
ORDER = [
    "plants.arrays",
    "plants.angles",
    "plants.tracing",
    "plants.program",
    "plants.intervals",
    "plants.recording",
    "plants.region",
    "plants.maps",
    "plants.flow",
    "plants.sampling",
    "plants.record",
    "plants.model",
    "plants.parameters",
    "plants.noise",
    "plants.signals",
    "plants.schema",
    "plants.simulate",
    "plants.catalog",
    "plants.conditions",
    "plants",
    "estimators.base",
    "estimators.files",
    "estimators.gaussian.update",
    "estimators.gaussian.bounds",
    "estimators.gaussian.robust",
    "estimators.gaussian.compiled",
    "estimators.gaussian.state",
    "estimators.gaussian.dispatch",
    "estimators.gaussian.tuning",
    "estimators.gaussian.filter",
    "estimators.gaussian.ekf",
    "estimators.gaussian.exogenous",
    "estimators.gaussian.kalman",
    "estimators.gaussian.ukf",
    "estimators.gaussian.smoother",
    "estimators.gaussian",
    "estimators.particles",
    "estimators.luenberger",
    "estimators.moving_horizon",
    "estimators.replay",
    "estimators.observability",
    "estimators.networks.activations",
    "estimators.networks.lipschitz",
    "estimators.networks.rollout",
    "estimators.networks.matrices",
    "estimators.networks.streaming",
    "estimators.networks.recurrent",
    "estimators.networks.r2dn",
    "estimators.networks.equilibrium",
    "estimators.networks.ren",
    "estimators.networks.initialise",
    "estimators.networks",
    "estimators.certificates.result",
    "estimators.certificates.rigorous",
    "estimators.certificates.dissipation",
    "estimators.certificates.feedforward",
    "estimators.certificates.loops",
    "estimators.certificates.gains",
    "estimators.certificates.linear_matrix",
    "estimators.certificates.semidefinite",
    "estimators.certificates.refine",
    "estimators.certificates.metric_search",
    "estimators.coordinates",
    "estimators.design",
    "estimators.startup",
    "estimators.training",
    "estimators.observer_file",
    "estimators.observer",
    "estimators.search",
    "estimators.network_observer",
    "estimators.run",
    "estimators.correction",
    "estimators.deployment",
    "estimators.metrics",
    "estimators.consistency",
    "estimators.benchmark",
    "estimators.monte_carlo",
    "estimators.certificates.update_map",
    "estimators.certificates.common_metric",
    "estimators.certificates.basin",
    "estimators.certificates.plant_check",
    "estimators.certificates.certify",
    "estimators.certificates.tracker",
    "estimators.certificates.adversary",
    "estimators.certificates.residual_bound",
    "estimators.certificates.residuals",
    "estimators.certificates.invariant",
    "estimators.certificates.error_bound",
    "estimators.certificates",
    "estimators.plotting",
    "estimators.sources",
    "estimators.pipeline",
    "estimators.html_report",
    "estimators.report",
    "estimators.__main__",
]


def rank(name):
    """Place in the order: the longest listed prefix."""
    matches = [p for p in ORDER if name == p or name.startswith(p + ".")]
    return ORDER.index(max(matches, key=len)) if matches else None


def modules():
    for package in ("plants", "estimators"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, path


@pytest.mark.parametrize(
    ("name", "path"),
    [pair for pair in modules() if pair[0] != "estimators"],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_module_imports_only_from_those_above_it(name, path):
    assert rank(name) is not None, f"{name} is not in the order of this test"
    for node in ast.walk(ast.parse(path.read_text())):
        imported = (
            [node.module]
            if isinstance(node, ast.ImportFrom) and node.module
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        for target in imported:
            assert not (name.startswith("plants") and target.startswith("estimators")), f"{name} imports {target}"
            if (
                target.split(".")[0] not in ("plants", "estimators")
                or target == "estimators"
                or (target == "plants" and name.startswith("plants"))
            ):
                continue
            inside = target.startswith("plants.catalog") and name.startswith("plants.catalog")
            assert inside or rank(target) < rank(name), f"{name} imports {target}"


def public():
    for package in (plants, estimators):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value) or inspect.isclass(value) or inspect.ismethod(value):
                yield f"{package.__name__}.{name}", value


@pytest.mark.parametrize(("name", "value"), list(public()), ids=lambda v: v if isinstance(v, str) else "")
def test_public_parameters_are_documented(name, value):
    text = inspect.getdoc(value)
    assert text, f"{name} has no docstring"
    if (
        hasattr(value, "_fields")
        or getattr(value, "_is_protocol", False)
        or name.endswith("StateSpaceModel")
        or name.endswith(("Certificate", "ErrorBound", "FitResult", "OperatingRegion", "PlantCheck"))
    ):
        assert "Attributes" in text or getattr(value, "_is_protocol", False)
        return
    documented = text + (inspect.getdoc(inspect.unwrap(value.__init__)) or "" if inspect.isclass(value) else "")
    for parameter in inspect.signature(value).parameters.values():
        if parameter.name in ("self", "cls", "settings") or parameter.name.startswith("_"):
            continue
        assert re.search(rf"\b{parameter.name}\b", documented), f"{name}: parameter {parameter.name} is not documented"


def test_every_module_imports_and_has_a_docstring():
    for package in (plants, estimators):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not info.name.endswith("__main__"):
                assert importlib.import_module(info.name).__doc__, info.name


def test_nothing_loads_pickles_or_sets_global_state():
    for name, path in modules():
        for forbidden in ("import pickle", "torch.load(", "np.random.seed", "torch.manual_seed", "set_default_dtype"):
            assert forbidden not in path.read_text(), f"{name} uses {forbidden}"
