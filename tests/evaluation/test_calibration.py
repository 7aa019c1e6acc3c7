"""Scales of names, against what they were made from."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from evaluation.calibration import CalibrationConfig, by_captions, standardised
from evaluation.training_images import named

NAMES = (("cat", "kitten"), ("dog",))


def test_standardised_scores_have_mean_zero_and_spread_one() -> None:
    scores_RC = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 0.1 + torch.tensor(
        [0.1, 0, 2]
    )
    scaled_RC = standardised(scores_RC)(scores_RC)
    assert torch.allclose(scaled_RC.mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(scaled_RC.std(0), torch.ones(3), atol=1e-4)


def test_captions_name_a_class_by_its_synonyms_and_plurals() -> None:
    nouns = [["kittens", "tree"], ["dog", "cat"], []]
    assert named(nouns, NAMES).tolist() == [[True, False], [True, True], [False, False]]


def noisy(images: int, classes: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Two regions an image; those of named classes score higher, and every class is off by a constant."""
    rng = np.random.default_rng(0)
    named_NC = rng.random((images, classes)) < np.linspace(0.2, 0.5, classes)
    image_R = np.repeat(np.arange(images), 2)
    scores_RC = rng.normal(0, 0.05, (len(image_R), classes)) + np.linspace(0, 1, classes)
    scores_RC[::2] += 0.1 * named_NC
    return torch.from_numpy(scores_RC).float(), image_R, named_NC


def test_log_odds_of_captions_are_those_of_a_logistic_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.calibration.SHRINKAGE", np.zeros(2))
    scores_RC, image_R, named_NC = noisy(400, 3)
    found = by_captions(scores_RC, image_R, named_NC, prior=1.0)
    best_NC = scores_RC.reshape(400, 2, 3).amax(1).numpy()
    for c in range(3):
        oracle = LogisticRegression(C=1e9, max_iter=1000, tol=1e-8)
        oracle.fit((best_NC[:, c : c + 1] - best_NC.mean()) / best_NC.std(), named_NC[:, c])
        logits = oracle.decision_function((best_NC[:, c : c + 1] - best_NC.mean()) / best_NC.std())
        ours = best_NC[:, c] * found.slope_C[c].item() + found.intercept_C[c].item()
        assert np.abs(logits - ours).max() < 0.05


def test_calibrated_scores_find_classes_that_constants_had_hidden() -> None:
    scores_RC, image_R, named_NC = noisy(400, 3)
    alone = named_NC.sum(1) == 1
    truth = named_NC[alone].argmax(1)
    first_RC = scores_RC[::2][torch.from_numpy(alone)]
    calibrated_RC = by_captions(scores_RC, image_R, named_NC, prior=0.0)(first_RC)
    assert (first_RC.argmax(1).numpy() == truth).mean() < 0.6  # the last class is always the highest
    assert (calibrated_RC.argmax(1).numpy() == truth).mean() > 0.8


def test_class_that_no_caption_names_takes_its_slope_from_the_others() -> None:
    scores_RC, image_R, named_NC = noisy(400, 3)
    named_NC[:, 1] = False
    found = by_captions(scores_RC, image_R, named_NC, prior=0.0)
    assert torch.isfinite(found.intercept_C).all()
    assert found.slope_C[1] > 0


def test_unknown_calibration_is_refused() -> None:
    unknown: Any = "platt"
    with pytest.raises(ValueError, match="give none, standard or captions"):
        CalibrationConfig(kind=unknown)
