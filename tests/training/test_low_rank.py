import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from curation.openclip import open_clip
from training.low_rank import adapt, merge, plain_state
from training.regions import RegionEncoder, trainable

Make = Callable[[], nn.Module]


def transformer() -> nn.Module:
    torch.manual_seed(0)
    tower = open_clip.transformer.VisionTransformer(
        image_size=32, patch_size=8, width=32, layers=2, heads=4, mlp_ratio=2.0, output_dim=16
    )
    return tower.eval()


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    tower = open_clip.timm_model.TimmModel("tf_efficientnet_lite0", 16, image_size=32, pool="avg", proj="mlp")
    return tower.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def regions() -> Tensor:
    return torch.arange(2)[:, None, None] == (torch.arange(16).reshape(1, 1, 4, 4) % 2).expand(2, 1, 4, 4)


def train_a_little(encoder: RegionEncoder, steps: int = 3) -> None:
    learnt = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(learnt, lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.normalize(encoder(images(), regions()).region_NKD, dim=-1)[..., 0].sum().backward()
        optimiser.step()


both = pytest.mark.parametrize("make", [transformer, convolutional])


@both
def test_adapters_before_the_first_step_leave_the_tower_as_it_was(make: Make) -> None:
    encoder = RegionEncoder(make())
    with torch.no_grad():
        before = encoder(images(), regions()).region_NKD
        trainable(encoder, "lora:2")
        after = encoder(images(), regions()).region_NKD
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)  # attention may take another path


@both
def test_gradient_of_an_adapted_tower_is_in_the_adapters_alone(make: Make) -> None:
    encoder = RegionEncoder(make())
    frozen = copy.deepcopy(encoder.state_dict())
    chosen = trainable(encoder, "lora:2")
    train_a_little(encoder.train())
    adapters = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert len(adapters) == len(chosen) > 0
    assert all(name.endswith(("up_BOR", "down_BRI")) for name in adapters)
    now = {
        name.replace("parametrizations.", "").replace(".original", ""): v
        for name, v in encoder.state_dict().items()
    }
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


@both
def test_merged_tower_is_a_plain_one_that_gives_what_the_adapted_one_gave(make: Make) -> None:
    encoder = RegionEncoder(make())
    names = list(encoder.state_dict())
    trainable(encoder, "lora:2")
    train_a_little(encoder)
    saved = plain_state(encoder)
    with torch.no_grad():
        adapted = encoder(images(), regions()).region_NKD
        merge(encoder.visual)
        merged = encoder(images(), regions()).region_NKD
        fresh = RegionEncoder(make())
        untrained = fresh(images(), regions()).region_NKD
        fresh.load_state_dict(saved)
        loaded = fresh(images(), regions()).region_NKD
    assert set(encoder.state_dict()) == set(names)
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded, adapted, rtol=1e-5, atol=1e-5)
    assert (adapted - untrained).abs().max() > 1e-3


def test_adapted_tower_goes_on_from_its_state_dict_as_if_uninterrupted() -> None:
    whole, first, second = (RegionEncoder(transformer()) for _ in range(3))
    for encoder in (whole, first, second):
        trainable(encoder, "lora:2")
    train_a_little(whole, 4)
    train_a_little(first, 2)
    second.load_state_dict(first.state_dict())
    train_a_little(second, 2)
    assert all(torch.equal(v, second.state_dict()[name]) for name, v in whole.state_dict().items())


def test_update_of_adapters_has_their_rank_in_each_projection_of_attention() -> None:
    encoder = RegionEncoder(transformer())
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    trainable(encoder, "lora:2")
    train_a_little(encoder)
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    change = plain_state(encoder)[name] - before[name]
    ranks = [int(torch.linalg.matrix_rank(block, rtol=1e-3)) for block in change.chunk(3)]
    assert ranks == [2, 2, 2]


def test_trainable_part_after_adapters_finds_a_plain_tower_with_their_change() -> None:
    encoder = RegionEncoder(transformer())
    trainable(encoder, "lora:2")
    train_a_little(encoder)
    expected = plain_state(encoder)
    assert trainable(encoder, "head")[0] is encoder.visual.proj
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())


def test_adapters_on_a_network_without_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="0 matrices"):
        adapt(nn.Sequential(nn.Conv2d(3, 4, 3)), 2)
