import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from curation.openclip import open_clip
from training.regions import RegionEncoder, trainable

TimmModel = open_clip.timm_model.TimmModel
VisionTransformer = open_clip.transformer.VisionTransformer
Make = Callable[[], nn.Module]
DATA = Path(os.environ.get("COCU_DATA", Path(__file__).parents[3] / "shared/data"))
REAL = DATA / "encoders/lite0-minilm"


def transformer(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_ratio": 2.0}
    tower = VisionTransformer(**(sizes | {"output_dim": 16} | options)).eval()
    for parameter in tower.parameters():  # no norm or bias is left at its neutral value
        parameter.data += 0.1 * torch.randn_like(parameter)
    return tower


def convolutional(name: str = "resnet18", **options: object) -> TimmModel:
    torch.manual_seed(0)
    return TimmModel(name, 16, image_size=64, **({"pool": "avg", "proj": "mlp"} | options)).eval()


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def masks(regions: int, size: int = 4, count: int = 2) -> Tensor:
    stream = torch.Generator().manual_seed(2)
    labels = torch.randint(regions, (count, size, size), generator=stream)
    return labels[:, None] == torch.arange(regions)[:, None, None]


def one_masked_pass(tower: VisionTransformer, image_CHW: Tensor, inside_P: Tensor) -> tuple[Tensor, Tensor]:
    """Region and image vector by T + 1 tokens and a full mask, written out from the weights."""
    patches = tower.conv1(image_CHW[None])[0].flatten(1).T
    tokens = torch.cat([tower.class_embedding[None], patches]) + tower.positional_embedding
    tokens = torch.cat([tokens[:1], tokens])  # region token, class token, patches
    allowed = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
    allowed[:, 0] = False
    allowed[0] = torch.cat([torch.tensor([True, False]), inside_P])
    tokens = tower.ln_pre(tokens)
    for block in tower.transformer.resblocks:
        tokens = tokens + block.ls_1(attention(block.attn, block.ln_1(tokens), allowed))
        tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
    region, pooled = tower.ln_post(tokens[:2]) @ tower.proj
    return region, pooled


def attention(layer: nn.MultiheadAttention, tokens: Tensor, allowed: Tensor) -> Tensor:
    projected = tokens @ layer.in_proj_weight.T + layer.in_proj_bias
    queries, keys, values = (part.unflatten(1, (layer.num_heads, -1)) for part in projected.chunk(3, 1))
    logits = torch.einsum("qhd,khd->hqk", queries, keys) / layer.head_dim**0.5
    weights = logits.masked_fill(~allowed, float("-inf")).softmax(2)
    return layer.out_proj(torch.einsum("hqk,khd->qhd", weights, values).flatten(1))


@pytest.mark.parametrize(
    "make",
    [
        transformer,
        lambda: transformer(ls_init_value=0.5, final_ln_after_pool=True),
        convolutional,
        lambda: convolutional("convnext_atto", proj="linear"),
    ],
    ids=["transformer", "late norm", "resnet", "convnext"],
)
@pytest.mark.parametrize("regions", [0, 3])
def test_pooled_vector_with_any_regions_is_the_towers_own_bit_for_bit(make: Make, regions: int) -> None:
    tower = make()
    image = images(64 if isinstance(tower, TimmModel) else 32)
    with torch.no_grad():
        got = RegionEncoder(tower)(image, masks(max(regions, 1))[:, :regions])
        assert torch.equal(got.pooled_ND, tower(image))
    assert got.region_NKD.shape == (2, regions, 16)
    assert got.valid_NK.shape == (2, regions)


def test_pooled_vector_with_gradients_is_the_towers_own_bit_for_bit() -> None:
    tower, image = transformer().train(), images(32)
    assert torch.equal(RegionEncoder(tower)(image, masks(3)).pooled_ND, tower(image))


@pytest.mark.parametrize("options", [{}, {"ls_init_value": 0.5, "final_ln_after_pool": True}])
def test_region_tokens_in_one_pass_equal_separate_masked_passes(options: dict[str, object]) -> None:
    tower, image, regions = transformer(**options), images(32), masks(4)
    with torch.no_grad():
        got = RegionEncoder(tower)(image, regions)
        for n in range(2):
            for k in range(4):
                region, pooled = one_masked_pass(tower, image[n], regions[n, k].flatten())
                torch.testing.assert_close(got.region_NKD[n, k], region, rtol=0, atol=1e-5)
                torch.testing.assert_close(got.pooled_ND[n], pooled, rtol=0, atol=1e-5)


def test_a_regions_vector_with_other_regions_beside_it_is_the_same() -> None:
    encoder, image, regions = RegionEncoder(transformer()), images(32), masks(4)
    with torch.no_grad():
        together = encoder(image, regions).region_NKD[:, 1:2]
        torch.testing.assert_close(encoder(image, regions[:, 1:2]).region_NKD, together, rtol=0, atol=1e-5)


def test_a_region_token_of_unseen_patches_still_reads_the_context_they_carry() -> None:
    encoder, image = RegionEncoder(transformer()), images(32, 1)
    corner = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    corner[..., 0, 0] = True
    changed = image.clone()
    changed[..., 16:, 16:] += 1
    with torch.no_grad():
        before, after = encoder(image, corner).region_NKD, encoder(changed, corner).region_NKD
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize(("make", "size"), [(transformer, 32), (convolutional, 128)])
def test_without_context_a_region_is_encoded_by_a_pass_that_sees_no_other_pixel(
    make: Make, size: int
) -> None:
    tower, image, regions = make(), images(size), masks(3)
    changed = image.clone()
    outside_NHW = ~regions[:, 1].repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)
    changed += outside_NHW[:, None]
    alone = RegionEncoder(tower, context=False).eval()
    with torch.no_grad():
        got, other = alone(image, regions), alone(changed, regions)
        masked = RegionEncoder(tower)(image * ~outside_NHW[:, None], regions[:, 1:2])
        together = RegionEncoder(tower)(image, regions)
    assert torch.equal(got.region_NKD[:, 1], other.region_NKD[:, 1])
    torch.testing.assert_close(got.region_NKD[:, 1:2], masked.region_NKD, rtol=0, atol=1e-5)
    assert not torch.allclose(got.region_NKD, together.region_NKD, atol=1e-3)
    assert torch.equal(got.pooled_ND, together.pooled_ND)  # the image's own vector sees all of it
    assert not alone.pools  # maps in hand have seen the context


@pytest.mark.parametrize(("make", "size"), [(transformer, 32), (convolutional, 64)])
def test_a_region_of_no_cell_is_marked_invalid_and_stays_finite(make: Make, size: int) -> None:
    tower = make()
    regions = masks(2)
    regions[0, 1] = False
    got = RegionEncoder(tower)(images(size), regions)
    assert got.valid_NK.tolist() == [[True, False], [True, True]]
    got.region_NKD.square().sum().backward()
    assert got.region_NKD.isfinite().all()
    assert all(p.grad.isfinite().all() for p in tower.parameters() if p.grad is not None)


@pytest.mark.parametrize(("make", "size"), [(transformer, 32), (convolutional, 128)])
def test_masks_on_a_finer_grid_are_read_by_area(make: Make, size: int) -> None:
    tower = make()
    coarse = masks(3)
    fine = coarse.repeat_interleave(7, 2).repeat_interleave(5, 3)
    with torch.no_grad():
        expected, got = (RegionEncoder(tower)(images(size), regions) for regions in (coarse, fine))
    torch.testing.assert_close(got.region_NKD, expected.region_NKD, rtol=0, atol=1e-5)


def test_soft_masks_weigh_the_cells_of_a_convolutional_tower() -> None:
    tower, image = convolutional(), images(128, 1)
    soft = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        maps = tower.trunk.forward_features(image)
        expected = tower.head((maps * soft).sum((2, 3)) / soft.sum())
        torch.testing.assert_close(RegionEncoder(tower)(image, soft).region_NKD[0], expected)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "regnetx_002"])
def test_a_full_mask_on_a_convolutional_tower_gives_its_pooled_vector(name: str) -> None:
    tower, image = convolutional(name), images(96)
    with torch.no_grad():
        got = RegionEncoder(tower)(image, torch.ones(2, 1, 5, 5, dtype=torch.bool))
        torch.testing.assert_close(got.region_NKD[:, 0], tower(image), rtol=0, atol=1e-5)


@pytest.mark.skipif(not REAL.exists(), reason=f"no real encoder at {REAL}")
def test_a_full_mask_on_a_real_encoder_gives_its_pooled_vector() -> None:
    tower = open_clip.create_model(f"local-dir:{REAL}").eval().visual
    image = images(224)
    with torch.no_grad():
        got = RegionEncoder(tower)(image, torch.ones(2, 1, 7, 7, dtype=torch.bool))
        assert torch.equal(got.pooled_ND, tower(image))
        torch.testing.assert_close(got.region_NKD[:, 0], got.pooled_ND, rtol=0, atol=1e-5)


def test_interpolated_positions_are_those_open_clip_loads_into_a_bigger_tower() -> None:
    tower, bigger = transformer(), transformer(image_size=48)
    state = {f"visual.{name}": value for name, value in tower.state_dict().items()}
    holder = nn.Module()
    holder.visual = bigger
    open_clip.model.resize_pos_embed(state, holder)
    holder.load_state_dict(state)
    with torch.no_grad():
        got = RegionEncoder(tower)(images(48), masks(3, 6)).pooled_ND
        torch.testing.assert_close(got, bigger(images(48)), rtol=0, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain, checkpointed = transformer(), transformer()
    checkpointed.set_grad_checkpointing(True)
    for tower in (plain, checkpointed):
        RegionEncoder(tower)(images(32), masks(3)).region_NKD.square().sum().backward()
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_dense_maps_are_the_last_before_pooling() -> None:
    tower, convolutions = transformer(), convolutional()
    with torch.no_grad():
        tokens = RegionEncoder(tower).dense(images(32))
        expected = tower.forward_intermediates(images(32), indices=1, normalize_intermediates=True)
        torch.testing.assert_close(tokens, expected["image_intermediates"][-1])
        maps = RegionEncoder(convolutions).dense(images(64))
        assert torch.equal(maps, convolutions.trunk.forward_features(images(64)))


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: transformer(pool_type="none"), "'none'"),
        (lambda: transformer(patch_dropout=0.5), "force_patch_dropout=0"),
        (lambda: transformer(block_type="custom"), "custom"),
        (lambda: convolutional(pool="abs_attn", proj=""), "AttentionPool2d"),
        (lambda: convolutional(pool="max"), "'max'"),
        (lambda: nn.Linear(2, 2), "neither"),
    ],
)
def test_a_tower_that_cannot_be_adapted_is_refused(make: Make, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        RegionEncoder(make())


def test_a_trunk_without_maps_is_refused_at_its_first_batch() -> None:
    encoder = RegionEncoder(convolutional("vit_relpos_small_patch16_224"))
    with pytest.raises(ValueError, match="trunk that ends in maps"):
        encoder(images(224, 1), masks(2, count=1))


def test_images_and_masks_that_do_not_fit_are_refused() -> None:
    encoder = RegionEncoder(transformer())
    with pytest.raises(ValueError, match="multiples"):
        encoder(images(36), masks(2))
    with pytest.raises(ValueError, match="same N images"):
        encoder(images(32), masks(2)[:1])


def names_to_train(tower: nn.Module, parts: str) -> set[str]:
    trained = trainable(RegionEncoder(tower), parts)
    names = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert len(names) == len(trained)
    return {".".join(name.split(".")[:3]) for name in names}


def test_trainable_parts_of_a_transformer_are_the_named_ones() -> None:
    tower = transformer()
    assert names_to_train(tower, "none") == set()
    assert names_to_train(tower, "head") == {"proj"}
    last = {"proj", "ln_post.weight", "ln_post.bias", "transformer.resblocks.2"}
    assert names_to_train(tower, "last") == last
    assert len(trainable(RegionEncoder(tower), "all")) == len(list(tower.parameters()))


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet18", {"trunk.layer4.0", "trunk.layer4.1"}),
        (
            "tf_efficientnet_lite0",
            {"trunk.blocks.6", "trunk.conv_head.weight", "trunk.bn2.weight", "trunk.bn2.bias"},
        ),
        ("cocu_tiny_conv", {"trunk.blocks.1"}),
    ],
)
def test_trainable_parts_of_a_convolutional_tower_are_the_named_ones(name: str, last: set[str]) -> None:
    tower, head = convolutional(name), {"head.mlp.fc1", "head.mlp.fc2"}
    assert names_to_train(tower, "head") == head
    assert names_to_train(tower, "last") == head | last


def test_trainable_last_parts_of_a_tower_are_as_many_as_named() -> None:
    assert {"transformer.resblocks.1", "transformer.resblocks.2"} < names_to_train(transformer(), "last:2")
    stages = {name.split(".")[1] for name in names_to_train(convolutional(), "last:2")}
    assert stages == {"mlp", "layer3", "layer4"}


def test_trainable_projections_are_those_of_attention_or_convolutions_of_one_pixel() -> None:
    tower = transformer()
    assert names_to_train(tower, "projections") == {
        "proj",
        *(f"transformer.resblocks.{block}" for block in range(3)),
    }
    trained = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert all(".attn." in name for name in trained - {"proj"})
    tower = convolutional("tf_efficientnet_lite0")
    trainable(RegionEncoder(tower), "projections")
    shapes = {
        p.shape[2:] for n, p in tower.trunk.named_parameters() if p.requires_grad and n.endswith("weight")
    }
    assert shapes == {(1, 1)}


def test_trainable_head_of_a_tower_with_a_classifier_is_the_classifier() -> None:
    assert names_to_train(convolutional(proj=""), "head") == {"trunk.fc.weight", "trunk.fc.bias"}


def test_trainable_part_that_does_not_exist_is_refused() -> None:
    for parts in ("tail", "last:0", "lora", "lora:x", "head:2"):
        with pytest.raises(ValueError, match="choose none, head, last"):
            trainable(RegionEncoder(transformer()), parts)
    with pytest.raises(ValueError, match="3 blocks, not 4"):
        trainable(RegionEncoder(transformer()), "last:4")
    with pytest.raises(ValueError, match="stages, not 9"):
        trainable(RegionEncoder(convolutional()), "last:9")
    with pytest.raises(ValueError, match="no projection"):
        trainable(RegionEncoder(convolutional(proj="none")), "head")


def test_frozen_parts_while_the_head_trains_keep_their_statistics() -> None:
    tower = convolutional()
    encoder = RegionEncoder(tower)
    trainable(encoder, "head")
    before = copy.deepcopy(tower.trunk.state_dict())
    with torch.no_grad():
        expected = tower(images(64))
        pooled = encoder.train()(images(64), masks(2)).pooled_ND
    assert torch.equal(pooled, expected)
    assert tower.head.training
    assert all(torch.equal(value, before[name]) for name, value in tower.trunk.state_dict().items())
    trainable(encoder, "last")
    encoder(images(64), masks(2))
    assert torch.equal(tower.trunk.layer4[1].bn2.running_mean, before["layer4.1.bn2.running_mean"])
    trainable(encoder, "all")
    encoder(images(64), masks(2))
    assert not torch.equal(tower.trunk.bn1.running_mean, before["bn1.running_mean"])


@pytest.mark.parametrize(("make", "size"), [(transformer, 32), (convolutional, 64)])
def test_projecting_what_lies_before_the_projection_gives_the_vectors(make: Make, size: int) -> None:
    encoder, image, regions = RegionEncoder(make()), images(size), masks(3)
    with torch.no_grad():
        whole = encoder(image, regions)
        tokens, valid = encoder.tokens(image, regions)
        torch.testing.assert_close(encoder.project(tokens), whole.region_NKD)
    assert torch.equal(valid, whole.valid_NK)
