"""Losses against plain loops over items, and what they must not depend on."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from training.losses import caption_contrast, multi_label_contrast, noun_to_region


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def negative_log_share(chosen: float, candidates: list[float]) -> float:
    return math.log(sum(math.exp(c) for c in candidates)) - chosen


def caption_oracle(image: Tensor, text: Tensor, scale: float) -> float:
    n, total = len(image), 0.0
    for i in range(n):
        own = scale * float(image[i] @ text[i])
        total += negative_log_share(own, [scale * float(image[i] @ text[j]) for j in range(n)])
        total += negative_log_share(own, [scale * float(image[j] @ text[i]) for j in range(n)])
    return total / (2 * n)


def multi_label_oracle(image: Tensor, text: Tensor, valid: Tensor, scale: float) -> float:
    texts = [(i, m) for i in range(len(image)) for m in range(text.shape[1]) if valid[i, m]]
    images = sorted({i for i, _ in texts})
    if not texts:
        return 0.0
    forth, back = 0.0, 0.0
    for i in images:
        row = [scale * float(image[i] @ text[j, m]) for j, m in texts]
        own = [value for value, (j, _) in zip(row, texts, strict=True) if j == i]
        forth += sum(negative_log_share(value, row) for value in own) / len(own)
    for i, m in texts:
        column = [scale * float(image[j] @ text[i, m]) for j in images]
        back += negative_log_share(scale * float(image[i] @ text[i, m]), column)
    return (forth / len(images) + back / len(texts)) / 2


def noun_oracle(batch: dict[str, Tensor], scale: float, weights: list[float]) -> float:
    region, region_valid, noun, owner, carries = batch.values()

    def best(p: int, j: int) -> float | None:
        cosines = [float(noun[p] @ v) for v, ok in zip(region[j], region_valid[j], strict=True) if ok]
        return scale * max(cosines) if cosines else None

    total, mass = 0.0, 0.0
    for p, i in enumerate(owner.tolist()):
        own = best(p, i)
        if own is None:
            continue
        others = [best(p, j) for j in range(len(region)) if j != i and not carries[p, j]]
        candidates = [own, *(score for score in others if score is not None)]
        total += weights[p] * negative_log_share(own, candidates)
        mass += weights[p]
    return total / mass if mass else 0.0


def noun_batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.tensor([0, 0, 1, 2, 3, 3, 4])
    carries = torch.rand(7, 5, generator=generator) < 0.3
    carries[range(7), owner] = True
    region_valid = torch.rand(5, 3, generator=generator) < 0.7
    region_valid[0], region_valid[4] = True, False
    return {
        "region_NKD": unit(5, 3, 8, seed=seed),
        "region_valid_NK": region_valid,
        "noun_PD": unit(7, 8, seed=seed + 1),
        "owner_P": owner,
        "carries_PN": carries,
    }


def test_caption_contrast_random_batch_equals_loop() -> None:
    image, text = unit(6, 8), unit(6, 8, seed=1)
    loss = caption_contrast(image, text, 9.0)
    assert float(loss) == pytest.approx(caption_oracle(image, text, 9.0), abs=1e-5)


def test_caption_contrast_matching_pairs_at_high_scale_is_zero() -> None:
    vectors = torch.eye(4)
    assert float(caption_contrast(vectors, vectors, 100.0)) == pytest.approx(0.0, abs=1e-6)


def test_caption_contrast_single_pair_is_zero() -> None:
    assert float(caption_contrast(unit(1, 8), unit(1, 8, seed=1), 10.0)) == 0.0


def test_caption_contrast_pairs_permuted_is_unchanged() -> None:
    image, text, order = unit(6, 8), unit(6, 8, seed=1), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        caption_contrast(image[order], text[order], 5.0), caption_contrast(image, text, 5.0)
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5))
def test_multi_label_any_validity_equals_loop(rows: list[list[bool]]) -> None:
    valid = torch.tensor(rows)
    image, text = unit(len(rows), 8), unit(len(rows), 3, 8, seed=1)
    loss = multi_label_contrast(image, text, valid, 7.0)
    assert float(loss) == pytest.approx(multi_label_oracle(image, text, valid, 7.0), abs=1e-5)


def test_multi_label_one_text_each_equals_caption_contrast() -> None:
    image, text = unit(5, 8), unit(5, 8, seed=1)
    loss = multi_label_contrast(image, text[:, None], torch.ones(5, 1, dtype=torch.bool), 7.0)
    torch.testing.assert_close(loss, caption_contrast(image, text, 7.0))


def test_multi_label_invalid_texts_and_images_leave_loss_and_gradients_alone() -> None:
    image = unit(4, 8).requires_grad_()
    text = unit(4, 3, 8, seed=1)
    valid = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    loss = multi_label_contrast(image, text, valid, 7.0)
    loss.backward()
    garbage = torch.where(valid[..., None], text, unit(4, 3, 8, seed=9))
    torch.testing.assert_close(multi_label_contrast(image, garbage, valid, 7.0), loss)
    kept = [0, 2, 3]
    torch.testing.assert_close(multi_label_contrast(image[kept], text[kept], valid[kept], 7.0), loss)
    assert image.grad is not None
    assert image.grad[1].abs().max() == 0
    assert image.grad[kept].abs().sum(dim=1).min() > 0


def test_multi_label_images_and_texts_permuted_is_unchanged() -> None:
    image, text = unit(4, 8), unit(4, 3, 8, seed=1)
    valid = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
    loss = multi_label_contrast(image, text, valid, 7.0)
    rows, slots = [2, 0, 3, 1], [1, 2, 0]
    permuted = multi_label_contrast(image[rows], text[rows][:, slots], valid[rows][:, slots], 7.0)
    torch.testing.assert_close(permuted, loss)


def test_multi_label_nothing_valid_is_zero_with_zero_gradients() -> None:
    image, text = unit(3, 8).requires_grad_(), unit(3, 2, 8, seed=1).requires_grad_()
    loss = multi_label_contrast(image, text, torch.zeros(3, 2, dtype=torch.bool), 7.0)
    loss.backward()
    assert loss.item() == 0.0
    assert image.grad is not None
    assert image.grad.abs().max() == 0


@pytest.mark.parametrize("seed", range(5))
def test_noun_to_region_random_batch_equals_loop(seed: int) -> None:
    batch = noun_batch(seed)
    expected = noun_oracle(batch, 6.0, [1.0] * 7)
    assert float(noun_to_region(**batch, scale=6.0)) == pytest.approx(expected, abs=1e-5)


def test_noun_to_region_weights_equal_weighted_loop() -> None:
    batch, weights = noun_batch(), [0.5, 2.0, 0.0, 1.0, 3.0, 0.25, 1.0]
    loss = noun_to_region(**batch, scale=6.0, weights_P=torch.tensor(weights))
    assert float(loss) == pytest.approx(noun_oracle(batch, 6.0, weights), abs=1e-5)


def test_noun_to_region_image_carrying_the_noun_is_no_negative() -> None:
    region = torch.eye(3)[:, None]  # three images of one region each
    noun, owner = torch.eye(3)[:1], torch.tensor([1])
    regions_exist = torch.ones(3, 1, dtype=torch.bool)
    carried_by_first = torch.tensor([[True, True, False]])
    loss = noun_to_region(region, regions_exist, noun, owner_P=owner, carries_PN=carried_by_first, scale=5.0)
    assert float(loss) == pytest.approx(math.log(2))  # only image 2 is left, with an equal score


def test_noun_to_region_image_without_regions_is_neither_candidate_nor_owner() -> None:
    batch = noun_batch()
    batch["region_valid_NK"][2:] = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]]).bool()
    loss = noun_to_region(**batch, scale=6.0)
    without = {
        "region_NKD": batch["region_NKD"][:4],
        "region_valid_NK": batch["region_valid_NK"][:4],
        "noun_PD": batch["noun_PD"][:6],
        "owner_P": batch["owner_P"][:6],
        "carries_PN": batch["carries_PN"][:6, :4],
    }
    torch.testing.assert_close(noun_to_region(**without, scale=6.0), loss)


def test_noun_to_region_gradients_are_finite_and_reach_only_valid_regions() -> None:
    batch = noun_batch()
    region = batch["region_NKD"].requires_grad_()
    scale = torch.tensor(6.0, requires_grad=True)
    noun_to_region(**batch, scale=scale).backward()
    assert region.grad is not None
    assert scale.grad is not None
    assert torch.isfinite(region.grad).all()
    assert torch.isfinite(scale.grad)
    assert region.grad[~batch["region_valid_NK"]].abs().max() == 0
    assert region.grad.abs().max() > 0


def test_noun_to_region_nouns_and_images_permuted_is_unchanged() -> None:
    batch = noun_batch()
    loss = noun_to_region(**batch, scale=6.0)
    nouns, images = torch.tensor([3, 6, 0, 2, 5, 1, 4]), torch.tensor([4, 2, 0, 3, 1])
    permuted = {
        "region_NKD": batch["region_NKD"][images].flip(1),
        "region_valid_NK": batch["region_valid_NK"][images].flip(1),
        "noun_PD": batch["noun_PD"][nouns],
        "owner_P": images.argsort()[batch["owner_P"][nouns]],
        "carries_PN": batch["carries_PN"][nouns][:, images],
    }
    torch.testing.assert_close(noun_to_region(**permuted, scale=6.0), loss)


def test_noun_to_region_without_nouns_is_zero() -> None:
    batch = noun_batch()
    none = {name: batch[name][:0] for name in ("noun_PD", "owner_P", "carries_PN")}
    assert float(noun_to_region(**(batch | none), scale=6.0)) == 0.0
    assert float(noun_to_region(**(batch | none), scale=6.0, weights_P=torch.ones(0))) == 0.0
    assert float(noun_to_region(**(batch | none), scale=6.0, pooling="softmax", both_ways=True)) == 0.0


@pytest.mark.parametrize("pooling", ["max", "softmax"])
@pytest.mark.parametrize("both_ways", [False, True])
def test_noun_to_region_pooled_and_both_ways_equals_loop(pooling: Any, both_ways: bool) -> None:
    batch = noun_batch()
    batch["region_valid_NK"][4:] = False  # an image without regions: no candidate, its nouns take no part
    expected = pooled_oracle(batch, 6.0, pooling, both_ways)
    loss = noun_to_region(**batch, scale=6.0, pooling=pooling, both_ways=both_ways)
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def pooled_oracle(batch: dict[str, Tensor], scale: float, pooling: str, both_ways: bool) -> float:
    regions, valid = batch["region_NKD"].double(), batch["region_valid_NK"]
    images = [j for j in range(len(regions)) if valid[j].any()]
    nouns = [p for p, owner in enumerate(batch["owner_P"].tolist()) if owner in images]
    score = {}
    for p in nouns:
        for j in images:
            products = scale * regions[j][valid[j]] @ batch["noun_PD"][p].double()
            mean = float((products.softmax(0) * products).sum())
            score[p, j] = float(products.max()) if pooling == "max" else mean
    owner = batch["owner_P"].tolist()
    left = {(p, j) for p in nouns for j in images if j == owner[p] or not batch["carries_PN"][p, j]}
    one_way = [
        math.log(sum(math.exp(score[p, j]) for j in images if (p, j) in left)) - score[p, owner[p]]
        for p in nouns
    ]
    if not both_ways:
        return float(np.mean(one_way))
    other = []
    for j in images:
        own = [p for p in nouns if owner[p] == j]
        total = math.log(sum(math.exp(score[p, j]) for p in nouns if (p, j) in left))
        other += [total - float(np.mean([score[p, j] for p in own]))] if own else []
    return float((np.mean(one_way) + np.mean(other)) / 2)


@pytest.mark.parametrize("pooling", ["max", "softmax"])
def test_noun_to_region_image_without_regions_has_finite_gradients(pooling: Any) -> None:
    batch = noun_batch()
    batch["region_valid_NK"][2] = False
    region = batch["region_NKD"].requires_grad_()
    noun_to_region(**batch, scale=6.0, pooling=pooling, both_ways=True).backward()
    assert region.grad is not None
    assert torch.isfinite(region.grad).all()
    assert region.grad[2].abs().max() == 0
