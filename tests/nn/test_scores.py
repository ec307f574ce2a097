"""Top-k accuracy and the confusion matrix against scikit-learn."""

import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics

from sdgpu.nn.data import images_from_arrays
from sdgpu.nn.evaluate import confusion_matrix, score, top_k_accuracy


def labelled(n, c, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(c, size=n)
    return images_from_arrays(np.zeros((n, 2, 2), np.uint8), labels, classes=c), rng


@pytest.mark.parametrize(("n", "c"), [(1, 2), (7, 3), (200, 10), (50, 6)])
def test_top_k_is_that_of_scikit_learn(n, c):
    images, rng = labelled(n, c, n)
    P = torch.from_numpy(rng.standard_normal((n, c)))
    labels = images.labels.numpy()
    for k in range(1, c + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that k = c is 1
            scores = P.numpy() if c > 2 else P.numpy()[:, 1] - P.numpy()[:, 0]
            truth = (
                metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(c))
                if c > 2 or k < 2
                else 1
            )
        if c == 2 and k == 1:
            truth = (P.numpy().argmax(axis=1) == labels).mean()
        assert float(top_k_accuracy(P, images, k)) == pytest.approx(truth, abs=1e-15)
    found = score(P, images)
    assert found.accuracy == pytest.approx(float(top_k_accuracy(P, images, 1)), abs=1e-15)
    assert found.top5 == pytest.approx(float(top_k_accuracy(P, images, min(5, c))), abs=1e-15)


def test_ties_go_to_the_smaller_class_as_argmax_and_what_is_no_number_is_no_hit():
    images, _ = labelled(40, 6, 0)
    P = torch.randint(2, (40, 6), generator=torch.Generator().manual_seed(0)).double()
    assert float(top_k_accuracy(P, images, 1)) == score(P, images).accuracy
    ranks = np.argsort(-P.numpy(), axis=1, kind="stable")
    truth = np.mean(
        [label in row[:3] for label, row in zip(images.labels.tolist(), ranks, strict=True)]
    )
    assert float(top_k_accuracy(P, images, 3)) == truth
    assert float(top_k_accuracy(torch.full((40, 6), torch.nan), images, 3)) == 0


@pytest.mark.parametrize(("n", "c"), [(1, 2), (30, 3), (300, 7)])
def test_the_confusion_matrix_is_that_of_scikit_learn(n, c):
    images, rng = labelled(n, c, n)
    P = torch.from_numpy(rng.standard_normal((n, c)))
    truth = metrics.confusion_matrix(images.labels, P.argmax(dim=1), labels=range(c))
    assert confusion_matrix(P, images).tolist() == truth.tolist()
    members = torch.stack([P, -P])
    found = confusion_matrix(members, images)
    assert found[0].tolist() == truth.tolist()
    assert found[1].tolist() == confusion_matrix(-P, images).tolist()
    assert top_k_accuracy(members, images, 2).shape == (2,)
    both = score(members, images)
    assert both.top5 == (score(P, images).top5, score(-P, images).top5)


@pytest.mark.parametrize("k", [0, 4, 1.5])
def test_a_k_that_is_none_is_refused(k):
    images, rng = labelled(5, 3, 0)
    P = torch.from_numpy(rng.standard_normal((5, 3)))
    with pytest.raises((ValueError, TypeError), match="k="):
        top_k_accuracy(P, images, k)
