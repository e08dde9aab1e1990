"""Margins and times of certificates: random and trained subjects of each kind, by size.

python -m tests.benchmarks.certificates
"""

import time

import control as ct
import numpy as np
import torch

import estimators as est
import plants

KINDS = ("R2DN", "REN", "LBDN", "Luenberger", "Kalman")


def make(kind, nx, nv, seed):
    """Random subject of a size."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    rate = (1.0, 0.95, 0.8)[seed % 3]
    if kind == "R2DN":
        return est.R2DN(2, nx, 2, nfeedback=nv, hidden=(nv, nv), contraction_rate=rate, generator=generator)
    if kind == "REN":
        return est.REN(2, nx, 2, nfeedback=nv, contraction_rate=rate, generator=generator)
    if kind == "LBDN":
        return est.LipschitzNetwork((nx, nv, nv, 2), bound=(1.0, 0.1, 30.0)[seed % 3], generator=generator)
    A = rng.standard_normal((nx, nx))
    A *= rng.uniform(0.5, 1.05) / np.abs(np.linalg.eigvals(A)).max()
    C = rng.standard_normal((2, nx))
    model = plants.discretize(ct.ss(A, np.eye(nx, 1), C, np.zeros((2, 1)), dt=0.1))
    noise = plants.GaussianNoise(rng.uniform(0.01, 1, nx), rng.uniform(0.01, 1, 2))
    if kind == "Kalman":
        return est.KalmanFilter(model, noise)
    observer = est.LuenbergerObserver.from_noise(model, noise)
    if seed % 2:
        observer = est.LuenbergerObserver(model, model.matrices[0] @ observer.gain.numpy(), form="predictor")
    return observer


def train(kind, subject, seed, updates=30):
    """Fit a network to a random target, so that its parameters are no longer those of a random start."""
    if kind in ("Luenberger", "Kalman"):
        return  # a gain is not trained
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(subject.parameters(), lr=0.01)
    u = torch.randn(16, 20, subject.sizes[0] if kind == "LBDN" else 2, generator=generator)
    target = torch.randn(16, 20, 2, generator=generator)
    for _ in range(updates):
        out = subject(u) if kind == "LBDN" else subject(u)[0]
        optimiser.zero_grad()
        (out - target).square().mean().backward()
        optimiser.step()


def main():
    """Print a row for each kind and size."""
    print(
        "| kind | nx, nv | proved | smallest margin | certify, median [ms] | largest [ms] |\n|---|---|---|---|---|---|"
    )
    for kind in KINDS:
        for nx, nv, count in ((2, 4, 20), (10, 10, 20), (51, 50, 6), (75, 75, 4)):
            proved, margins, times = 0, [], []
            for seed in range(count):
                subject = make(kind, nx, nv, seed)
                if seed % 2:
                    train(kind, subject, seed)
                began = time.perf_counter()
                certificate = est.certify(subject)
                times.append(1e3 * (time.perf_counter() - began))
                proved += certificate.verdict == "proved"
                margins.append(certificate.margin)
            print(
                f"| {kind} | {nx}, {nv} | {proved} of {count} | {np.min(margins):.1e} | {np.median(times):.0f} | "
                f"{max(times):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
