"""Every kind of tower that open_clip has encodes regions as it encodes its pictures."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from curation.openclip import open_clip
from training.regions import RegionEncoder, trainable

TimmModel, timm = open_clip.timm_model.TimmModel, open_clip.timm_model.timm
Plain, Eva = timm.models.VisionTransformer, timm.models.Eva
SIZE = 32  # pixels, of 4 x 4 patches
SMALL = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
Make = Callable[[], nn.Module]


def stirred(tower: nn.Module) -> nn.Module:
    """With no norm, bias or scale left at its neutral value."""
    torch.manual_seed(0)
    for parameter in tower.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return tower.eval()


def around(trunk: nn.Module, proj: str = "none", width: int = 32) -> nn.Module:
    """open_clip's TimmModel around a trunk that timm has no name for."""
    tower = TimmModel("test_vit", 16, image_size=SIZE, pool="token", proj="none")
    tower.trunk = trunk
    if proj == "linear":
        tower.head.add_module("proj", nn.Linear(width, 16, bias=False))
    return stirred(tower)


def siglip() -> nn.Module:
    return around(Plain(**SMALL, class_token=False, global_pool="map", num_classes=0))


def registers() -> nn.Module:
    """A latent query that reads registers, too."""
    options = {"class_token": False, "reg_tokens": 2, "global_pool": "map", "pool_include_prefix": True}
    return around(Plain(**SMALL, **options, num_classes=16))


def class_token() -> nn.Module:
    """As MobileCLIP2-L-14."""
    return around(Plain(**SMALL, global_pool="token", pre_norm=True, reg_tokens=1, num_classes=16))


def averaged() -> nn.Module:
    """As ViTamin, less its convolutions."""
    options = {"class_token": False, "global_pool": "avg", "num_classes": 0, "init_values": 0.5}
    return around(Plain(**SMALL, **options), proj="linear")


def eva(**options: object) -> nn.Module:
    """As EVA02-B-16."""
    rotary = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4), "num_classes": 16, "global_pool": "token"}
    return around(
        Eva(**SMALL, **(rotary | {"swiglu_mlp": True, "scale_mlp": True, "mlp_ratio": 2.0} | options))
    )


def perception() -> nn.Module:
    """As PE-Core-B-16: a latent query reads the class token, too."""
    options = {"attn_type": "rope", "use_pre_transformer_norm": True, "global_pool": "map"}
    return eva(**options, swiglu_mlp=False, scale_mlp=False)


def clipa(**options: object) -> nn.Module:
    sizes = {"image_size": SIZE, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_ratio": 2.0}
    pool = {"pool_type": "avg", "no_ln_pre": True} | options
    return stirred(open_clip.transformer.VisionTransformer(**sizes, output_dim=16, **pool))


def coca() -> nn.Module:
    return clipa(pool_type="tok", attentional_pool=True, attn_pooler_queries=5, attn_pooler_heads=4)


def resnet() -> nn.Module:
    """As RN50: 4 x 4 cells of 32 pixels."""
    return stirred(open_clip.modified_resnet.ModifiedResNet([1, 1, 1, 1], 16, 4, image_size=128, width=8))


TRANSFORMERS: dict[str, Make] = {
    "SigLIP": siglip,
    "registers": registers,
    "class token of timm's": class_token,
    "mean of timm's": averaged,
    "EVA02": eva,
    "EVA02-E": lambda: eva(use_post_norm=True, swiglu_mlp=False, scale_mlp=False),
    "PE": perception,
    "CLIPA": clipa,
    "CLIPA, late norm": lambda: clipa(final_ln_after_pool=True),
    "CoCa": coca,
}
TOWERS = {**TRANSFORMERS, "RN50": resnet}


def size_of(tower: nn.Module) -> int:
    return 128 if hasattr(tower, "attnpool") else SIZE


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def masks(regions: int, grid: int = 4, count: int = 2) -> Tensor:
    labels = torch.randint(regions, (count, grid, grid), generator=torch.Generator().manual_seed(2))
    return labels[:, None] == torch.arange(regions)[:, None, None]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


@pytest.fixture(params=TOWERS.values(), ids=TOWERS.keys())
def tower(request: pytest.FixtureRequest) -> nn.Module:
    return request.param()


def test_without_regions_the_pictures_vector_is_the_towers_own(tower: nn.Module) -> None:
    image = images(size_of(tower))
    with torch.no_grad():
        got = RegionEncoder(tower)(image, masks(1)[:, :0])
        expected = tower(image)
    assert got.region_NKD.shape == (2, 0, expected.shape[1])
    if hasattr(tower, "attnpool"):  # its own attention is another operation
        close(got.pooled_ND, expected)
    else:
        assert torch.equal(got.pooled_ND, expected)


def test_regions_leave_the_pictures_vector_alone(tower: nn.Module) -> None:
    image = images(size_of(tower))
    with torch.no_grad():
        close(RegionEncoder(tower)(image, masks(3)).pooled_ND, tower(image))


def test_a_region_that_covers_the_picture_has_its_vector(tower: nn.Module) -> None:
    image = images(size_of(tower))
    with torch.no_grad():
        got = RegionEncoder(tower)(image, torch.ones(2, 1, 4, 4, dtype=torch.bool))
        close(got.region_NKD[:, 0], tower(image))


def test_a_regions_vector_is_the_same_whatever_regions_are_beside_it(tower: nn.Module) -> None:
    encoder, image, regions = RegionEncoder(tower), images(size_of(tower)), masks(4)
    with torch.no_grad():
        together = encoder(image, regions).region_NKD[:, 1:2]
        alone = encoder(image, regions[:, 1:2]).region_NKD
        other = encoder(image, regions[:, 2:3]).region_NKD
    close(alone, together)
    assert not torch.allclose(alone, other, atol=1e-3)


def test_a_region_of_no_cell_is_marked_invalid_and_stays_finite(tower: nn.Module) -> None:
    regions = masks(2)
    regions[0, 1] = False
    got = RegionEncoder(tower)(images(size_of(tower)), regions)
    assert got.valid_NK.tolist() == [[True, False], [True, True]]
    got.region_NKD.square().sum().backward()
    assert got.region_NKD.isfinite().all()
    assert all(p.grad.isfinite().all() for p in tower.parameters() if p.grad is not None)


def test_projecting_what_lies_before_the_projection_gives_the_vectors(tower: nn.Module) -> None:
    encoder, image, regions = RegionEncoder(tower), images(size_of(tower)), masks(3)
    with torch.no_grad():
        whole = encoder(image, regions)
        tokens, valid = encoder.tokens(image, regions)
        close(encoder.project(tokens), whole.region_NKD)
    assert torch.equal(valid, whole.valid_NK)


def test_other_pictures_have_other_grids_and_leave_the_tower_as_it_was(tower: nn.Module) -> None:
    size, encoder = size_of(tower), RegionEncoder(tower)
    with torch.no_grad():
        before = tower(images(size))
        wide = images(size).repeat(1, 1, 1, 2)
        assert encoder.dense(wide).shape[2:] == (4, 8)
        found = encoder(wide, torch.ones(2, 1, 4, 8))
        assert torch.equal(tower(images(size)), before)
        close(found.region_NKD[:, 0], found.pooled_ND)
        if hasattr(tower, "trunk"):
            resized = copy.deepcopy(tower)
            resized.trunk.set_input_size((size, 2 * size))
            close(found.pooled_ND, resized(wide))


@pytest.mark.parametrize("make", [siglip, registers, averaged, clipa, coca, resnet])
def test_a_region_is_pooled_from_its_own_patches_row_by_row(make: Make) -> None:
    """What a region's vector does not depend on tells which patches it is made of."""
    tower = make()
    encoder, size = RegionEncoder(tower), size_of(tower)
    wide = images(size, 1).repeat(1, 1, 1, 2)
    seen_hw = torch.rand(4, 8, generator=torch.Generator().manual_seed(5)) > 0.5
    maps = torch.zeros(1, 1, 4, 8, requires_grad=True)  # added to what is pooled
    last = {"attnpool": "layer4", "trunk": "trunk.blocks", "transformer": "transformer"}
    layer = tower.get_submodule(next(name for part, name in last.items() if hasattr(tower, part)))
    layer = layer[-1] if isinstance(layer, nn.Sequential) and hasattr(tower, "trunk") else layer
    layer = layer.resblocks[-1] if hasattr(layer, "resblocks") else layer
    hook = layer.register_forward_hook(lambda _module, _given, found: shifted(found, maps))
    encoder(wide, seen_hw[None, None]).region_NKD.sum().backward()
    hook.remove()
    assert torch.equal(maps.grad[0, 0] != 0, seen_hw)


def shifted(found: Tensor, maps: Tensor) -> Tensor:
    """Maps, or tokens whose last ones are patches, with a number added to one channel of each."""
    if found.ndim == 4:
        return torch.cat([found[:, :1] + maps, found[:, 1:]], 1)
    added = torch.cat([torch.zeros(1, found.shape[1] - maps.numel()), maps.flatten(1)], 1)
    return torch.cat([found[..., :1] + added[..., None], found[..., 1:]], 2)


def test_every_part_that_can_learn_is_found(tower: nn.Module) -> None:
    encoder, everything = RegionEncoder(tower), len(list(tower.parameters()))
    image, regions = images(size_of(tower)), masks(2)
    for parts in ("head", "last", "last:2", "projections", "lora:2"):
        chosen = trainable(encoder, parts)
        assert 0 < len(chosen) < everything
        encoder(image, regions).region_NKD.square().sum().backward()
        assert all(p.grad is not None for p in chosen), parts
        tower.zero_grad(set_to_none=True)
    with pytest.raises(ValueError, match="not 9"):
        trainable(encoder, "last:9")


@pytest.mark.parametrize(
    ("make", "behind"), [(perception, {"norm", "attn_pool", "head"}), (siglip, {"norm", "attn_pool"})]
)
def test_last_parts_of_timms_transformers_are_the_named_ones(make: Make, behind: set[str]) -> None:
    tower = make()
    trainable(RegionEncoder(tower), "last:2")
    names = {n.removeprefix("trunk.") for n, p in tower.named_parameters() if p.requires_grad}
    assert {".".join(name.split(".")[:2]) for name in names if "blocks" in name} == {"blocks.1", "blocks.2"}
    assert {name.split(".")[0] for name in names} == behind | {"blocks"}


def test_low_rank_adapters_of_fused_matrices_are_one_for_each() -> None:
    tower = perception()
    trainable(RegionEncoder(tower), "lora:2")
    ups = {n: tuple(p.shape) for n, p in tower.named_parameters() if n.endswith("up_BOR")}
    assert {shape[0] for name, shape in ups.items() if ".qkv." in name} == {3}
    assert {shape[0] for name, shape in ups.items() if ".kv." in name} == {2}
    pooler = coca()
    trainable(RegionEncoder(pooler), "lora:2")
    adapted = {n.split(".parametrizations")[0] for n, _ in pooler.named_parameters() if "up_BOR" in n}
    assert "attn_pool.attn" in adapted


def test_the_head_of_a_tower_without_a_projection_is_the_mlp_behind_its_query() -> None:
    tower = siglip()
    encoder = RegionEncoder(tower)
    chosen = trainable(encoder, "head")
    pool = tower.trunk.attn_pool
    assert {id(p) for p in chosen} == {id(p) for part in (pool.norm, pool.mlp) for p in part.parameters()}
    with torch.no_grad():
        image, regions = images(SIZE), masks(3)
        tokens, valid = encoder.tokens(image, regions)
        pool.mlp.fc2.weight.mul_(2.0)  # as if it had learnt
        again, _ = encoder.tokens(image, regions)
        assert torch.equal(tokens, again)
        assert torch.equal(encoder(image, regions).pooled_ND, tower(image))
    assert valid.all()


@pytest.mark.parametrize("make", TRANSFORMERS.values(), ids=TRANSFORMERS.keys())
def test_a_region_of_a_transformer_reads_the_context_its_patches_carry(make: Make) -> None:
    encoder, image = RegionEncoder(make()), images(SIZE, 1)
    corner = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    corner[..., 0, 0] = True
    changed = image.clone()
    changed[..., 16:, 16:] += 1
    with torch.no_grad():
        before, after = encoder(image, corner).region_NKD, encoder(changed, corner).region_NKD
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("make", [class_token, eva, perception], ids=["plain", "EVA02", "PE"])
def test_a_region_token_is_a_class_token_that_sees_its_patches_alone(make: Make) -> None:
    """In the first block, of which all is known: hiding the others' keys from the class token is the same."""
    tower = make()
    trunk, image, inside = tower.trunk, images(SIZE, 1), masks(3, count=1)[:, :1]
    trunk.blocks = trunk.blocks[:1]
    with torch.no_grad():
        got = RegionEncoder(tower)(image, inside).region_NKD[0, 0]
        tokens = trunk.patch_embed(image)
        embedded = trunk._pos_embed(tokens)
        tokens, given = (
            (embedded, {}) if isinstance(embedded, Tensor) else (embedded[0], {"rope": embedded[1]})
        )
        first = torch.ones(trunk.num_prefix_tokens, dtype=torch.bool)
        seen = torch.cat([first, inside.flatten()])
        hidden = torch.zeros(len(seen), len(seen)).masked_fill(~seen, -torch.inf)
        tokens = trunk.blocks[0](trunk.norm_pre(tokens), attn_mask=hidden, **given)
        tokens = torch.cat([tokens[:, :1], own_patches(trunk, image, given)], 1)
        expected = tower.head(trunk.forward_head(pooled_alone(trunk, trunk.norm(tokens), seen)))[0]
    close(got, expected)


def own_patches(trunk: nn.Module, image: Tensor, given: dict[str, Tensor]) -> Tensor:
    """Registers and patches as they are without regions."""
    embedded = trunk._pos_embed(trunk.patch_embed(image))
    tokens = embedded if isinstance(embedded, Tensor) else embedded[0]
    return trunk.blocks[0](trunk.norm_pre(tokens), **given)[:, 1:]


def pooled_alone(trunk: nn.Module, tokens: Tensor, seen: Tensor) -> Tensor:
    """Only what a latent query may read; a class token is read by itself."""
    return tokens[:, seen] if trunk.attn_pool is not None else tokens


@pytest.mark.parametrize("name", ["fastvit_mci0", "vitamin_small_224", "swin_tiny_patch4_window7_224"])
def test_hybrids_and_windows_of_timm_encode_regions(name: str) -> None:
    options = {"proj": ""} if name == "fastvit_mci0" else {"proj": "linear"}
    tower = stirred(TimmModel(name, 16, image_size=224, pool="avg", **options))
    encoder, image = RegionEncoder(tower), images(224, 1)
    upper = torch.zeros(1, 1, 2, 2)
    upper[..., 0, :] = 1
    with torch.no_grad():
        got = encoder(image, torch.cat([torch.ones(1, 1, 2, 2), upper], 1))
        torch.testing.assert_close(got.region_NKD[:, 0], tower(image), rtol=1e-4, atol=1e-4)
        maps = encoder.dense(image)
        rows = torch.tensor([1.0] * (maps.shape[2] // 2) + [0.5] * (maps.shape[2] % 2))
        mean = (maps[:, :, : len(rows)] * rows[:, None]).mean(3).sum(2) / rows.sum()
        torch.testing.assert_close(got.token_NKC[:, 1], normed(tower, mean), rtol=1e-4, atol=1e-4)


def normed(tower: nn.Module, mean: Tensor) -> Tensor:
    """Where a norm lies between the mean and the projection."""
    return tower.trunk.fc_norm(mean) if hasattr(tower.trunk, "fc_norm") else mean


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: around(Plain(**SMALL, global_pool="max", num_classes=16)), "'max'"),
        (lambda: around(Plain(**SMALL, patch_drop_rate=0.5, num_classes=16)), "force_patch_dropout=0"),
        (lambda: around(Plain(**SMALL, global_pool="prr", num_classes=16)), "AttentionPoolPrr"),
        (lambda: eva(rope_type="mixed", ref_feat_shape=None), "from block to block"),
        (lambda: clipa(attentional_pool="parallel"), "two poolers"),
    ],
)
def test_a_tower_that_regions_can_have_no_part_in_is_refused(make: Make, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        RegionEncoder(make())


def test_images_that_do_not_fit_are_refused_by_size() -> None:
    with pytest.raises(ValueError, match="36 x 36 px does not split into patches of 8 x 8 px"):
        RegionEncoder(siglip())(images(36), masks(2))
    swin = TimmModel("swin_tiny_patch4_window7_224", 16, image_size=224, pool="avg", proj="linear").eval()
    with pytest.raises(ValueError, match="224 x 224 px alone"):
        RegionEncoder(swin)(images(256, 1), masks(2, count=1))


def test_gradient_checkpointing_of_a_timm_transformer_changes_no_gradient() -> None:
    plain = eva()
    checkpointed = copy.deepcopy(plain)
    checkpointed.trunk.set_grad_checkpointing(True)
    for tower in (plain, checkpointed):
        RegionEncoder(tower)(images(SIZE), masks(3)).region_NKD.square().sum().backward()
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_regions_in_bfloat16_are_nearly_those_in_float32(tower: nn.Module) -> None:
    encoder, image, regions = RegionEncoder(tower), images(size_of(tower)), masks(3)
    with torch.no_grad():
        expected = encoder(image, regions).region_NKD
        with torch.autocast("cpu", torch.bfloat16):
            got = encoder(image, regions).region_NKD
    assert torch.cosine_similarity(got.float(), expected, dim=-1).min() > 0.99
