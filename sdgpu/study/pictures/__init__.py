"""Pictures by matplotlib, in colours that all can tell apart; nothing else here imports it.

Functions with `ax=` draw into axes that are given, or into new ones, and return them; those named
``.._figure`` make a figure of several panels. None touches global state:
``plot_losses(..).figure.savefig(path)``.
"""

from sdgpu.study.pictures.curves import plot_cost, plot_learning_curves, plot_rules
from sdgpu.study.pictures.globe_figures import globe_figure, plot_coast
from sdgpu.study.pictures.loss_maps import loss_heatmap, plot_alpha_star, plot_losses
from sdgpu.study.pictures.paper_figures import (
    accuracy_figure,
    constrained_figure,
    diagonal_figure,
    plot_accuracies,
    ratio_figure,
    steps_figure,
)
from sdgpu.study.pictures.relevance import plot_relevance
from sdgpu.study.pictures.spectra import plot_filters
from sdgpu.study.pictures.theory_figures import (
    plot_alpha_signs,
    plot_linear_features,
    plot_risk,
    plot_tangent,
)

__all__ = [
    "accuracy_figure",
    "constrained_figure",
    "diagonal_figure",
    "globe_figure",
    "loss_heatmap",
    "plot_accuracies",
    "plot_alpha_signs",
    "plot_alpha_star",
    "plot_coast",
    "plot_cost",
    "plot_filters",
    "plot_learning_curves",
    "plot_linear_features",
    "plot_losses",
    "plot_relevance",
    "plot_risk",
    "plot_rules",
    "plot_tangent",
    "ratio_figure",
    "steps_figure",
]
