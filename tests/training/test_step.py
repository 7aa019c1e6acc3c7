"""One step: its loss and gradients do not depend on how the batch is split over forward passes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from storage.errors import ConfigError
from tests.training import tiny
from training.blocks import compile_blocks
from training.data import as_images
from training.grouping import masks
from training.groups import normalised
from training.gumbel import sample_keys
from training.losses import caption_contrast, multi_label_contrast, noun_to_region
from training.precision import Arithmetic, decided
from training.step import backward, split

CPU = torch.device("cpu")
EXACT = Arithmetic.of("fp32", CPU)
COUNT = 13


def gradients(objective: Any) -> dict[str, Tensor]:
    return {n: w.grad for n, w in objective.model.named_parameters() if w.grad is not None}


def stepped(name: str, micro_batch: int, arithmetic: Arithmetic = EXACT) -> tuple[Tensor, Any]:
    objective = tiny.MAKE[name]()
    return backward(objective, tiny.batch(COUNT), arithmetic, micro_batch), objective


def with_captions() -> Any:
    return tiny.recognition(caption_weight=0.5)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-5 of each gradient's largest value, or of 1 where that is smaller."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error, largest = float((found[name] - gradient).abs().max()), float(gradient.abs().max())
        assert error <= 1e-5 * max(1.0, largest), name


def plain_groupvit(objective: Any) -> Tensor:
    """The loss of a batch as one forward pass of the model, with a text for every draw."""
    batch = tiny.batch(COUNT)
    images = normalised(as_images(batch.pixels_NHWC, torch.device("cpu")), objective.encoder)
    concepts, place = np.unique(batch.drawn_NM.clip(min=0), return_inverse=True)
    prompts = [f"a {str(n) * (n + 1)}" for n in concepts]
    tokens = tiny.tokens_of([*batch.captions, *prompts], 10)
    keys = sample_keys(batch.sample_ids, seed=4, epoch=0)
    image_ND, text_TD, scale = objective.model(images, tokens, keys)
    nouns_NMD = text_TD[COUNT:][torch.from_numpy(place).reshape(COUNT, 3)]
    multi = multi_label_contrast(image_ND, nouns_NMD, torch.from_numpy(batch.drawn_NM >= 0), scale)
    return caption_contrast(image_ND, text_TD[:COUNT], scale) + multi


def plain_recognition(objective: Any) -> Tensor:
    """The loss of a batch as one forward pass, its nouns listed one by one."""
    batch = tiny.batch(COUNT)
    maps = torch.from_numpy(np.stack(batch.regions)).long()
    images = normalised(as_images(batch.pixels_NHWC, torch.device("cpu")), objective.encoder)
    found = objective.model(images, masks(maps, int(maps.max()) + 1))
    nouns = [(n, int(c)) for n in range(COUNT) for c in sorted({*batch.fixed[n], *batch.drawn_NM[n]} - {-1})]
    carries = [[concept in batch.named[other] for other in range(COUNT)] for _, concept in nouns]
    return noun_to_region(
        functional.normalize(found.region_NKD, dim=-1),
        found.valid_NK,
        objective.concept_vectors_CD[[concept for _, concept in nouns]],
        owner_P=torch.tensor([owner for owner, _ in nouns]),
        carries_PN=torch.tensor(carries),
        scale=1 / 0.07,
    )


@pytest.mark.parametrize(
    ("name", "plain"), [("groupvit", plain_groupvit), ("recognition", plain_recognition)]
)
def test_step_in_one_piece_has_the_gradients_of_the_plain_loss(name: str, plain: Any) -> None:
    loss, objective = stepped(name, 0)
    oracle = tiny.MAKE[name]()
    expected = plain(oracle)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), atol=1e-5, rtol=1e-6)
    assert_same(gradients(objective), gradients(oracle))


@pytest.mark.parametrize("micro_batch", [0, 5])
def test_caption_term_is_the_contrast_of_images_with_captions_by_its_weight(micro_batch: int) -> None:
    batch, oracle, objective = tiny.batch(COUNT), with_captions(), with_captions()
    pixels = normalised(as_images(batch.pixels_NHWC, CPU), oracle.encoder)
    image_ND = functional.normalize(oracle.model.visual(pixels), dim=-1)
    text_ND = torch.from_numpy(oracle.encoder.encode_texts(batch.captions, ("{}",)))
    expected = plain_recognition(oracle) + 0.5 * caption_contrast(image_ND, text_ND, 1 / 0.07)
    expected.backward()
    loss = backward(objective, batch, EXACT, micro_batch)
    torch.testing.assert_close(loss, expected.detach(), atol=1e-5, rtol=1e-6)
    assert_same(gradients(objective), gradients(oracle))


@pytest.mark.parametrize("name", tiny.MAKE)
@pytest.mark.parametrize("micro_batch", [1, 4, 12, 13, 50])
def test_step_in_pieces_has_loss_and_gradients_of_the_whole_batch(name: str, micro_batch: int) -> None:
    (whole, expected), (loss, found) = stepped(name, 0), stepped(name, micro_batch)
    torch.testing.assert_close(loss, whole, atol=1e-5, rtol=1e-6)
    assert_same(gradients(found), gradients(expected))


def test_step_in_pieces_updates_batch_statistics_once_and_alike() -> None:
    (_, expected), (_, found) = stepped("groupvit", 0), stepped("groupvit", 4)
    for projector in ("image_projector", "text_projector"):
        whole, pieces = getattr(expected.model, projector).norm, getattr(found.model, projector).norm
        assert int(pieces.num_batches_tracked) == 1
        torch.testing.assert_close(pieces.running_mean, whole.running_mean)
        torch.testing.assert_close(pieces.running_var, whole.running_var)


def test_gradients_of_a_plain_sum_over_pieces_are_others() -> None:
    """What naive accumulation gives: without the other pieces' negatives. The tests above can fail."""
    _, expected = stepped("recognition", 0)
    naive = tiny.MAKE["recognition"]()
    for piece in split(tiny.batch(COUNT), 4):
        backward(naive, piece, EXACT)
    largest = max(
        float((gradient / 4 - gradients(expected)[name]).abs().max())
        for name, gradient in gradients(naive).items()
    )
    assert largest > 1e-2


def test_split_gives_every_sample_once_with_all_that_is_its_own() -> None:
    batch = tiny.batch(COUNT, epoch=2)
    pieces = split(batch, 5)
    assert [len(piece.sample_ids) for piece in pieces] == [5, 5, 3]
    assert {piece.epoch for piece in pieces} == {2}
    for name in ("sample_ids", "captions", "regions"):
        assert [x for piece in pieces for x in getattr(piece, name)] == list(getattr(batch, name))
    assert np.array_equal(np.concatenate([piece.pixels_NHWC for piece in pieces]), batch.pixels_NHWC)
    assert np.array_equal(np.concatenate([piece.drawn_NM for piece in pieces]), batch.drawn_NM)
    assert split(batch, 0) == [batch]


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(32), nn.Dropout(0.1), nn.MultiheadAttention(8, 1, dropout=0.1)]
)
def test_step_in_pieces_of_a_tower_that_depends_on_its_batch_raises(layer: nn.Module) -> None:
    objective = tiny.recognition()
    objective.model.visual.extra = layer
    backward(objective, tiny.batch(4), EXACT)
    with pytest.raises(ConfigError, match=rf"visual\.extra is a {type(layer).__name__}.*micro_batch"):
        backward(objective, tiny.batch(4), EXACT, micro_batch=2)
    layer.eval()
    backward(objective, tiny.batch(4), EXACT, micro_batch=2)


@pytest.mark.parametrize(("name", "likeness"), [("groupvit", 0.6), ("recognition", 0.97)])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_step_in_lower_precision_is_near_and_its_loss_float32(
    name: str, likeness: float, precision: Any
) -> None:
    """GroupViT is less alike: a token between two groups falls to the other one by a rounding."""
    exact, expected = stepped(name, 0)
    arithmetic = Arithmetic.of(precision, CPU)
    at_scale(arithmetic, 256.0)
    loss, found = stepped(name, 4, arithmetic)
    arithmetic.scaler.unscale_(torch.optim.SGD(found.model.parameters()))
    assert loss.dtype == torch.float32
    assert loss != exact
    assert loss == pytest.approx(float(exact), rel=0.05)
    assert cosine(gradients(found), gradients(expected)) > likeness


def at_scale(arithmetic: Arithmetic, scale: float) -> None:
    """Sets the scale that a run would have found by itself after some skipped steps."""
    if arithmetic.scaler.is_enabled():
        arithmetic.scaler.scale(torch.ones(()))
        arithmetic.scaler.update(scale)


def cosine(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    flat = [torch.cat([g.float().flatten() for g in gradients.values()]) for gradients in (a, b)]
    return float(functional.cosine_similarity(*flat, dim=0))


@pytest.mark.parametrize(("bf16", "precision"), [(None, "fp32"), (False, "fp32"), (True, "bf16")])
def test_precision_auto_is_decided_by_the_machine_and_others_stay(
    monkeypatch: pytest.MonkeyPatch, bf16: bool | None, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bf16 is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    assert decided("auto") == precision
    assert decided("auto", "cpu") == "fp32"
    assert decided("fp16") == "fp16"


def test_precision_auto_that_nobody_decided_is_refused() -> None:
    with pytest.raises(ConfigError, match="name fp32, bf16 or fp16"):
        Arithmetic.of("auto", CPU)


@pytest.mark.parametrize(
    ("precision", "dtype", "scaled"),
    [
        ("fp32", torch.float32, False),
        ("bf16", torch.bfloat16, False),
        ("fp16", torch.float16, True),
    ],
)
def test_precision_on_a_processor_sets_type_and_scale(
    precision: Any, dtype: torch.dtype, scaled: bool
) -> None:
    arithmetic = Arithmetic.of(precision, CPU)
    with arithmetic.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert arithmetic.scaler.is_enabled() is scaled


def test_float16_gradients_too_large_skip_the_step_and_lower_the_scale() -> None:
    arithmetic, objective = Arithmetic.of("fp16", CPU), tiny.recognition()
    before = [weight.detach().clone() for weight in objective.model.parameters()]
    optimizer = torch.optim.AdamW(objective.model.parameters())
    at_scale(arithmetic, 2.0**120)
    backward(objective, tiny.batch(4), arithmetic)
    arithmetic.scaler.unscale_(optimizer)
    arithmetic.scaler.step(optimizer)
    arithmetic.scaler.update()
    assert all(map(torch.equal, before, objective.model.parameters()))
    assert arithmetic.scaler.get_scale() == 2.0**119


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, while it traces
@pytest.mark.parametrize("name", list(tiny.MAKE))
def test_compiled_blocks_have_the_gradients_of_plain_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced but not translated: what inductor makes of it is torch's affair, and takes it a minute."""
    compiled, compile_one = [], nn.Module.compile

    def traced(module: nn.Module, **options: Any) -> None:
        compiled.append(module)
        compile_one(module, backend="aot_eager", **options)

    monkeypatch.setattr(nn.Module, "compile", traced)
    loss, plain = stepped(name, 0)
    objective = tiny.MAKE[name]()
    names = list(objective.model.state_dict())
    compile_blocks(objective.towers)
    assert compiled
    torch.testing.assert_close(backward(objective, tiny.batch(COUNT), EXACT), loss)
    assert list(objective.model.state_dict()) == names
    assert_same(gradients(objective), gradients(plain))
