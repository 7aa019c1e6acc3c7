import base64
import io
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from curation.archive import ARCHIVE, ArchiveConfig
from curation.corpus import CORPUS, CorpusConfig, shard_locations
from curation.embed import EMBED, EmbedConfig
from curation.encoder import load_encoder
from curation.index import EXPAND, INDEX, ExpandConfig, IndexConfig
from curation.pretrain import PRETRAIN, PretrainConfig
from curation.scenes import CONCEPTS
from curation.sources import Scenes, Source
from curation.vocabulary import MENTIONS, VOCABULARY, MentionsConfig, VocabularyConfig
from evaluation.evaluate import EVALUATE, BenchmarkConfig, EvaluateConfig
from evaluation.preview import PREVIEW, PreviewConfig, read_preview, spread
from evaluation.recall import RECALL, RecallConfig
from flows.report import PAGE, REPORT, ReportConfig
from flows.report_drawing import HEIGHT, draw
from flows.report_examples import marked
from flows.report_lineage import trace
from flows.report_pictures import IGNORE, label_map, palette
from flows.report_text import visible
from storage.artifact import Artifact, Store
from storage.runtime import Runtime
from storage.stage import materialize
from storage.tars import Sample, write_tar
from training.grouping import GroupingConfig
from training.groupvit import GroupViTConfig
from training.loop import LoopConfig
from training.train import TRAIN, GroupViTTraining

ATTACK = "a dog <script>alert(1)</script> \"onload='x' &amp; <img src=http://evil.example/x.png>"
TURNED = "a cat \u202emirrored\u202c text"
SOURCE_ATTRIBUTES = {"src", "href", "action", "data", "poster", "srcset", "xlink:href"}


class Page(HTMLParser):
    """Counts what a browser would act on."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr", "path", "rect", "circle", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.ids += [value or ""] if name == "id" else []
            self.references += [value or ""] if name in SOURCE_ATTRIBUTES else []
            self.handlers += [name] if name.startswith("on") else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(frozen=True)
class Run:
    """A tiny run, from scenes and a few odd samples to scores and previews."""

    store: Store
    runtime: Runtime
    inputs: Mapping[str, Artifact]

    def artifact(self, *leave_out: str, examples: int = 40, runtime: Runtime | None = None) -> Artifact:
        inputs = {n: a for n, a in self.inputs.items() if not n.startswith(leave_out or ("-",))}
        return materialize(REPORT, ReportConfig(examples), inputs, self.store, runtime or self.runtime)

    def page(self, *leave_out: str, examples: int = 40) -> str:
        return self.artifact(*leave_out, examples=examples).file(PAGE).read_text("utf-8")


def odd_tar(path: Path) -> None:
    """Captions that attack, one that turns the text around, an image that is none, a missing caption."""
    sink = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), 120, np.uint8)).save(sink, "JPEG")
    captions = {"attack": ATTACK, "turned": TURNED, "long": "a boat " * 300}
    samples = [Sample(key, {"jpg": sink.getvalue(), "txt": text.encode()}) for key, text in captions.items()]
    samples.append(Sample("broken", {"jpg": b"no image", "txt": b"a <b>bus</b>"}))
    samples.append(Sample("silent", {"jpg": sink.getvalue()}))
    with path.open("wb") as stream:
        write_tar(stream, samples)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("report")
    odd_tar(folder / "00000.tar")
    store = Store(str(folder / "store"))
    rendered = Source("tiny", "scenes", scenes=Scenes(count=30, shard_size=15))
    config = CorpusConfig(sources=(rendered, Source("odd", urls=(str(folder / "00000.tar"),))))
    locations: dict[str, Any] = {}
    runtime = Runtime(device="cpu", load_encoder=load_encoder, locations=locations)

    def do(stage: Any, config: Any, **inputs: Any) -> Artifact:
        read = inputs | dict(stage.outside(config, store.folder))
        return materialize(stage, config, read, store, runtime)

    corpus = do(CORPUS, config)
    locations[corpus.fingerprint] = shard_locations(config)
    pairs = do(CORPUS, CorpusConfig(sources=(Source("pairs", "scenes", scenes=Scenes("pretrain", 20)),)))
    scenes = Source("scenes", "scenes", scenes=Scenes("evaluate", 4, masks=True))
    labelled = do(CORPUS, CorpusConfig(sources=(scenes,)))
    encoder = do(PRETRAIN, PretrainConfig(epochs=1, batch_size=10), corpus=pairs)
    embeddings = do(EMBED, EmbedConfig(), corpus=corpus, encoder=encoder)
    index = do(INDEX, IndexConfig(), embeddings=embeddings)
    neighbours = do(EXPAND, ExpandConfig(neighbours=6), embeddings=embeddings, index=index)
    vocabulary = do(VOCABULARY, VocabularyConfig(gallery="scenes"), corpus=corpus, encoder=encoder)
    named = {
        "vocabulary": vocabulary,
        "mentions": do(MENTIONS, MentionsConfig(), corpus=corpus, vocabulary=vocabulary),
    }
    archive = do(ARCHIVE, ArchiveConfig(), neighbours=neighbours, index=index, **named)
    curated = {"corpus": corpus, "archive": archive, **named}
    sizes = GroupViTConfig(
        image_size=32, patch_size=8, width=16, heads=2, depths=(1, 1, 1), groups=(4, 2, 0), text_width=16,
        text_layers=1, text_heads=2, context_length=16, projection_dim=16, projection_hidden=16,
    )  # fmt: skip
    training = GroupViTTraining(
        nouns="archive", model=sizes, loop=LoopConfig(epochs=1, batch_size=8, precision="fp32")
    )
    model = do(TRAIN, training, encoder=encoder, **training.inputs(curated))
    benchmark = BenchmarkConfig("scenes", "shards", class_names=CONCEPTS, short_side=64, window=64, stride=64)
    groups = GroupingConfig(backbone="lab", size=16, regions=4, starts=1, iterations=5)
    measured = {"encoder": encoder, "labelled": labelled}
    archived = EvaluateConfig.of("groupvit_archive", benchmark, groups, 64)
    untrained = EvaluateConfig.of("grouping_untrained", benchmark, groups, 64)
    oracle = EvaluateConfig.of("grouping_oracle", benchmark, groups, 64)
    inputs = {
        **curated,
        "recall": do(RECALL, RecallConfig(source="tiny"), **curated),
        "model groupvit_archive": model,
        "score 00": do(EVALUATE, archived, model=model, **measured),
        "score 01": do(EVALUATE, untrained, **measured),
        "score 02": do(EVALUATE, oracle, **measured),
        "preview a": do(PREVIEW, PreviewConfig(archived, 40), model=model, corpus=corpus, **measured),
        "preview b": do(PREVIEW, PreviewConfig(untrained, 40), **measured),
    }
    return Run(store, runtime, inputs)


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return run.page()


def test_page_whole_run_is_well_formed_and_has_every_section(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    sections = {"summary", "examples", "segmentations", "results", "concepts", "run", "quarantine", "stages"}
    assert sections | {"training", "recall"} <= set(parsed.ids)
    assert {link.removeprefix("#") for link in parsed.references if link.startswith("#")} <= set(parsed.ids)


def test_page_hostile_captions_are_text_and_nothing_else(page: str) -> None:
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert parsed.handlers == []
    assert "<script>alert(1)</script>" in parsed.text  # shown as written
    assert "a <b>bus</b>" not in page
    assert "⟨U+202E⟩mirrored⟨U+202C⟩" in parsed.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f-\x9f]", page)


def test_page_references_are_fragments_or_data_and_forbid_all_else(page: str) -> None:
    parsed = Page(page)
    assert {reference.split(":")[0] for reference in parsed.references if reference[:1] != "#"} == {"data"}
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'; img-src data:" in page


def test_page_long_caption_is_cut(page: str) -> None:
    assert "a boat " * 100 not in Page(page).text


def test_page_names_every_artifact_upstream_of_it(run: Run, page: str) -> None:
    for artifact in run.store.artifacts():
        if artifact.stage != "report":
            assert f'id="n-{artifact.fingerprint}"' in page
            assert artifact.fingerprint in Page(page).text


def test_page_shows_counts_of_the_quarantine_by_reason(run: Run, page: str) -> None:
    rejected = run.inputs["corpus"].manifest.counts.rejected
    assert rejected == {"caption_missing": 1, "not_an_image": 1}
    text = Page(page).text
    for reason in rejected:
        assert reason in text
    assert "2 out" in text


def test_page_shows_the_measured_numbers(run: Run, page: str) -> None:
    facts = run.inputs["recall"].manifest.facts
    text = Page(page).text
    for name in ("caption_recall", "archive_recall", "union_recall", "archive_precision"):
        assert f"{100 * facts[name]:.1f} %" in text
    for score in ("score 00", "score 01", "score 02"):
        assert f"{100 * run.inputs[score].manifest.facts['miou']:.1f} %" in text


def test_page_concept_table_counts_as_a_plain_loop_does(run: Run, page: str) -> None:
    named = dict(zip(*run.inputs["mentions"].read("mentions").to_pydict().values(), strict=True))
    archives = run.inputs["archive"].read("archives").to_pylist()
    concept = CONCEPTS.index("sky")
    top = [row["sample_id"] for row in archives if "sky" in [c["name"] for c in row["concepts"][:5]]]
    captions = sum(concept in concepts for concepts in named.values())
    new = sum(concept not in named[sample_id] for sample_id in top)
    row = next(
        row
        for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
        if "<bdi>sky</bdi></th>" in row and "double" in row
    )
    assert re.findall(r'<td class="n">(\d+)</td>', row)[:3] == [str(captions), str(len(top)), str(new)]


def test_page_same_inputs_are_the_same_bytes(run: Run, page: str) -> None:
    artifact = run.artifact()
    artifact.folder.remove()
    assert run.page() == page


def test_page_without_recall_scores_and_previews_still_stands(run: Run) -> None:
    text = run.page("recall", "score", "preview", "model", examples=3)
    parsed = Page(text)
    assert parsed.open == []
    assert {"summary", "examples", "concepts", "run", "stages"} <= set(parsed.ids)
    assert not {"recall", "results", "segmentations", "training"} & set(parsed.ids)
    assert {link[1:] for link in parsed.references if link.startswith("#")} <= set(parsed.ids)


def test_page_of_a_remote_store_is_the_same_page(run: Run, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("COCU_CACHE", str(tmp_path))
    remote = fsspec.filesystem("memory")
    remote.put(run.store.folder.root, "/remote-report", recursive=True)
    store = Store("memory://remote-report")
    moved = {name: store.artifact(item.stage, item.fingerprint) for name, item in run.inputs.items()}
    again = Run(store, run.runtime, moved)
    local = run.page(examples=5)
    again.artifact(examples=5).folder.remove()
    assert again.page(examples=5) == local


def test_page_opens_in_a_real_browser_without_scripts(page: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here: install it to open the report in a real browser")
    path = tmp_path / "report.html"
    path.write_text(page, "utf-8")
    quiet = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --disable-dev-shm-usage"
    )
    command = [
        browser,
        *quiet.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    parsed = Page(done.stdout)
    assert "stages" in parsed.ids
    assert "script" not in parsed.tags
    assert "<script>alert(1)</script>" in parsed.text


def test_lineage_of_a_run_lists_inputs_before_their_readers(run: Run) -> None:
    steps = trace(run.inputs, {}).steps
    seen: set[str] = set()
    for step in steps:
        assert set(step.inputs.values()) <= seen
        seen.add(step.fingerprint)


def test_drawing_of_a_run_has_no_box_upon_another_and_lines_that_run_right(run: Run) -> None:
    drawing = draw(trace(run.inputs, {}).steps, "report")
    place = {box.fingerprint: box for box in drawing.boxes}
    for one in drawing.boxes:
        for other in drawing.boxes:
            assert one is other or one.x != other.x or abs(one.y - other.y) >= HEIGHT
        assert 0 <= one.y <= drawing.height - HEIGHT
    for line in drawing.lines:
        assert place[line.source].x < place[line.target].x


def test_drawing_leaves_out_a_line_that_a_longer_way_replaces(run: Run) -> None:
    drawing = draw(trace(run.inputs, {}).steps, "report")
    fingerprint = {name: artifact.fingerprint for name, artifact in run.inputs.items()}
    drawn = {(line.source, line.target) for line in drawing.lines}
    assert (fingerprint["vocabulary"], fingerprint["mentions"]) in drawn
    assert (fingerprint["vocabulary"], fingerprint["archive"]) not in drawn  # through the mentions
    assert (fingerprint["corpus"], "report") not in drawn


def test_preview_of_a_corpus_labels_images_spread_over_it(run: Run) -> None:
    preview = read_preview(run.inputs["preview a"])
    ids = run.inputs["corpus"].read("samples", columns=["sample_id"])["sample_id"].to_pylist()
    assert [picture.image_id for picture in preview.corpus] == ids  # as many asked for as there are
    assert preview.labels == CONCEPTS
    odd = next(picture for picture in preview.corpus if picture.image_id == "odd/00000/attack")
    assert odd.labels_HW.shape == (48, 64)


def test_preview_of_a_benchmark_keeps_image_and_truth(run: Run) -> None:
    preview = read_preview(run.inputs["preview b"])
    assert preview.corpus == []
    assert len(preview.benchmark) == 4
    for picture in preview.benchmark:
        assert picture.truth_HW is not None
        assert picture.image is not None
        assert Image.open(io.BytesIO(picture.image)).size == picture.truth_HW.shape[::-1]
        assert picture.labels_HW.shape == picture.truth_HW.shape


def test_preview_of_the_oracle_is_refused() -> None:
    benchmark = BenchmarkConfig("scenes", "shards")
    with pytest.raises(ValueError, match="oracle cannot be previewed"):
        PreviewConfig(EvaluateConfig("grouping_oracle", "oracle", benchmark))


@pytest.mark.parametrize(
    ("total", "count", "places"), [(10, 2, [2, 7]), (3, 5, [0, 1, 2]), (0, 4, []), (5, 1, [2])]
)
def test_spread_over_a_corpus_is_even(total: int, count: int, places: list[int]) -> None:
    assert spread(total, count) == places


@pytest.mark.parametrize(
    ("caption", "names", "pieces"),
    [
        (
            "Two dogs, one cat",
            ["dog", "cat"],
            [("Two ", False), ("dogs", True), (", one ", False), ("cat", True)],
        ),
        ("cattle", ["cat"], [("cattle", False)]),
        ("a hot dog", ["dog", "hot dog"], [("a ", False), ("hot dog", True)]),
        ("a+b (c", ["b (c"], [("a+", False), ("b (c", True)]),
        ("nothing", [], [("nothing", False)]),
    ],
)
def test_marked_caption_tells_whole_names_apart(
    caption: str, names: list[str], pieces: list[tuple[str, bool]]
) -> None:
    assert marked(caption, names) == pieces


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – ünïcode 猫 🐈", "plain – ünïcode 猫 🐈"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\x00b\x1b", "a⟨U+0000⟩b⟨U+001B⟩"),
        ("\u2066x\u2069\ufeff", "⟨U+2066⟩x⟨U+2069⟩⟨U+FEFF⟩"),
        ("👩\u200d🍳", "👩\u200d🍳"),
    ],
)
def test_visible_text_writes_out_what_could_not_be_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_palette_of_256_labels_has_distinct_colours_and_separates_the_first_best() -> None:
    colours = np.array(palette(), float)
    assert len({tuple(colour) for colour in colours}) == 256
    apart = [np.abs(colours[:n, None] - colours[None, :n]).sum(-1) + 999 * np.eye(n) for n in (8, 40, 256)]
    assert [distance.min() for distance in apart] == sorted((d.min() for d in apart), reverse=True)
    assert apart[0].min() > 100


def test_label_map_names_large_regions_inside_them_and_scores_known_pixels() -> None:
    labels_HW = np.zeros((20, 40), np.uint8)
    labels_HW[:, 30:] = 1
    labels_HW[0, 0] = 2  # too small to be named
    truth_HW = np.where(labels_HW == 1, 1, IGNORE).astype(np.uint8)
    truth_HW[5:10, :10] = 1
    drawn = label_map("model", labels_HW, ["sky", "sea", "ant"], truth_HW)
    assert [note.name for note in drawn.notes] == ["sky", "sea"]
    assert drawn.notes[0].left < 75 < drawn.notes[1].left
    assert drawn.correct == pytest.approx(200 / 250)
    assert drawn.picture.uri.startswith("data:image/png;base64,")


def test_label_map_ignored_truth_is_transparent() -> None:
    labels_HW = np.array([[0, IGNORE]], np.uint8)
    drawn = label_map("truth", labels_HW, ["background", "dog"])
    image = Image.open(io.BytesIO(base64.b64decode(drawn.picture.uri.split(",")[1]))).convert("RGBA")
    assert [image.getpixel((x, 0))[3] for x in (0, 1)] == [255, 0]
