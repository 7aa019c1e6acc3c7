"""What is counted of a training on GPUs, against torch's own counts; and the paper's configs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flows.config import load_config
from flows.forecast import gpus
from flows.forecast.flops import image_flops, text_flops
from flows.forecast.gpus import Machine, activations, estimate_run, fitting
from storage.errors import ConfigError
from training.groupvit import GroupViT, GroupViTConfig

PAPER = sorted((Path(__file__).parents[2] / "configs" / "paper").glob("cocu_*.toml"))
SMALL = GroupViTConfig(
    image_size=64, patch_size=8, width=32, heads=2, depths=(2, 1, 1), groups=(16, 8, 0), text_width=24,
    text_layers=3, text_heads=2, context_length=20, vocab_size=60, projection_hidden=48, projection_dim=12,
)  # fmt: skip


@pytest.mark.parametrize("config", [GroupViTConfig(), SMALL])
def test_operations_of_an_image_are_those_torch_counts(config):
    with torch.device("meta"):
        model = GroupViT(config)
        image = torch.zeros(2, 3, config.image_size, config.image_size)
        with FlopCounterMode(display=False) as counter:
            model.image_projector(model.image(image)[0].mean(dim=1))
    assert counter.get_total_flops() == 2 * image_flops(config)


def test_operations_of_a_text_are_those_torch_counts():
    model, length = GroupViT(SMALL), 14
    tokens = torch.zeros(2, 20, dtype=torch.int64)
    tokens[:, length - 1] = 59
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model.encode_text(tokens)
    assert counter.get_total_flops() == 2 * text_flops(SMALL, length)


def test_kept_bytes_are_near_those_torch_keeps():
    """In float32 a block keeps 64 bytes of a token's channel where bfloat16 keeps 36."""
    config, count = replace(SMALL, image_size=128, width=64, depths=(6, 3, 3)), 4
    tower, kept = GroupViT(config).image, {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = sum(p.numel() * 4 for p in tower.parameters())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tower(torch.randn(count, 3, 128, 128), torch.zeros(count, 2, dtype=torch.int32))
    text = gpus.A_BLOCK * config.text_layers * gpus.CAPTION * config.text_width
    expected = 64 / gpus.A_BLOCK * count * (activations(config, 0) - text)
    assert sum(kept.values()) - own == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_paper_config_is_estimated_for_one_and_eight_gpus_without_its_corpus(path, monkeypatch):
    for name in ("CC3M", "CC12M", "YFCC14M", "VOC"):
        monkeypatch.delenv(name, raising=False)
    one, eight = (estimate_run(path, (), None, Machine(count, "a100", price=2.0)) for count in (1, 8))
    (single,), (shared,) = one.calibrated, eight.calibrated
    assert one.images == sum(source.images for source in load_config(path, unset=True).corpus.sources)
    # 2,048 samples do not fit on one: the first of two pieces is encoded once more
    assert single.seconds.mid == pytest.approx(8 * 3.5 / 3 * shared.seconds.mid)
    assert eight.cost.mid == pytest.approx(2.0 * 8 * shared.seconds.mid / 3600)
    assert "256 on each GPU" in shared.basis
    assert "in pieces of 1024" in single.basis
    assert shared.memory < single.memory < 80e9


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_paper_config_has_the_papers_values(path):
    training = load_config(path, unset=True).train.groupvit
    loop, optim = training.loop, training.loop.optim
    assert training.model == GroupViTConfig()
    assert (loop.epochs, loop.batch_size, training.draws.count) == (30, 8 * 256, 3)
    assert (optim.rate, optim.min_rate, optim.weight_decay, optim.clip) == (1.6e-3, 4e-5, 0.05, 5.0)
    assert (optim.warmup, optim.warmup_unit) == (2, "epochs")


def test_pieces_that_are_asked_for_are_encoded_twice():
    whole, pieces = (
        estimate_run(PAPER[0], (f"train.groupvit.loop.micro_batch={size}",), 20_480, Machine(8)).stages[0]
        for size in (0, 64)
    )
    assert pieces.seconds.mid == pytest.approx(3.75 / 3 * whole.seconds.mid)
    assert pieces.memory < whole.memory


def test_estimate_grows_with_the_images_given():
    small, large = (estimate_run(PAPER[0], (), images, Machine(8)) for images in (2048 * 100, 2048 * 1000))
    assert large.seconds.mid == pytest.approx(10 * small.seconds.mid)


def test_plan_with_gpus_prints_time_cost_and_what_is_assumed(cocu, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    outcome = cocu("plan", str(PAPER[0]), "--gpus", "8", "--price", "2.5")
    assert outcome.status == 0, outcome.err
    assert "8 × A100 80 GB" in outcome.out
    assert "assumed, not measured: 20%" in outcome.out
    told = json.loads(cocu("plan", str(PAPER[0]), "--gpus", "8", "--gpu", "h100", "--json").out)
    assert told["stages"][0]["seconds"]["mid"] > 0


@pytest.mark.parametrize("machine", [(0, "a100"), (8, "abacus")])
def test_machine_there_is_none_of_raises(machine):
    with pytest.raises(ConfigError, match=r"--gpus 0|there are a100-40, a100"):
        Machine(*machine)


def test_pieces_are_the_largest_power_of_two_that_fits():
    assert (fitting(300, 1.0, 1000.0), fitting(300, 1.0, 299.0), fitting(2048, 1.0, 100.0)) == (300, 256, 64)
    with pytest.raises(ConfigError, match="does not fit"):
        fitting(8, 10.0, 5.0)
