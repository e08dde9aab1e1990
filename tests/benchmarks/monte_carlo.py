"""Monte Carlo on one and on two Dask workers: time, and whether the numbers are the same.

python -m tests.benchmarks.monte_carlo     (needs the extra dask; a few minutes on two idle cores)
"""

import time

import numpy as np
import torch
from distributed import Client, LocalCluster

import estimators as est
import plants

CONDITIONS = ("nominal", "parameters 30 %", "outliers", "missing samples")


def main():
    """Print seconds and the ratio, best of three interleaved rounds each."""
    torch.set_num_threads(1)
    setting = plants.scenario("quadruple_tank")
    filters = {
        "EKF": est.ExtendedKalmanFilter(setting.model, setting.noise),
        "UKF": est.UnscentedKalmanFilter(setting.model, setting.noise),
        "particles": est.ParticleFilter(setting.model, setting.noise, particles=200),
    }
    conditions = {name: plants.CONDITIONS[name] for name in CONDITIONS}
    taken, tables = {1: [], 2: []}, {}
    clusters = {n: LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=None) for n in taken}
    clients = {n: Client(cluster) for n, cluster in clusters.items()}
    for client in clients.values():  # imports, and the plant discretised once
        est.monte_carlo(filters, setting, conditions, seeds=1, trajectories=4, steps=10, client=client, progress=False)
    for _ in range(3):
        for n, client in clients.items():
            began = time.perf_counter()
            tables[n] = est.monte_carlo(filters, setting, conditions, seeds=6, client=client, progress=False)
            taken[n].append(time.perf_counter() - began)
    for resource in (*clients.values(), *clusters.values()):
        resource.close()
    one, two = (min(taken[n]) for n in (1, 2))
    same = np.array_equal(tables[1]["rmse"], tables[2]["rmse"], equal_nan=True)
    print(f"one worker {one:.1f} s, two workers {two:.1f} s: {one / two:.2f} times; identical numbers: {same}")


if __name__ == "__main__":
    main()
