"""Steps whose first target is another teacher's: the algebra of students.

With a truth G and predictions P of a teacher the targets of step 1 are alpha G + (1 - alpha) P, those of
step t alpha G + (1 - alpha) y(t - 1). That is the chain of G, whose own teacher would be G itself, and what
the teacher adds to it: with H the smoother, u_t[Z] = H^t Z, and s_t = (1 - alpha)^t,

    y(t) = y(t)[G] + s_t u_t[P - G],    y(t)[G] = u_1[G] + sum_{j<t} s_j D_j[G].

alpha = 1 forgets the teacher; alpha = 0 sees the truth through the teacher alone. For P = G it is
self-distillation with its step 1 as the teacher.
"""

from __future__ import annotations

import numpy as np

__all__ = ["mixed_steps", "student_losses", "student_weights"]


def student_losses(triangle: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Sums of squared errors of fixed weights and steps, (.., A, T).

    Parameters
    ----------
    triangle : array (.., 2 T, 2 T)
        R of the columns [D_1 .. D_(T-1), E_1 .. E_T, u_1[G] - Y_val], with E_t = u_t[P - G].
    alphas : array (A,)

    Notes
    -----
    O(A T^3) multiplications for each leading index.
    """
    T, tails = triangle.shape[-1] // 2, 1 - np.asarray(alphas, dtype=float)
    losses = np.empty((*triangle.shape[:-2], len(tails), T))
    for t in range(1, T + 1):
        coefficients = np.zeros((len(tails), 2 * T))
        for j in range(1, t):
            coefficients[:, j - 1] = tails**j
        coefficients[:, T - 2 + t] = tails**t
        coefficients[:, -1] = 1.0
        values = triangle @ coefficients.T  # (.., 2 T, A)
        losses[..., t - 1] = np.einsum("...ka,...ka->...a", values, values)
    return losses


def student_weights(triangle: np.ndarray) -> np.ndarray:
    """The best weight of one step by its normal equation, equation (16) with another teacher, (..).

    f = u_1[G] + (1 - alpha) E_1, so 1 - alpha = -<E_1, u_1[G] - Y> / ||E_1||^2; alpha is 1 where the
    teacher adds nothing.
    """
    T = triangle.shape[-1] // 2
    E, residual = triangle[..., T - 1], triangle[..., -1]
    squares = np.einsum("...k,...k->...", E, E)
    inner = np.einsum("...k,...k->...", E, residual)
    return 1 + np.divide(inner, squares, out=np.zeros_like(inner), where=squares > 0)


def mixed_steps(truth: np.ndarray, extra: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """y(1..T) from u_t[G] and u_t[P - G], (T, ..) each, by weights of steps 1..T (T,).

    y(t) = alpha_t u_1[G] + (1 - alpha_t) H y(t - 1), y(0) = P: with the tails s_j of the last j steps the
    coefficients are 1 of u_1[G], s_j of D_j[G] and s_t of u_t[P - G].
    """
    steps = []
    for t in range(1, len(alphas) + 1):
        tails = np.cumprod(1 - alphas[:t][::-1])  # s_1 .. s_t of step t
        value = truth[0] + tails[t - 1] * extra[t - 1]
        for j in range(1, t):
            value = value + tails[j - 1] * (truth[j] - truth[j - 1])
        steps.append(value)
    return np.stack(steps)
