"""GroupViT by hand; against `transformers` it is held in test_groupvit_parity.py."""

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.groupvit_oracle import TINY, images, texts
from training.assignment import hard_assignment
from training.groupvit import GroupedImage, GroupViT, GroupViTConfig, group_masks
from training.groupvit_inference import group_logits, pixel_logits
from training.gumbel import sample_keys
from training.losses import caption_contrast


@pytest.fixture
def fresh() -> GroupViT:
    torch.manual_seed(0)
    return GroupViT(TINY)


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hard_assignment_is_exactly_one_hot(noisy: bool, dtype: torch.dtype) -> None:
    keys = sample_keys(["a", "b"], seed=0, epoch=0) if noisy else None
    assigned = hard_assignment(images(2, 5, 40).to(dtype), keys)
    assert assigned.dtype == dtype
    assert set(assigned.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(assigned.sum(dim=1), torch.ones(2, 40, dtype=dtype))


def test_hard_assignment_without_noise_is_the_arg_max() -> None:
    logits = images(2, 5, 40)
    assert torch.equal(hard_assignment(logits).argmax(1), logits.argmax(1))


def test_hard_assignment_with_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    keys = sample_keys([str(n) for n in range(400)], seed=0, epoch=0)
    drawn = hard_assignment(logits[None, :, None].expand(400, 4, 100), keys)
    torch.testing.assert_close(drawn.mean(dim=(0, 2)), logits.softmax(0), atol=0.01, rtol=0)


def test_hard_assignment_gradient_is_that_of_the_softmax() -> None:
    logits = images(1, 5, 7).requires_grad_()
    upstream = images(1, 5, 7, seed=1)
    (hard,) = torch.autograd.grad((hard_assignment(logits) * upstream).sum(), logits)
    (soft,) = torch.autograd.grad((logits.softmax(1) * upstream).sum(), logits)
    torch.testing.assert_close(hard, soft)


def test_training_noise_is_the_samples_whatever_is_encoded_beside_it(fresh: GroupViT) -> None:
    fresh.eval()  # for the projectors' batch norms
    image, keys = images(4, 3, 32, 32), sample_keys(list("abcd"), seed=0, epoch=1)
    whole, _, _ = fresh(image, texts(), keys)
    alone, _, _ = fresh(image[2:], texts(), keys[2:])
    other, _, _ = fresh(image, texts(), sample_keys(list("abcd"), seed=0, epoch=2))
    torch.testing.assert_close(alone, whole[2:])
    assert not torch.allclose(other, whole, atol=1e-4)


def test_training_loss_gives_every_parameter_a_finite_gradient(fresh: GroupViT) -> None:
    fresh.train()
    keys = sample_keys(list("abc"), seed=0, epoch=0)
    image_ND, text_ND, scale = fresh(images(3, 3, 32, 32), texts(), keys)
    caption_contrast(image_ND, text_ND, scale).backward()
    gradients = {name: weight.grad for name, weight in fresh.named_parameters()}
    # A key's bias shifts all of a softmax's logits alike; rounding alone moves it.
    trained = {name: g for name, g in gradients.items() if not name.endswith("key.bias")}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    assert [name for name, g in trained.items() if g is None or g.abs().sum() == 0] == []


def test_training_naming_groups_leaves_batch_statistics_to_pooled_vectors(fresh: GroupViT) -> None:
    fresh.train()
    norm = fresh.image_projector.norm
    image = images(4, 3, 32, 32)
    fresh.encode_image(image)
    after_encoding = norm.running_mean.clone()
    norm.reset_running_stats()
    fresh(image, texts())
    assert torch.equal(norm.running_mean, after_encoding)
    assert int(norm.num_batches_tracked) == 1


def test_training_one_batch_is_learnt() -> None:
    torch.manual_seed(0)
    model = GroupViT(TINY).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    image, tokens = images(3, 3, 32, 32), texts()
    losses = []
    for step in range(30):
        keys = sample_keys(list("abc"), seed=0, epoch=step)
        loss = caption_contrast(*model(image, tokens, keys))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_encoding_image_with_broken_patches_raises(fresh: GroupViT) -> None:
    with pytest.raises(ValueError, match=r"30x32 pixels .* multiples of 8"):
        fresh.encode_image(images(1, 3, 30, 32))


def test_encoding_text_too_long_raises(fresh: GroupViT) -> None:
    with pytest.raises(ValueError, match=r"11 tokens .* context_length=10"):
        fresh.encode_text(torch.ones(1, 11, dtype=torch.int64))


def test_encoding_text_ignores_its_padding(fresh: GroupViT) -> None:
    fresh.eval()
    tokens = texts()[2:]
    torch.testing.assert_close(fresh.encode_text(tokens[:, :3]), fresh.encode_text(tokens))


@pytest.mark.parametrize(
    "change",
    [
        {"groups": (6, 4)},
        {"groups": (6, 4, 2)},
        {"groups": (6, 0, 0)},
        {"depths": (2,), "groups": (0,)},
        {"image_size": 33},
    ],
)
def test_config_that_cannot_be_built_raises(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"groups=|image_size="):
        GroupViTConfig(**(asdict(TINY) | change))


def test_group_masks_of_hand_made_maps_are_their_product() -> None:
    # Patches left to right belong to groups 0, 0, 1, 2; groups {0, 1} and {2} become two.
    first = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).reshape(1, 3, 1, 4)
    second = torch.tensor([[[1.0, 1, 0], [0, 0, 1]]])
    masks = group_masks((first, second), 1, 4)
    assert torch.equal(masks, torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 1]]).reshape(1, 2, 1, 4))


def test_group_masks_upsampled_sum_to_one(fresh: GroupViT) -> None:
    with torch.no_grad():
        grouped = fresh.encode_image(images(2, 3, 24, 56))
    masks = group_masks(grouped.assignments, 50, 70)
    assert masks.shape == (2, 4, 50, 70)
    assert masks.min() >= 0
    torch.testing.assert_close(masks.sum(dim=1), torch.ones(2, 50, 70))


def test_demo_sizes_two_stages_give_their_shapes() -> None:
    config = GroupViTConfig(
        image_size=64,
        patch_size=4,
        width=96,
        heads=4,
        depths=(2, 1),
        groups=(8, 0),
        text_width=32,
        text_layers=2,
        vocab_size=50,
        projection_hidden=64,
        projection_dim=32,
    )
    grouped = GroupViT(config).eval().encode_image(images(1, 3, 64, 64))
    assert isinstance(grouped, GroupedImage)
    assert grouped.groups_NGD.shape == (1, 8, 32)
    assert [tuple(a.shape) for a in grouped.assignments] == [(1, 8, 16, 16)]


def test_group_logits_hand_made_example_multiplies_both_softmaxes() -> None:
    text = torch.eye(3)
    groups = torch.tensor([[2.0, 0, 0], [0, 0, 5.0]])  # the second shows a class the image does not
    pooled = torch.tensor([3.0, 2.0, 1.0])
    affinity = group_logits(groups, pooled, text, scale=2.0, top_k=2)
    e = torch.tensor(2.0).exp()
    expected = torch.tensor(
        [
            [e / (e + 1) * e / (e + 2), 1 / (e + 1) / (e + 2), 0],
            [0.5 / (e + 2), 0.5 / (e + 2), 0],
        ]
    )
    torch.testing.assert_close(affinity, expected)


def test_group_logits_fewer_classes_than_top_k_allows_all() -> None:
    text, groups = torch.eye(3), images(4, 3)
    affinity = group_logits(groups, groups.mean(0), text, scale=2.0)
    soft = (2.0 * nn.functional.normalize(groups, dim=-1)).softmax(dim=1)
    torch.testing.assert_close(affinity, soft * soft)


AFFINITY = torch.tensor([[0.8, 0.1], [0.2, 0.3]])
MASKS = torch.tensor([[[0.9, 0.4]], [[0.1, 0.6]]])  # left pixel: group 0, right pixel: group 1


def test_pixel_logits_without_background_are_the_strongest_groups() -> None:
    assert torch.equal(pixel_logits(AFFINITY, MASKS, None), torch.tensor([[[0.8, 0.2]], [[0.1, 0.3]]]))


@pytest.mark.parametrize(
    ("threshold", "background"),
    [(0.5, [0.0, 1.0]), (0.95, [0.0, 1.0]), (0.3, [0.0, 0.0]), (0.0, [0.0, 0.0])],
)
def test_pixel_logits_background_is_below_threshold_or_best_score(
    threshold: float, background: list[float]
) -> None:
    logits = pixel_logits(AFFINITY, MASKS, threshold)
    assert logits.shape == (3, 1, 2)
    assert torch.equal(logits[0, 0], torch.tensor(background))
    assert torch.equal(logits[1:], pixel_logits(AFFINITY, MASKS, None))
