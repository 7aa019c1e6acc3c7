"""Stage ``embed``: against open_clip itself, on broken weights, and for any number of threads."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from curation.embed import EMBED, EmbedConfig, decided, embed_shard, knobs
from curation.encoder import WEIGHTS, Encoder, EncoderConfig, load_encoder
from curation.images import decode_rgb
from curation.openclip import open_clip
from storage.errors import ConfigError, InputError
from storage.reader import CorpusReader, image_bytes
from storage.runtime import Runtime
from storage.stage import materialize


class Wide(nn.Module):
    """Products large enough for the libraries to share them among threads."""

    def __init__(self, width: int = 1100) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(3 * 64 * 64, width, generator=generator) / 100)
        self.second = nn.Parameter(torch.randn(width, 48, generator=generator))

    def encode_image(self, image_NCHW: Tensor) -> Tensor:
        return torch.tanh(image_NCHW.flatten(1) @ self.first) @ self.second


@pytest.fixture
def threads() -> Iterator[None]:
    """Leaves torch as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stored(run: Any) -> tuple[list[str], NDArray[np.float64]]:
    table = run["embed"].read("embeddings")
    return table["sample_id"].to_pylist(), np.array(table["vector"].to_pylist(), np.float64)


def test_embeddings_are_unit_vectors_of_open_clips_own_model_by_id(curated: Any, tiny_encoder: Path) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_encoder}")
    model.eval()
    ids, vectors_ND = stored(curated)
    reader, expected = CorpusReader(curated["corpus"]), {}
    for shard in reader.shards:
        for sample_id, sample in reader.members(shard, ("jpg",)):
            with torch.no_grad():
                image_1CHW = preprocess(decode_rgb(image_bytes(sample) or b""))[None]
                expected[sample_id] = nn.functional.normalize(model.encode_image(image_1CHW), dim=-1)[0]
    assert ids == list(expected)
    np.testing.assert_allclose(vectors_ND, torch.stack(list(expected.values())).numpy(), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=2e-3)


@pytest.mark.usefixtures("threads")
def test_embeddings_do_not_depend_on_the_number_of_threads(curated: Any, tiny_encoder: Path) -> None:
    encoder, reader = load_encoder(tiny_encoder, "cpu"), CorpusReader(curated["corpus"])
    wide = Encoder(
        Wide(), encoder.transform, encoder.tokenizer, encoder.mean, encoder.std, 64, torch.device("cpu")
    )
    wide.dimension = 48
    for model in (encoder, wide):
        found = []
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            output = embed_shard(EmbedConfig(batch_size=7), model, reader, "scenes/00001")
            found.append(output.tables["embeddings"])
            assert torch.get_num_threads() == count
        assert all(table.equals(found[0]) for table in found)


@pytest.mark.usefixtures("threads")
def test_text_vectors_do_not_depend_on_the_number_of_threads(tiny_encoder: Path) -> None:
    encoder, names = load_encoder(tiny_encoder, "cpu"), [f"thing {n}" for n in range(300)]
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(encoder.encode_texts(names, ("a photo of a {}.", "the {}")))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=1), 1, atol=1e-6)


def test_text_vector_of_a_name_does_not_depend_on_the_other_names(tiny_encoder: Path) -> None:
    encoder, names = load_encoder(tiny_encoder, "cpu"), [f"thing {n}" for n in range(150)]
    whole = encoder.encode_texts(names, ("the {}",))
    for part in (slice(0, 1), slice(3, 70), slice(10, 150)):
        np.testing.assert_array_equal(encoder.encode_texts(names[part], ("the {}",)), whole[part])


def test_manifest_tells_what_embedding_waited_for(curated: Any) -> None:
    manifest = curated["embed"].manifest
    assert {*manifest.shard_timings} == {*curated["corpus"].shards}
    assert all({*told} == {"read", "decode", "model", "write"} for told in manifest.shard_timings.values())
    assert sum(manifest.stall["shards"].values()) == 3
    assert manifest.stall["knob"] == knobs(EmbedConfig())[manifest.stall["verdict"].removesuffix("-bound")]
    assert 0 < manifest.stall["seconds"]["decode"] < manifest.seconds


def test_stall_report_advises_fast_decoding_only_where_decoding_is_exact() -> None:
    assert 'embed.decode = "fast"' in knobs(EmbedConfig())["decode"]
    assert "fast" not in knobs(EmbedConfig(decode="fast"))["decode"]


class Elsewhere(Encoder):
    """An encoder on another device, which answers its first batch when the second has been decoded."""

    seen = 0
    second_is_decoded = Event()

    def stack(self, images: Sequence[Tensor]) -> Tensor:
        self.seen += 1
        if self.seen == 2:
            self.second_is_decoded.set()
        return torch.stack(list(images))

    def encode_timed(self, image_NCHW: Tensor) -> tuple[NDArray[np.float32], float]:
        assert self.second_is_decoded.wait(60), "nothing was decoded while the model worked"
        return np.ones((len(image_NCHW), 1), np.float32), 0.25


@pytest.mark.usefixtures("threads")
def test_images_are_decoded_while_a_gpu_works(curated: Any, tiny_encoder: Path) -> None:
    one = load_encoder(tiny_encoder, "cpu")
    far = Elsewhere(one.model, one.transform, one.tokenizer, one.mean, one.std, 64, torch.device("cuda"))
    far.dimension = 1
    torch.set_num_threads(1)
    output = embed_shard(EmbedConfig(batch_size=7), far, CorpusReader(curated["corpus"]), "scenes/00001")
    assert output.kept == 30
    assert output.timings["model"] == 5 * 0.25  # the device's own, not shared out among threads


def test_batches_for_a_gpu_are_pinned_and_channels_last(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def unpinned(shape: tuple[int, ...], *, pin_memory: bool, memory_format: Any) -> Tensor:
        asked["pin_memory"] = pin_memory
        return torch.zeros(shape).contiguous(memory_format=memory_format)

    images = list(torch.randn(3, 3, 8, 8))
    encoder = replace(load_encoder(tiny_encoder, "cpu"), device=torch.device("cuda"))
    monkeypatch.setattr(torch, "empty", unpinned)  # without a GPU nothing can be pinned
    batch_NCHW = encoder.stack(images)
    assert asked == {"pin_memory": True}
    assert batch_NCHW.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch_NCHW, torch.stack(images))


def test_embed_with_broken_weights_is_refused_naming_the_shard_and_commits_nothing(
    curate: Any, scene_corpus: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_encoder, broken)
    tensors = load_file(broken / WEIGHTS)
    name = next(name for name in tensors if name.startswith("visual") and name.endswith("weight"))
    tensors[name][0] = float("nan")
    save_file(tensors, broken / WEIGHTS)
    with pytest.raises(
        InputError, match=r"30 of 30 vectors with NaN or infinity on shard 'scenes/00000'.*fp32"
    ):
        curate(tmp_path / "store", scene_corpus, broken, until="embed")
    assert not (tmp_path / "store" / "embed").exists()


def test_image_that_rotted_since_the_corpus_was_read_is_quarantined(
    curate: Any, write_pairs: Any, scene_jpegs: list[bytes], tiny_encoder: Path, tmp_path: Path
) -> None:
    pairs = [(data, "a dog") for data in scene_jpegs[:4]]
    run = curate(tmp_path / "store", write_pairs(tmp_path / "tars", pairs), tiny_encoder, until="corpus")
    pairs[2] = (scene_jpegs[2][:400], "a dog")
    write_pairs(tmp_path / "rotten", pairs)
    places = {run["corpus"].fingerprint: {"web/00000": f"{tmp_path}/rotten/00000.tar"}}
    inputs = {"corpus": run["corpus"], "encoder": run["encoder"]}
    store = run.plan.store
    materialize_encoder(run)
    embedded = materialize(EMBED, EmbedConfig(), inputs, store, Runtime(device="cpu", locations=places))
    counts = embedded.manifest.counts
    assert (counts.seen, counts.kept, counts.rejected) == (4, 3, {"image_undecodable": 1})
    assert embedded.read("quarantine").to_pylist() == [
        {
            "sample_id": "web/00000/0002", "shard": "web/00000", "key": "0002", "stage": "embed",
            "reason": "image_undecodable", "detail": embedded.read("quarantine")["detail"][0].as_py(),
        }
    ]  # fmt: skip
    assert embedded.read("quarantine")["detail"][0].as_py().startswith("image_truncated: ")
    assert embedded.read("embeddings", columns=["sample_id"])["sample_id"].to_pylist() == [
        f"web/00000/{n:04d}" for n in (0, 1, 3)
    ]


def materialize_encoder(run: Any) -> None:
    node = next(node for node in run.plan.nodes if node.label == "encoder")
    materialize(node.stage, node.config, node.inputs, run.plan.store, Runtime(device="cpu"))


@pytest.mark.parametrize(
    ("model", "pretrained", "reason"),
    [
        ("ViT-B-1600", "", "ViT-B-1600"),
        ("ViT-B-32", "no-such-tag", "no-such-tag"),
        ("local-dir:/no/such/folder", "", "holds no open_clip_config.json"),
    ],
)
def test_unknown_encoder_is_named_with_what_is_allowed(
    model: str, pretrained: str, reason: str, tmp_path: Path
) -> None:
    from curation.encoder import ENCODER
    from storage.artifact import Store

    store, config = Store(str(tmp_path)), EncoderConfig(model, pretrained)
    with pytest.raises(InputError, match=reason):
        materialize(ENCODER, config, ENCODER.outside(config, store.folder), store, Runtime(device="cpu"))


def test_weights_of_another_model_are_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny_encoder, wrong)
    tensors = load_file(wrong / WEIGHTS)
    tensors.pop("logit_scale")
    save_file(tensors, wrong / WEIGHTS)
    with pytest.raises(InputError, match=r"cannot load the encoder 'local-dir:.*wrong'.*logit_scale"):
        load_encoder(wrong, "cpu")


def test_encoder_is_identified_by_its_bytes_not_its_place(
    curated: Any, curate: Any, scene_corpus: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_encoder, moved)
    run = curate(curated.plan.store.url, scene_corpus, moved, until="embed")
    assert run["embed"] == curated["embed"]


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), ("cuda", "bf16")])
def test_precision_auto_is_decided_by_the_device_and_others_stay(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str
) -> None:
    monkeypatch.setattr("curation.embed.pick_device", lambda _: torch.device(device))
    assert decided(EmbedConfig(precision="auto", batch_size=3)) == EmbedConfig(3, precision)  # type: ignore[arg-type]
    assert decided(EmbedConfig(precision="fp16")).precision == "fp16"


def test_precision_auto_that_nobody_decided_is_refused(
    curate: Any, scene_corpus: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    undecided = EmbedConfig(precision="auto")
    with pytest.raises(ConfigError, match="name fp32, bf16 or fp16"):
        curate(tmp_path, scene_corpus, tiny_encoder, until="embed", embed=undecided)
