"""
Steps against spikes
====================
Where all directions of the inputs are alike, tuned ridge is the best that shrinks eigenvalues, and distillation
brings nothing. A direction that stands out, and carries more signal than its neighbours, wants to be shrunk less than
they; each step of distillation sets one such spike right. Left: the risk over the number of steps, each with its best
lam and weights. Right: what is left of each part of the targets, for two spikes; the crosses are what the model wants.
"""

import numpy as np
from matplotlib import pyplot as plt

import sdgpu
from sdgpu.distill.filters import train_filter
from sdgpu.study.theory.spiked import SpikedModel, spiked_risks

models = {
    "no spike": SpikedModel(400, 600),
    "one, 30": SpikedModel(400, 600, (30.0,), (1.0,)),
    "two, 60 and 8": SpikedModel(400, 600, (60.0, 8.0), (1.0, 1.0)),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
steps = np.arange(1, 5)
for colour, (name, model) in zip(("gray", "tab:blue", "tab:red"), models.items(), strict=True):
    risks = spiked_risks(model, draws=8)
    risk = risks["risk"]
    left.errorbar(
        steps,
        risk.mean("draw"),
        risk.std("draw", ddof=1) / np.sqrt(8),
        fmt="o-",
        color=colour,
        label=f"spikes: {name}",
    )
    left.axhline(float(risks["least"].mean()), color=colour, linestyle=":")
left.plot([], [], "k:", label="least of all spectral shrinkage")
left.set(xlabel="steps, the ordinary fit included", ylabel="oracle risk", xticks=steps)
left.legend()

model = models["two, 60 and 8"]
draw = model.draw(0)
fit = sdgpu.fit(draw.X, draw.Y, "linear", model.lams(4), method="eigh")
delta = fit.spectrum.eigenvalues
chosen = spiked_risks(model, draws=1).sel(draw=0)
for t, colour in zip((1, 2, 3), ("gray", "tab:blue", "tab:red"), strict=True):
    lam, alphas = float(chosen["lam"].sel(step=t)), chosen["alpha"].values[t - 1, : t - 1]
    name = f"{t} steps" if t > 1 else "ordinary fit"
    right.semilogx(delta, train_filter(delta, lam, alphas)[-1], ".", color=colour, label=name)
Z = fit.spectrum.basis.T @ (draw.X @ draw.beta)
wanted = Z[-2:] ** 2 / (Z[-2:] ** 2 + model.noise**2)
right.plot(delta[-2:], wanted, "kx", ms=9, label="wanted by the spikes")
right.set(xlabel="eigenvalue of K", ylabel="share of the target that is left")
right.legend()
plt.show()

# %%
# Data do not say what the spikes are, but leave-one-out can tell whether distillation is worth it.
print(fit.advise())
