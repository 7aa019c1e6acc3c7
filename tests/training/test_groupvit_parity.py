"""GroupViT against `transformers`, on the same random weights: outputs, group assignments and gradients."""

import copy
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.groupvit_oracle import (
    TINY,
    images,
    same_weights,
    texts,
    transformers_config,
    transformers_groupvit,
    with_every_weight_random,
)  # fmt: skip
from training.assignment import hard_assignment
from training.groupvit import GroupViT, GroupViTConfig, group_masks
from training.groupvit_weights import to_transformers
from training.gumbel import gumbel, sample_keys, stage_keys
from training.losses import caption_contrast, multi_label_contrast

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
WITHIN = 1e-4  # of the largest value of a gradient
NOTHING = 1e-3  # of the largest of all: below lie gradients that are zero but for rounding


@pytest.fixture(scope="module")
def theirs() -> Any:
    module = transformers_groupvit()
    return with_every_weight_random(module.GroupViTModel(transformers_config(module)))


@pytest.fixture(scope="module")
def ours(theirs: Any) -> GroupViT:
    return same_weights(theirs, TINY)


@torch.no_grad()
def their_grouping(theirs: Any, image: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Pooled and group vectors in the space of texts, and soft maps, at any image size."""
    vision = theirs.vision_model
    x = vision.embeddings(image, interpolate_pos_encoding=True)
    encoded = vision.encoder(x, output_attentions=True, return_dict=True)
    tokens = vision.layernorm(encoded.last_hidden_state)
    groups = theirs.visual_projection(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    return theirs.visual_projection(tokens.mean(dim=1)), groups, encoded.attentions


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 56)])
def test_image_any_size_equals_transformers(ours: GroupViT, theirs: Any, size: tuple[int, int]) -> None:
    image = images(2, 3, *size)
    pooled, groups, maps = their_grouping(theirs, image)
    with torch.no_grad():
        grouped = ours.encode_image(image)
    torch.testing.assert_close(grouped.pooled_ND, pooled, **CLOSE)
    torch.testing.assert_close(grouped.groups_NGD, groups, **CLOSE)
    torch.testing.assert_close(grouped.assignments[0].flatten(2), maps[0], **CLOSE)
    torch.testing.assert_close(grouped.assignments[1], maps[1], **CLOSE)


def test_hard_assignment_without_noise_equals_transformers() -> None:
    logits = images(2, 6, 40)
    assert torch.equal(hard_assignment(logits), transformers_groupvit().hard_softmax(logits, 1))


def test_text_of_several_lengths_equals_transformers(ours: GroupViT, theirs: Any) -> None:
    tokens = texts()
    with torch.no_grad():
        expected = theirs.get_text_features(input_ids=tokens).pooler_output
        torch.testing.assert_close(ours.encode_text(tokens), expected, **CLOSE)


def test_forward_and_masks_equal_transformers_logits_and_segmentation(ours: GroupViT, theirs: Any) -> None:
    assert_same_outputs(ours, theirs, images(2, 3, 32, 32), texts())


@torch.no_grad()
def assert_same_outputs(ours: GroupViT, theirs: Any, image: Tensor, tokens: Tensor) -> None:
    expected = theirs(input_ids=tokens, pixel_values=image, output_segmentation=True)
    image_ND, text_MD, scale = ours(image, tokens)
    grouped = ours.encode_image(image)
    torch.testing.assert_close(image_ND, expected.image_embeds, **CLOSE)
    torch.testing.assert_close(text_MD, expected.text_embeds, **CLOSE)
    torch.testing.assert_close(scale * image_ND @ text_MD.T, expected.logits_per_image, **CLOSE)
    unit_NGD = nn.functional.normalize(grouped.groups_NGD, dim=-1)
    masks_NGHW = group_masks(grouped.assignments, *image.shape[2:])
    # their segmentation logits are multiplied by the scale twice
    logits = scale**2 * torch.einsum("ngd,cd,nghw->nchw", unit_NGD, text_MD, masks_NGHW)
    torch.testing.assert_close(logits, expected.segmentation_logits, atol=1e-4, rtol=1e-4)


def gradients(model: nn.Module, image_ND: Tensor, text_MD: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Of image–caption and multi-label contrast; the captions come first, then each image's two nouns."""
    count = len(image_ND)
    nouns_NMD = text_MD[count:].unflatten(0, (count, 2))
    valid_NM = torch.ones(count, 2, dtype=torch.bool)
    captions = caption_contrast(image_ND, text_MD[:count], scale)
    model.zero_grad()
    (captions + multi_label_contrast(image_ND, nouns_NMD, valid_NM, scale)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def vectors(ours: GroupViT, image: Tensor, tokens: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """Unit vectors as the model gives them, without its rounding to float32."""
    pooled_NW = ours.image(image, keys)[0].mean(dim=1)
    image_ND, text_MD = ours.image_projector(pooled_NW), ours.encode_text(tokens)
    return nn.functional.normalize(image_ND, dim=-1), nn.functional.normalize(text_MD, dim=-1)


def assert_same_gradients(
    ours: GroupViT, theirs: Any, image: Tensor, tokens: Tensor, keys: Tensor | None = None
) -> None:
    """Within 1e-4 of the largest value of each; ours are renamed as weights are.

    In float64, as rounding of float32 may put a hidden unit on the other side of its ReLU. Some are zero by
    the formula, such as that of a key's bias, which shifts all of a softmax's logits alike.
    """
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    image = image.double()
    found = theirs(input_ids=tokens, pixel_values=image)
    expected = gradients(theirs, found.image_embeds, found.text_embeds, theirs.logit_scale.exp())
    named = to_transformers(gradients(ours, *vectors(ours, image, tokens, keys), ours.scale()))
    assert named.keys() == {name for name, _ in theirs.named_parameters()} == expected.keys()
    least = NOTHING * max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        within = WITHIN * max(least, float(gradient.abs().max()))
        far = float((named[name] - gradient).abs().max())
        assert far <= within, f"{name} is {far:.2g} off; {within:.2g} allowed"


def test_gradients_of_every_parameter_equal_transformers(ours: GroupViT, theirs: Any) -> None:
    assert_same_gradients(ours, theirs, *a_batch())


def test_gradients_in_training_with_the_same_noise_equal_transformers(
    ours: GroupViT, theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The projectors normalise by the batch, and tokens are assigned by drawing."""
    image, tokens = a_batch()
    keys = sample_keys(list("abc"), seed=0, epoch=0)
    stage = count()

    def sample(_: Any, shape: torch.Size) -> Tensor:
        return gumbel(stage_keys(keys, next(stage)), *shape[1:])

    monkeypatch.setattr(torch.distributions.gumbel.Gumbel, "sample", sample)
    ours, theirs = copy.deepcopy(ours).train(), copy.deepcopy(theirs).train()
    assert_same_gradients(ours, theirs, image, tokens, keys)


def a_batch() -> tuple[Tensor, Tensor]:
    return images(3, 3, 32, 32), torch.cat([texts(seed) for seed in range(3)])


def test_paper_sizes_outputs_and_gradients_equal_transformers() -> None:
    module = transformers_groupvit()
    torch.manual_seed(0)
    theirs = module.GroupViTModel(module.GroupViTConfig()).eval()
    for weight in theirs.parameters():
        if weight.ndim == 1:  # biases and norms, else zeros and ones
            nn.init.normal_(weight.data, mean=float(weight.data.mean()), std=0.02)
    ours = same_weights(theirs, GroupViTConfig())
    tokens = torch.randint(1, 49406, (6, 77), generator=torch.Generator().manual_seed(1))
    for row, end in enumerate((76, 11, 8, 8, 9, 8)):
        tokens[row, end], tokens[row, end + 1 :] = 49407, 0
    image = images(2, 3, 224, 224)
    assert_same_outputs(ours, theirs, image, tokens[:3])
    assert_same_gradients(ours, theirs, image, tokens)
