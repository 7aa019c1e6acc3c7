"""Folders of `transformers`' format: written by each side, read by the other; and the names of weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.errors import InputError
from storage.files import Folder
from tests.training.groupvit_oracle import (
    TINY,
    images,
    same_weights,
    texts,
    transformers_config,
    transformers_groupvit,
    with_every_weight_random,
)  # fmt: skip
from training.groupvit import GroupViT, GroupViTConfig
from training.groupvit_folder import (
    config_from_transformers,
    config_to_transformers,
    load_pretrained,
    save_pretrained,
    start_from,
)
from training.groupvit_weights import from_transformers, to_transformers, transformers_names
from training.train import GroupViTTraining, starting_weights

DEMO = replace(TINY, depths=(1, 1), groups=(5, 0), heads=2, image_size=16, vocab_size=64)


@pytest.fixture
def fresh() -> GroupViT:
    torch.manual_seed(0)
    return GroupViT(TINY)


@pytest.fixture
def theirs() -> Any:
    module = transformers_groupvit()
    return with_every_weight_random(module.GroupViTModel(transformers_config(module)))


def test_paper_defaults_have_the_names_and_shapes_of_transformers() -> None:
    module = transformers_groupvit()
    with torch.device("meta"):
        theirs = module.GroupViTModel(module.GroupViTConfig()).state_dict()
        ours = to_transformers(GroupViT(GroupViTConfig()).state_dict())
    assert {name: w.shape for name, w in ours.items()} == {n: w.shape for n, w in theirs.items()}


def test_weights_to_transformers_and_back_are_the_same(fresh: GroupViT) -> None:
    state = fresh.state_dict()
    back = from_transformers(to_transformers(state), state)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_weights_of_other_depth_raise_with_names(fresh: GroupViT) -> None:
    state = to_transformers(fresh.state_dict())
    state["text_model.encoder.layers.2.mlp.fc1.bias"] = torch.zeros(1)
    del state["logit_scale"]
    with pytest.raises(ValueError, match=r"missing weights \['logit_scale'\].*layers\.2"):
        from_transformers(state, fresh.state_dict())


def test_names_are_all_different(fresh: GroupViT) -> None:
    names = [theirs for name in fresh.state_dict() for theirs in transformers_names(name)]
    assert len(set(names)) == len(names)


def test_folder_from_transformers_gives_its_model(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    model = load_pretrained(str(tmp_path))
    assert model.config == TINY
    assert_same_state(model, same_weights(theirs, TINY))


def test_old_folder_with_positions_and_a_bin_file_gives_its_model(theirs: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(theirs.config.to_dict()))
    legacy = {"text_model.embeddings.position_ids": torch.arange(10)[None]}
    torch.save(theirs.state_dict() | legacy, tmp_path / "pytorch_model.bin")
    assert_same_state(load_pretrained(str(tmp_path)), same_weights(theirs, TINY))


@pytest.mark.parametrize("config", [TINY, DEMO])
def test_saved_folder_is_a_model_of_transformers(config: GroupViTConfig, tmp_path: Path) -> None:
    ours = with_every_weight_random(GroupViT(config))
    save_pretrained(config, ours.state_dict(), Folder(str(tmp_path)))
    theirs = transformers_groupvit().GroupViTModel.from_pretrained(tmp_path).eval()
    image = images(2, 3, config.image_size, config.image_size)
    tokens = texts()
    tokens[tokens == 49] = config.vocab_size - 1
    with torch.no_grad():
        expected = theirs(input_ids=tokens, pixel_values=image).logits_per_image
        image_ND, text_MD, scale = ours(image, tokens)
    torch.testing.assert_close(scale * image_ND @ text_MD.T, expected, atol=1e-5, rtol=1e-4)


def test_saved_folder_loads_again_from_any_file_system(fresh: GroupViT) -> None:
    save_pretrained(TINY, fresh.state_dict(), Folder("memory://groupvit/tiny"))
    again = load_pretrained("memory://groupvit/tiny")
    assert again.config == TINY
    assert_same_state(again, fresh)


@pytest.mark.parametrize("config", [TINY, DEMO, GroupViTConfig()])
def test_config_to_transformers_and_back_is_the_same(config: GroupViTConfig) -> None:
    assert config_from_transformers(config_to_transformers(config)) == config


def test_config_without_the_papers_architecture_raises() -> None:
    with pytest.raises(ValueError, match=r"vision_config.assign_eps is 0.5; only 1.0"):
        config_from_transformers({"vision_config": {"assign_eps": 0.5}})
    assert config_from_transformers({}) == GroupViTConfig()


def test_folder_without_a_model_raises_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config.json with model.safetensors"):
        load_pretrained(str(tmp_path))


def test_folder_with_broken_weights_raises_one_line(fresh: GroupViT, tmp_path: Path) -> None:
    save_pretrained(TINY, fresh.state_dict(), Folder(str(tmp_path)))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"holds no GroupViT that can be used here: .+") as told:
        load_pretrained(str(tmp_path))
    assert "\n" not in str(told.value)


def test_folder_with_weights_of_other_sizes_raises(fresh: GroupViT, tmp_path: Path) -> None:
    save_pretrained(TINY, fresh.state_dict(), Folder(str(tmp_path)))
    wider = config_to_transformers(replace(TINY, projection_dim=16))
    (tmp_path / "config.json").write_text(json.dumps(wider))
    with pytest.raises(InputError, match=r"size mismatch for image_projector"):
        load_pretrained(str(tmp_path))


def test_published_model_without_a_network_tells_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hf download nobody/nothing --local-dir FOLDER"):
        load_pretrained("hf-hub:nobody/nothing")


def test_start_from_a_folder_gives_its_weights(fresh: GroupViT, tmp_path: Path) -> None:
    save_pretrained(TINY, fresh.state_dict(), Folder(str(tmp_path)))
    torch.manual_seed(1)
    other = GroupViT(TINY)
    start_from(str(tmp_path), other)
    assert_same_state(other, fresh)


def test_start_from_a_folder_of_other_sizes_names_them(fresh: GroupViT, tmp_path: Path) -> None:
    save_pretrained(TINY, fresh.state_dict(), Folder(str(tmp_path)))
    with pytest.raises(InputError, match=r"set model to depths = \(2, 1, 1\) \(not \(1, 1\)\), groups"):
        start_from(str(tmp_path), GroupViT(replace(TINY, depths=(1, 1), groups=(6, 0))))


def test_training_is_another_one_with_other_weights_to_start_from(fresh: GroupViT, tmp_path: Path) -> None:
    store, place = Folder(str(tmp_path / "store")), str(tmp_path / "model")
    save_pretrained(TINY, fresh.state_dict(), Folder(place))
    first = starting_weights(GroupViTTraining(init=place), store)
    save_pretrained(TINY, with_every_weight_random(fresh).state_dict(), Folder(place))
    assert starting_weights(GroupViTTraining(init=place), store) != first
    assert starting_weights(GroupViTTraining(), store) == {}
    with pytest.raises(InputError, match=r"nowhere/config.json"):
        starting_weights(GroupViTTraining(init=str(tmp_path / "nowhere")), store)


def assert_same_state(model: GroupViT, other: GroupViT) -> None:
    state = other.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
