"""Labels that are wrong on purpose: as many as asked for, of no class too often, and scored beside the clean ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdgpu.nn import Config, distill_chain, load_images, predict, score, with_label_noise
from sdgpu.nn.data import Data, generated_images
from sdgpu.study.networks.experiments import Experiment
from sdgpu.study.networks.network_runs import run_experiment
from tests.nn.problems import data, images, mlp


@pytest.mark.parametrize("share", [0, 0.001, 0.2, 0.4, 0.99])
@pytest.mark.parametrize("n", [3, 50])
def test_so_many_labels_are_wrong(n, share):
    clean = images(n, 1)
    noisy = with_label_noise(clean, share, seed=2)
    assert int((noisy.labels != clean.labels).sum()) == round(share * n)
    assert torch.equal(noisy.clean_labels, clean.labels)
    assert noisy.pixels is clean.pixels
    assert set(noisy.labels.tolist()) <= set(range(clean.classes))


def test_wrong_labels_are_uniform_over_the_other_classes():
    """Chi-square of (clean, wrong) pairs: 90 cells of 100,000 draws, within five standard deviations."""
    clean = generated_images(100_000, size=4)
    noisy = with_label_noise(clean, 0.9)
    table = np.zeros((10, 10))
    np.add.at(table, (clean.labels.numpy(), noisy.labels.numpy()), 1)
    wrong = table[~np.eye(10, dtype=bool)]
    chi_square = ((wrong - 1000) ** 2 / 1000).sum()
    assert abs(chi_square - 90) < 5 * np.sqrt(180)


def test_draws_follow_the_seed_and_noise_on_noise_keeps_the_first_truth():
    clean = images(60, 1)
    first, again, other = (with_label_noise(clean, 0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    wrong = [(noisy.labels != clean.labels).nonzero().flatten() for noisy in (first, other)]
    assert not torch.equal(*wrong)  # other rows too, not other labels alone
    assert torch.equal(with_label_noise(first, 0.5, seed=3).clean_labels, clean.labels)


@pytest.mark.parametrize(
    ("share", "error"), [(-0.1, ValueError), (1, ValueError), (20, ValueError), ("x", TypeError)]
)
def test_bad_shares(share, error):
    with pytest.raises(error, match="label_noise"):
        with_label_noise(images(10, 1), share)
    with pytest.raises(error, match="label_noise"):
        Experiment("bad", "digits", "smallcnn", label_noise=share)


def test_the_test_set_and_the_images_are_those_without_noise():
    plain, noisy = (load_images("digits", val=200, seed=4, label_noise=p) for p in (0.0, 0.3))
    assert torch.equal(plain.test.labels, noisy.test.labels)
    assert noisy.test.clean_labels is None
    wrong = sum(int((p.labels != p.clean_labels).sum()) for p in (noisy.train, noisy.val))
    assert wrong == round(0.3 * (len(noisy.train) + len(noisy.val)))
    for part in (noisy.train, noisy.val):
        assert (part.labels != part.clean_labels).double().mean() == pytest.approx(0.3, abs=0.07)
    rows = torch.tensor([5, 0, 7])
    assert torch.equal(noisy.train.take(rows).clean_labels, noisy.train.clean_labels[rows])
    assert torch.equal(noisy.train.to("cpu").clean_labels, noisy.train.clean_labels)


def test_scores_against_both():
    part = with_label_noise(images(40, 1), 0.5)
    P = part.one_hot(torch.float64)
    ours = score(P, part)
    assert (ours.accuracy, ours.clean_accuracy) == (1.0, 0.5)
    both = score(torch.stack([P, replace(part, labels=part.clean_labels).one_hot()]), part)
    assert (both.accuracy, both.clean_accuracy) == ((1.0, 0.5), (0.5, 1.0))
    assert score(images(9, 2).one_hot(), images(9, 2)).clean_accuracy is None


def test_clean_labels_of_another_length_are_refused():
    parts = data()
    with pytest.raises(ValueError, match=r"train has clean_labels \(3,\) for labels \(24,\)"):
        Data(replace(parts.train, clean_labels=torch.zeros(3, dtype=torch.long)), None, None)


def test_chains_and_experiments_report_both(tmp_path):
    parts = data()
    noisy = Data(with_label_noise(parts.train, 0.25), with_label_noise(parts.val, 0.2), parts.test)
    config = Config(epochs=2, batch=8, lr=1e-2, crop_pad=0, flip=False)
    chain = distill_chain(mlp(), noisy, config, steps=2, alphas=0.5)
    row = chain.rows()[1]
    expected = (
        predict(chain.models[1], noisy.train, config).argmax(-1) == parts.train.labels
    ).double()
    assert row["train_clean_accuracy"] == pytest.approx(float(expected.mean()))
    assert "test_clean_accuracy" not in row

    experiment = Experiment(
        "noisy",
        "generated",
        "smallcnn",
        config,
        steps=1,
        alphas=(0.5,),
        algorithm1=False,
        seeds=(0,),
        rows=60,
        val=20,
        label_noise=0.3,
    )
    results = run_experiment(experiment, tmp_path / "noisy")
    assert results["train_clean_accuracy"].shape == (1, 1, 1)
    assert "test_clean_accuracy" not in results
    again = run_experiment(experiment, tmp_path / "noisy")  # from the chains that it finished
    assert again.equals(results)
    with pytest.raises(ValueError, match="holds another experiment"):
        run_experiment(replace(experiment, label_noise=0.1), tmp_path / "noisy")
