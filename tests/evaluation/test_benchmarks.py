import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation import classes
from evaluation.benchmarks import (
    Benchmark,
    caption_truth,
    cityscapes,
    classes_present,
    coco_object,
    prompt_names,
    shards,
    voc,
)
from evaluation.labelled import RejectedImage
from storage.errors import InputError

Labels = NDArray[np.uint8]

GREY = np.full((6, 8, 3), 120, np.uint8)


@pytest.fixture
def voc_folder(tmp_path: Path, save: Callable[..., None], labels: Labels) -> Path:
    for key in ("2007_000001", "2007_000002"):
        save(tmp_path / "JPEGImages" / f"{key}.jpg", GREY)
        save(tmp_path / "SegmentationClass" / f"{key}.png", labels, "P")
    split = tmp_path / "ImageSets" / "Segmentation" / "val.txt"
    split.parent.mkdir(parents=True)
    split.write_text("2007_000002\n2007_000001\n")
    return tmp_path


@pytest.fixture
def coco_folder(tmp_path: Path, save: Callable[..., None], labels: Labels) -> Path:
    save(tmp_path / "images" / "val2017" / "000000000139.jpg", GREY)
    save(tmp_path / "annotations" / "val2017" / "000000000139_instanceTrainIds.png", labels)
    return tmp_path


def test_voc_devkit_layout_gives_listed_images_in_order_with_palette_indices(
    voc_folder: Path, labels: Labels
) -> None:
    benchmark = voc(voc_folder)
    assert [image.image_id for image in benchmark.images] == ["2007_000002", "2007_000001"]
    assert benchmark.labels[0] == "background"
    assert len(benchmark.labels) == 21
    assert benchmark.images[0].load_image().shape == (6, 8, 3)
    np.testing.assert_array_equal(benchmark.images[0].load_mask(), labels)


def test_voc_synonyms_change_prompts_and_name_but_not_classes(voc_folder: Path) -> None:
    plain, wide = voc(voc_folder), voc(voc_folder, classes.VOC_SYNONYMS)
    assert (plain.name, wide.name) == ("voc", "voc-synonyms")
    assert plain.class_names == wide.class_names
    person = plain.class_names.index("person")
    assert plain.synonyms[person] == ("person",)
    assert {"person", "man", "woman", "child"} <= set(wide.synonyms[person])


def test_prompt_names_synonyms_of_unknown_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'lion'.*classes: "):
        prompt_names(("cat",), {"lion": ("simba",)})


@pytest.mark.parametrize("adapter", [voc, coco_object, cityscapes])
def test_adapter_missing_folder_names_path_and_remedy(
    adapter: Callable[[Path], Benchmark], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path}.* is not there; give "):
        adapter(tmp_path / "nowhere")


def test_voc_without_split_names_the_file(voc_folder: Path) -> None:
    (voc_folder / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(InputError, match=r"val\.txt is not there"):
        voc(voc_folder)


def test_voc_empty_split_is_refused(voc_folder: Path) -> None:
    (voc_folder / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(InputError, match="names no pictures"):
        voc(voc_folder)


@pytest.mark.parametrize(
    ("folder", "suffix", "load", "reason"),
    [
        ("JPEGImages", "jpg", "load_image", "image"),
        ("SegmentationClass", "png", "load_mask", "mask"),
    ],
)
def test_image_missing_empty_or_torn_file_is_rejected_with_reason_and_path(
    voc_folder: Path, folder: str, suffix: str, load: str, reason: str
) -> None:
    image = voc(voc_folder).images[0]
    path = voc_folder / folder / f"{image.image_id}.{suffix}"
    whole = path.read_bytes()
    for content in (b"", b"not a picture", whole[: len(whole) * 2 // 3]):
        path.write_bytes(content)
        with pytest.raises(RejectedImage, match=str(path)) as caught:
            getattr(image, load)()
        assert caught.value.reason == f"{reason}_unreadable"
    path.unlink()
    with pytest.raises(RejectedImage, match=str(path)) as caught:
        getattr(image, load)()
    assert caught.value.reason == f"{reason}_missing"


def test_mask_in_colours_is_rejected_for_its_mode(voc_folder: Path, save: Callable[..., None]) -> None:
    image = voc(voc_folder).images[0]
    save(voc_folder / "SegmentationClass" / f"{image.image_id}.png", GREY)
    with pytest.raises(RejectedImage, match="mode RGB"):
        image.load_mask()


def test_image_in_grey_is_loaded_as_rgb(voc_folder: Path, save: Callable[..., None]) -> None:
    image = voc(voc_folder).images[0]
    save(voc_folder / "JPEGImages" / f"{image.image_id}.jpg", GREY[..., 0])
    assert image.load_image().shape == (6, 8, 3)


def test_rejection_pickled_keeps_reason_and_detail() -> None:
    again = pickle.loads(pickle.dumps(RejectedImage("mask_missing", "here")))  # noqa: S301
    assert (again.reason, again.detail, str(again)) == ("mask_missing", "here", "here (mask_missing)")


def test_cityscapes_label_ids_become_train_ids(tmp_path: Path, save: Callable[..., None]) -> None:
    raw_HW = np.array([[7, 8, 11, 33], [0, 29, 31, 255]], np.uint8)
    save(tmp_path / "leftImg8bit" / "val" / "ulm" / "ulm_000000_000019_leftImg8bit.png", GREY)
    save(tmp_path / "gtFine" / "val" / "ulm" / "ulm_000000_000019_gtFine_labelIds.png", raw_HW)
    benchmark = cityscapes(tmp_path)
    assert not benchmark.has_background
    assert len(benchmark.labels) == len(classes.CITYSCAPES_LABEL_IDS) == 19
    (image,) = benchmark.images
    assert image.image_id == "ulm_000000_000019"
    np.testing.assert_array_equal(image.load_mask(), [[0, 1, 2, 18], [255, 255, 16, 255]])


def test_shards_tars_give_pairs_with_sample_ids(
    tmp_path: Path, save_tar: Callable[..., Path], encoded: Callable[..., bytes], labels: Labels
) -> None:
    picture, mask = encoded(GREY, "JPEG"), encoded(labels, "PNG")
    files = [("a.jpg", picture), ("a.png", mask), ("a.json", b"{}"), ("b.JPG", picture)]
    first = save_tar(tmp_path / "00000.tar", files)
    second = save_tar(tmp_path / "00001.tar", [("in/c.jpg", picture), ("in/c.png", mask)])
    benchmark = shards("scenes", [first, second], ["cat", "dog"])
    assert [image.image_id for image in benchmark.images] == [
        "scenes/00000/a", "scenes/00000/b", "scenes/00001/in/c",
    ]  # fmt: skip
    assert benchmark.labels == ("cat", "dog")
    np.testing.assert_array_equal(benchmark.images[0].load_mask(), labels)
    np.testing.assert_array_equal(benchmark.images[0].load_image(), benchmark.images[1].load_image())
    with pytest.raises(RejectedImage, match=r"00000\.tar\[b\.JPG\]") as caught:
        benchmark.images[1].load_mask()
    assert caught.value.reason == "mask_missing"


def test_shards_with_background_names_put_background_first(
    tmp_path: Path, save_tar: Callable[..., Path], encoded: Callable[..., bytes]
) -> None:
    tar = save_tar(tmp_path / "00000.tar", [("a.jpg", encoded(GREY, "JPEG"))])
    benchmark = shards("scenes", [tar], ["cat"], background_names=["sky"])
    assert benchmark.labels == ("background", "cat")
    assert benchmark.background_names == ("sky",)


def test_shards_torn_absent_or_without_pictures_are_refused(
    tmp_path: Path, save_tar: Callable[..., Path]
) -> None:
    torn = tmp_path / "torn.tar"
    torn.write_bytes(b"\x01" * 700)
    for tar in (torn, tmp_path / "absent.tar"):
        with pytest.raises(InputError, match=f"{tar.name} cannot be read"):
            shards("scenes", [tar], ["cat"])
    with pytest.raises(InputError, match=r"texts\.tar names no pictures"):
        shards("scenes", [save_tar(tmp_path / "texts.tar", [("a.txt", b"hi")])], ["cat"])


def test_caption_truth_counts_classes_by_share_of_all_pixels(
    coco_folder: Path, labels: Labels, save: Callable[..., None]
) -> None:
    labels[0, 0] = 17  # one pixel of 48: 2.1 %
    save(coco_folder / "annotations" / "val2017" / "000000000139_instanceTrainIds.png", labels)
    assert caption_truth(coco_folder, min_share=0.02).classes["000000000139"] == {
        "person",
        "dog",
    }
    assert caption_truth(coco_folder, min_share=0.03).classes["000000000139"] == {"person"}
    assert caption_truth(coco_folder, min_share=0.9).classes == {}


def test_classes_present_unreadable_mask_is_rejected_not_fatal(coco_folder: Path) -> None:
    (coco_folder / "annotations" / "val2017" / "000000000139_instanceTrainIds.png").unlink()
    presence = classes_present(coco_object(coco_folder))
    assert presence.classes == {}
    (rejection,) = presence.rejected
    assert (rejection.image_id, rejection.reason) == ("000000000139", "mask_missing")


def test_voc_real_devkit_has_445_images_whose_masks_fit(real_data: Path) -> None:
    benchmark = voc(real_data / "VOCdevkit" / "VOC2012")
    assert len(benchmark.images) == 445
    for image in benchmark.images[::50]:
        mask_HW = image.load_mask()
        assert image.load_image().shape[:2] == mask_HW.shape
        assert set(np.unique(mask_HW)) <= {*range(21), 255}


def test_caption_truth_real_coco_has_94_images_of_two_classes(real_data: Path) -> None:
    presence = caption_truth(real_data / "coco")
    assert not presence.rejected
    assert len(presence.classes) == 94
    assert np.mean([len(found) for found in presence.classes.values()]) == pytest.approx(2.03, abs=0.005)


def test_cityscapes_real_pairs_are_full_size_and_mostly_road_and_buildings(real_data: Path) -> None:
    benchmark = cityscapes(real_data / "cityscapes")
    assert len(benchmark.images) == 4
    mask_HW = benchmark.images[0].load_mask()
    assert mask_HW.shape == benchmark.images[0].load_image().shape[:2] == (1024, 2048)
    pixels = np.bincount(mask_HW[mask_HW != 255], minlength=19)
    assert len(pixels) == 19
    assert benchmark.labels[int(pixels.argmax())] in {"road", "building", "vegetation"}
