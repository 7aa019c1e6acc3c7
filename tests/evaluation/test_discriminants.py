"""What captions teach of pictures, against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from evaluation.discriminants import DiscriminantConfig, away_from_picture, image_token, learn

NAMES = (("cat", "kitten"), ("dog",), ("yak",))
DIMENSIONS = 6


def fits(tokens_RD: torch.Tensor) -> torch.Tensor:
    """A poor namer: cats lie on dimension 2, by little, dogs opposite; yaks anywhere."""
    return tokens_RD[:, 2, None] * torch.tensor([1.0, -1.0, 0.0])


def captioned(images: int) -> list[tuple[torch.Tensor, list[str]]]:
    """Images of three regions, a cat's or a dog's, that differ mostly in what is no part of either."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(images):
        cat = number % 3 == 0
        tokens = rng.normal(0, 0.02, (3, DIMENSIONS))
        tokens[:, 0] += rng.uniform(1, 2)  # the scene
        tokens[:, 1] += 0.05 if cat else -0.05
        found.append((torch.from_numpy(tokens).half(), ["kittens", "tree"] if cat else ["dog"]))
    return found


def test_discriminant_of_two_classes_is_that_of_scikit_learn() -> None:
    images = captioned(600)
    found = learn(images, NAMES[:2], lambda tokens_RD: fits(tokens_RD)[:, :2], shrinkage=1e-6)
    tokens_ND = torch.stack([image_token(regions) for regions, _ in images]).double().numpy()
    cats_N = np.array([nouns[0] != "dog" for _, nouns in images])
    oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(tokens_ND, cats_N).coef_[0]
    for ours, sign in zip(found.picture_DC.T.double().numpy(), (1, -1), strict=True):
        cosine = ours @ oracle / np.linalg.norm(ours) / np.linalg.norm(oracle)
        assert (
            cosine * sign > 0.999
        )  # the covariance of all differs from that within by a multiple of the answer


def test_scores_are_standard_deviations_above_the_average_image() -> None:
    images = captioned(600)
    found = learn(images, NAMES, fits, shrinkage=1e-3)
    scores_NC = torch.stack([found.of_picture(regions) for regions, _ in images])
    assert torch.allclose(scores_NC.mean(0), torch.zeros(3), atol=1e-3)
    assert torch.allclose(
        scores_NC.std(0), torch.tensor([1.0, 1.0, 0.0]), atol=0.01
    )  # no caption names a yak
    cats_N = torch.tensor([nouns[0] != "dog" for _, nouns in images])
    assert (scores_NC[cats_N, 0].min() > scores_NC[~cats_N, 0].max()).item()


def test_class_that_every_caption_names_tells_nothing() -> None:
    images = [(regions, [*nouns, "yak"]) for regions, nouns in captioned(90)]
    found = learn(images, NAMES, fits, shrinkage=0.5)
    assert found.picture_DC.isfinite().all()
    assert found.of_picture(images[0][0])[2] == 0


def test_images_in_several_chunks_teach_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images = captioned(90)
    whole = learn(images, NAMES, fits, shrinkage=0.5)
    monkeypatch.setattr("evaluation.discriminants.CHUNK", 7)
    pieces = learn(iter(images), NAMES, fits, shrinkage=0.5)
    torch.testing.assert_close(pieces.picture_DC, whole.picture_DC)


def test_class_of_one_caption_is_scored_and_those_of_none_are_not() -> None:
    few = [(tokens, nouns if number == 0 else []) for number, (tokens, nouns) in enumerate(captioned(90))]
    scores_C = learn(few, NAMES, fits, shrinkage=0.5).of_picture(few[0][0])
    assert scores_C[0] > 0
    assert scores_C[1:].tolist() == [0, 0]


@pytest.mark.parametrize(
    "wrong", [{"weight": -1.0}, {"region_weight": -0.1}, {"shrinkage": 0.0}, {"shrinkage": 1.5}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shrinkage lies in"):
        DiscriminantConfig(**wrong)  # type: ignore[arg-type]


def scenes(images: int, noise: float = 0.02) -> list[tuple[torch.Tensor, list[str]]]:
    """Images of four regions, of which one is a cat or a dog; dimension 1 tells, and its picture hides it."""
    rng = np.random.default_rng(1)
    found = []
    for number in range(images):
        tokens = rng.normal(0, noise, (4, DIMENSIONS))
        tokens[:, 0] += 1
        tokens[:, 1] += rng.normal(0, 0.2)  # the picture's own: larger than what tells its regions apart
        sign = 1 if number % 2 else -1
        tokens[number % 4, 1] += sign * 0.1
        tokens[number % 4, 2] += sign * 0.1
        found.append((torch.from_numpy(tokens), ["cat"] if sign > 0 else ["dog"]))
    return found


def test_discriminants_find_the_named_region_among_those_of_its_picture() -> None:
    images = scenes(200)
    found = learn(images, NAMES, fits, shrinkage=0.1)
    scores = [found.of_regions(regions) for regions, _ in images]
    for number, score_RC in enumerate(scores):
        assert score_RC[:, int(number % 2 == 0)].argmax() == number % 4
    assert torch.cat(scores).std(0).numpy() == pytest.approx([1, 1, 0], abs=0.01)
    assert torch.cat(scores).mean(0).numpy() == pytest.approx(0, abs=1e-5)


def test_discriminants_of_regions_are_those_of_scikit_learn() -> None:
    images = [image for image in scenes(2000, noise=0.05) if image[1] == ["cat"]]
    found = learn(images, NAMES[:1], lambda tokens_RD: fits(tokens_RD)[:, :1], shrinkage=1e-6)
    tokens_RD = torch.cat([away_from_picture(regions) for regions, _ in images])
    best_R = torch.cat([fits(regions)[:, 0] == fits(regions)[:, 0].max() for regions, _ in images])
    oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(tokens_RD.numpy(), best_R.numpy()).coef_[0]
    ours = found.region_DC[:, 0].numpy()
    assert ours @ oracle / np.linalg.norm(ours) / np.linalg.norm(oracle) > 0.999


def test_picture_of_one_region_teaches_nothing_of_regions() -> None:
    alone = [(regions[:1], nouns) for regions, nouns in scenes(40)]
    found = learn(alone, NAMES, fits, shrinkage=0.5)
    assert found.of_regions(alone[0][0]).tolist() == [[0, 0, 0]]
    assert found.picture_DC.isfinite().all()
