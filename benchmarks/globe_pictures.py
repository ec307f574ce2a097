"""Maps for several k below the truth: `python -m benchmarks.globe_pictures NAME OUT.jpg K:ROWS ..`.

NAME is earth or marble, ROWS about how many points are trained on (0 for all). lam is chosen on the
validation points, among those with which ridge is the best step and weight; errors are of the test points.
"""

from __future__ import annotations

import sys
import time
import warnings

import numpy as np

import sdgpu
from sdgpu.study.pictures import globe_figure
from sdgpu.study.real_data.globe_maps import predicted_map
from sdgpu.study.real_data.large_data import load_large

LAMS = np.geomspace(1e-9, 1e-3, 13)


def main(name: str, out: str, wanted: list[str]) -> None:
    """Print a line for each k, and draw all maps."""
    warnings.simplefilter("ignore")
    maps = {}
    for text in wanted:
        k, rows = map(int, text.split(":"))
        start = time.perf_counter()
        data = load_large(name, rows=rows or None)
        kernel, n = sdgpu.Gaussian(data.gamma(k)), data.train.n
        features = sdgpu.Nystrom(k).prepare(kernel, data.sample, 3, 0)
        fit = sdgpu.fit(
            data.train,
            None,
            kernel,
            LAMS * n,
            features=sdgpu.Nystrom(landmarks=features.landmarks),
            intercept=True,
        )
        best = fit.sweep(data.X_val, data.Y_val, steps=1).best("ridge")
        predicted = fit.path(best.lam).predict(data.X_test)[0]
        error = np.mean((predicted - data.Y_test) ** 2)
        truth, drawn = predicted_map(fit, best, data.grid)
        maps["truth"], maps[f"{k:,} features, {n:,} points"] = truth, drawn
        spent = time.perf_counter() - start
        print(
            f"| {k:,} | {n:,} | {best.lam / n:.0e} | {error:.5f} | {n / fit.info.seconds['rows']:,.0f} | "
            f"{spent:.0f} s | {fit.info.status}",
            flush=True,
        )
    globe_figure(maps).savefig(out, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
