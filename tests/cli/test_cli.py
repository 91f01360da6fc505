"""The verbs, run as a user would, in process and on small things."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

import glip_adapt
from glip_adapt import attach, load_trunk
from glip_adapt.cli import listing, terminal
from glip_adapt.cli.ls import list_names
from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.structures import Detections
from glip_adapt.data import dataset, glyphs13
from glip_adapt.data.formats.coco import load_split
from glip_adapt.share.baked import BakedModel, bake
from glip_adapt.trunks.released import trunk_spec

SMALL = ["--short-side", "64"]


def test_every_verb_has_help_with_an_example(glip):
    verbs = [
        "quickstart",
        "ls",
        "data check",
        "data sample",
        "data export",
        "prompt search",
        "prompt show",
        "detect",
        "adapt",
        "eval",
        "bench",
        "report",
        "audit",
        "score",
    ]
    for verb in [*verbs, "report", "audit", "convert", "doctor"]:
        code, out, _ = glip(*verb.split(), "--help")
        assert code == 0
        assert f"Example: glip-adapt {verb}" in " ".join(out.split()), verb


def test_ls_names_trunks_datasets_and_methods(glip):
    for what, names in {
        "trunks": ["glip-t", "glip-l", "231.8 M", "for photographs"],
        "datasets": ["Raccoon", "PascalVOC"],
        "methods": ["linear_probe", "198,919", "231,455,576", "tokens × text width", "2,740,264", "Take it first"],
    }.items():
        code, out, _ = glip("ls", what)
        assert code == 0
        assert all(name in out for name in names), (what, out)
        assert "`" not in out


def test_ls_breaks_no_word_on_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "console", terminal.Console(width=80))
    list_names("trunks")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    words = {word for row in listing.trunks() for name in ("take it", "pre-trained on") for word in row[name].split()}
    assert [word for word in words if word not in out.split()] == []
    assert "shows also: deep fusion, licence." in out


def test_ls_prints_numbers_as_json(glip):
    first = {what: json.loads(glip("ls", what, "--json")[1])[0] for what in ("trunks", "datasets", "methods")}
    assert first["trunks"].items() >= {"trunk": "glip-nano", "parameters": 3341292, "deep fusion": True}.items()
    assert first["datasets"].items() >= {"dataset": "PascalVOC", "classes": 20, "train": 13690}.items()
    assert first["methods"].items() >= {"method": "zero_shot", "trains on GLIP-T": 0}.items()


@pytest.mark.parametrize(
    ("verb", "shown"), [("detect", "'[a man]"), ("pseudo-label", "'[a man]"), ("score", "[left, top, right")]
)
def test_help_keeps_what_stands_in_brackets(glip, verb, shown):
    assert shown in " ".join(glip(verb, "--help")[1].replace("│", " ").split())


def test_help_opens_with_the_use_of_the_tool(glip):
    code, out, _ = glip("--help")
    assert code == 0
    assert "Find objects by name, and teach a pretrained detector your own classes" in " ".join(out.split())


def test_the_default_device_is_the_gpu_if_there_is_one(glip, coco_folder, monkeypatch, tmp_path):
    asked = []
    load = load_trunk
    monkeypatch.setattr(
        glip_adapt,
        "load_trunk",
        lambda name, **given: asked.append(given["device"]) or load(name, **given),
        raising=False,
    )
    detect = ("detect", coco_folder / "test" / "0.png", "--classes", "dog", "--out", tmp_path, *SMALL)
    assert glip(*detect)[0] == 0
    assert glip(*detect, "--device", "cpu")[0] == 0
    assert asked == [None, "cpu"]


def test_detect_writes_boxes_and_an_annotated_image(glip, coco_folder, tmp_path):
    image = coco_folder / "test" / "0.png"
    code, out, _ = glip("detect", image, "--classes", "red box, blue box", "--out", tmp_path / "found", *SMALL)
    assert code == 0, out
    found = json.loads((tmp_path / "found" / "0.json").read_text())
    assert {d["class"] for d in found["detections"]} <= {"red box", "blue box"}
    assert Image.open(tmp_path / "found" / "0.png").size == (80, 64)


def test_detections_become_the_labels_of_a_dataset(glip, coco_folder, tmp_path):
    images, file = sorted((coco_folder / "train").glob("*.png")), coco_folder / "train" / "labels.json"
    code, _, err = glip(
        *("detect", *images, "--classes", "red box, blue box", "--threshold", "0.01", "--as-coco", file),
        *("--out", tmp_path / "found", *SMALL),
    )
    assert code == 0, err
    labels = load_split(file, file.parent, "labels")
    assert (labels.classes, len(labels)) == (("red box", "blue box"), len(images))
    boxes = [json.loads((tmp_path / "found" / f"{path.stem}.json").read_text())["detections"] for path in images]
    assert [len(r.annotations) for r in labels.records] == [sum(b["score"] >= 0.01 for b in found) for found in boxes]


@pytest.fixture
def one_bad(coco_folder):
    """A folder of two sound images of one stem, one that is cut off, and a text."""
    folder = coco_folder / "photos"
    folder.mkdir()
    content = (coco_folder / "test" / "0.png").read_bytes()
    (folder / "a.png").write_bytes(content)
    (folder / "b.png").write_bytes(content[: len(content) // 2])
    Image.open(coco_folder / "test" / "1.png").save(folder / "a.jpg")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_detect_takes_a_folder_and_goes_on_after_a_broken_image(glip, one_bad, tmp_path):
    out, labels = tmp_path / "found", one_bad / "labels.json"
    code, said, err = glip("detect", one_bad, "--classes", "red box", "--out", out, "--as-coco", labels, *SMALL)
    assert code == 1
    assert "b.png is not an image" in err
    assert {file.name for file in out.iterdir()} == {"a.jpg.json", "a.jpg.png", "a.png.json", "a.png.png"}
    assert [r.path.name for r in load_split(labels, one_bad, "labels").records] == ["a.jpg", "a.png"]
    code, said, _ = glip("detect", one_bad, "--classes", "red box", "--out", out, "--json", *SMALL)
    assert code == 1
    assert ["error" in result for result in json.loads(said)] == [False, False, True]
    (tmp_path / "empty").mkdir()
    code, _, err = glip("detect", tmp_path / "empty", "--classes", "red box", "--out", out)
    assert (code, "no image in" in err) == (1, True)


@pytest.mark.parametrize(
    "caption", ["red box. blue box", "red box . blue box .", " red box .  blue box.", "red box. blue box. "]
)
def test_a_caption_is_read_without_blanks_and_final_period(glip, coco_folder, tmp_path, caption):
    image = coco_folder / "test" / "0.png"
    code, _, err = glip("detect", image, "--caption", caption, "--out", tmp_path, "--threshold", "0", *SMALL)
    assert code == 0, err
    found = json.loads((tmp_path / "0.json").read_text())["detections"]
    assert {box["class"] for box in found} <= {"red box", "blue box"}
    assert found


def test_a_caption_beside_classes_is_wrong_usage(glip, coco_folder):
    code, _, err = glip("detect", coco_folder / "test" / "0.png", "--classes", "a", "--caption", "b")
    assert code == 2
    assert "not both" in err


def test_detect_turns_an_image_as_its_orientation_says(glip, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (80, 64)).save(tmp_path / "x.jpg", exif=exif)
    code, _, err = glip("detect", tmp_path / "x.jpg", "--classes", "red box", "--out", tmp_path / "found", *SMALL)
    assert code == 0, err
    assert Image.open(tmp_path / "found" / "x.png").size == (64, 80)


def test_an_adapter_is_replaced_only_when_asked_for_and_that_is_said_before_training(glip, coco_folder, tmp_path):
    recipe, saved = tmp_path / "recipe.toml", tmp_path / "adapter"
    recipe.write_text("max_steps = 1\nshort_sides = [64]\ntest_short_side = 64\n")
    adapt = ("adapt", coco_folder, "--shots", "1", "--out", saved, "--config", recipe, "--method")
    assert glip(*adapt, "prompt")[0] == 0
    code, _, err = glip(*adapt, "linear_probe")
    assert (code, "holds an adapter already" in err, "val AP" in err) == (1, True, False)
    assert json.loads((saved / "adapter.json").read_text())["method"] == "prompt"
    assert glip(*adapt, "linear_probe", "--overwrite")[0] == 0
    assert json.loads((saved / "adapter.json").read_text())["method"] == "linear_probe"
    assert {file.name for file in saved.iterdir()} == {
        "adapter.json",
        "adapter.safetensors",
        "training.json",
        "index.html",
    }


def test_official_prompts_word_the_classes_of_adapt_and_eval(glip, coco_folder, tmp_path, monkeypatch):
    recipe, saved = tmp_path / "recipe.toml", tmp_path / "adapter"
    recipe.write_text("max_steps = 1\nshort_sides = [64]\ntest_short_side = 64\n")
    prompts = (ClassPrompt(name="red box", prefix="a "), ClassPrompt(name="blue box"))
    load = dataset.load_dataset
    monkeypatch.setattr(
        glip_adapt, "load_dataset", lambda name, **more: replace(load(name, **more), prompts=prompts), raising=False
    )
    adapt = ("adapt", coco_folder, "--method", "prompt", "--shots", "1", "--config", recipe, "--prompts", "official")
    code, _, err = glip(*adapt, "--out", saved)
    assert code == 0, err
    assert json.loads((saved / "adapter.json").read_text())["classes"][0]["prefix"] == "a "
    for extra, expected in (((), 0), (("--prompts", "official"), 0), (("--prompts", "names"), 1)):
        assert glip("eval", coco_folder, "--adapter", saved, *extra, *SMALL)[0] == expected
    assert glip("eval", coco_folder, "--prompts", "official", *SMALL)[0] == 0


def test_score_prints_metrics_of_files_by_the_ids_that_are_asked_for(glip, tmp_path):
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [20 * n, 0, 9, 9]} for n in range(3)]
    truth = {
        "images": [{"id": 1, "file_name": "none.png"}],
        "annotations": [box | {"id": n} for n, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "box"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps([box | {"score": 0.9} for box in boxes]))
    score = ("score", tmp_path / "found.json", tmp_path / "truth.json", "--json")
    by_ids = {}
    for ids in ("renumbered", "as_in_file"):
        code, out, err = glip(*score, "--annotation-ids", ids)
        assert code == 0, err
        by_ids[ids] = {row["metric"]: row["value"] for row in json.loads(out)}
    assert by_ids["renumbered"]["ap"] == pytest.approx(1)
    assert by_ids["as_in_file"]["ap of box"] < 0.7
    assert by_ids["renumbered"] == {row["metric"]: row["value"] for row in json.loads(glip(*score)[1])}


def test_prompt_search_prints_every_wording_and_one_test_score(glip, coco_folder, tmp_path):
    (tmp_path / "wordings.txt").write_text("a {}\n\nthe {} there\n")
    for candidates in ("a {}; the {} there", tmp_path / "wordings.txt"):
        code, out, err = glip("prompt", "search", coco_folder, "--candidates", candidates, "--json")
        assert code == 0, err
        rows = json.loads(out)
        assert [row["wording"] for row in rows[:3]] == ["{}", "a {}", "the {} there"]
        assert [row["split"] for row in rows] == ["val"] * (len(rows) - 1) + ["test"]
        assert rows[2]["caption"] == "the red box there. the blue box there"


def test_prompt_show_prints_what_a_prompt_moved(glip, tmp_path):
    trunk = load_trunk("glip-nano")
    model = attach(trunk, "prompt", classes=["red box"])
    with torch.no_grad():
        model.owned_tensors()["text_prompt.offset"][1] += 1
    model.save(tmp_path)
    code, out, err = glip("prompt", "show", tmp_path, "--words", "2", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["class"] for row in found["classes"]] == ["red box"]
    moved = [row["change"] > 0 for row in found["tokens"]]
    assert moved == [i == 1 for i in range(len(moved))]
    code, out, _ = glip("prompt", "show", tmp_path)
    assert code == 0
    assert "change per token" in out


def test_adapt_then_eval_then_detect_with_the_adapter(glip, coco_folder, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("epochs = 1\ncopies = 1\nshort_sides = [64]\ntest_short_side = 64\n")
    saved = tmp_path / "adapter"
    code, out, err = glip(
        *("adapt", coco_folder, "--method", "linear_probe", "--shots", "3", "--out", saved, "--config", recipe)
    )
    assert code == 0, err
    assert "4,556" not in out  # the head's box scales are not trained
    assert (saved / "adapter.safetensors").is_file()
    code, out, err = glip("eval", coco_folder, "--adapter", saved, "--json", *SMALL)
    assert code == 0, err
    assert {row["metric"] for row in json.loads(out)} >= {"ap", "ap50", "ap of red box", "ap of blue box"}
    code, out, err = glip("detect", coco_folder / "test" / "0.png", "--adapter", saved, "--out", tmp_path / "d", *SMALL)
    assert code == 0, err


def test_the_recipe_of_adapt_also_holds_the_settings_of_the_method(glip, coco_folder, tmp_path):
    recipe, saved = tmp_path / "recipe.toml", tmp_path / "adapter"
    adapt = ("adapt", coco_folder, "--method", "lora", "--shots", "1", "--out", saved, "--config", recipe)
    short = "max_steps = 1\nshort_sides = [64]\ntest_short_side = 64\n[settings]\n"
    recipe.write_text(short + "target = 'head'\nrank = 2\n")
    code, _, err = glip(*adapt)
    assert code == 0, err
    used = json.loads((saved / "adapter.json").read_text())["config"]
    assert (used["part"], used["rank"]) == ("head", 2)
    recipe.write_text(short + "ranks = 2\n")
    code, _, err = glip(*adapt, "--overwrite")
    assert code == 1
    assert "settings of lora: unknown key 'ranks' (did you mean 'rank'?)" in " ".join(err.split())


@pytest.fixture
def put_baked(tiny_trunk, tmp_path, monkeypatch):
    """Put a baked model of random weights where the command line finds it; return its folder."""

    def put(trunk, classes):
        baked = bake(attach(replace(tiny_trunk, name=trunk), "prompt", classes=classes))
        monkeypatch.setattr("glip_adapt.share.baked.load_baked", lambda folder, device: baked)
        (tmp_path / "baked").mkdir()
        (tmp_path / "baked" / "baked.json").touch()
        return tmp_path / "baked"

    return put


def test_a_baked_model_is_shown_images_as_its_own_trunk_is(glip, put_baked, coco_folder, tmp_path, monkeypatch):
    shown = []

    def predict(model, image, *, view, views):
        shown.append(view)
        return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))

    monkeypatch.setattr(BakedModel, "predict", predict)
    baked = put_baked("glip-t", ["red box"])
    code, _, err = glip("detect", coco_folder / "test" / "0.png", "--adapter", baked, "--out", tmp_path / "found")
    assert code == 0, err
    assert shown == [trunk_spec("glip-t").view]


def test_a_baked_model_is_not_scored_on_classes_in_another_order(glip, put_baked, coco_folder):
    code, _, err = glip("eval", coco_folder, "--adapter", put_baked("glip-nano", ["blue box", "red box"]), *SMALL)
    assert code == 1
    assert "detects the 2 classes ('blue box', 'red box')" in " ".join(err.split())


def test_no_adapter_is_trained_into_the_folder_of_a_baked_model(glip, put_baked, coco_folder):
    code, _, err = glip(
        "adapt", coco_folder, "--method", "prompt", "--shots", "1", "--out", put_baked("glip-nano", ["dog"])
    )
    assert code == 1
    assert "holds a baked model. Name another folder" in " ".join(err.split())


def test_data_check_finds_nothing_in_a_good_dataset_and_fails_on_a_bad_one(glip, coco_folder):
    assert glip("data", "check", coco_folder)[0] == 0
    (coco_folder / "test" / "0.png").unlink()
    code, out, _ = glip("data", "check", coco_folder)
    assert code == 1
    assert "missing" in out
    assert "0.png" in out


def test_data_sample_writes_a_coco_file(glip, coco_folder, tmp_path):
    code, out, err = glip("data", "sample", coco_folder, "--shots", "2", "--seed", "3", "-o", tmp_path / "two.json")
    assert code == 0, err
    assert len(json.loads((tmp_path / "two.json").read_text())["images"]) == 2
    assert "sampled" in out


def test_audit_prints_tokens_per_class(glip):
    code, out, _ = glip("audit", "--classes", "dog, stop_sign", "--trunk", "glip-nano", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["words"] for row in rows] == ["do ##g", "st ##op sig ##n"]
    assert rows[0]["characters"] == "0–3"


def test_bench_runs_resumes_and_reports(glip, coco_folder, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'trunks = ["glip-nano"]\ndatasets = ["{coco_folder}"]\nmethods = ["zero_shot", "linear_probe"]\n'
        "shots = [0, 1]\nseeds = [3]\n[fit]\nepochs = 1\ncopies = 1\nshort_sides = [64]\ntest_short_side = 64\n"
    )
    out_folder = tmp_path / "runs"
    code, out, err = glip("bench", plan, "--out", out_folder)
    assert code == 0, err
    assert "2 runs done, 0 were there already, 0 failed" in out
    assert "0 runs done, 2 were there already, 0 failed" in glip("bench", plan, "--out", out_folder)[1]
    code, out, err = glip("report", out_folder, "--note", "Untrained trunk.")
    assert code == 0, err
    assert (out_folder / "report" / "data_efficiency.png").is_file()
    assert "Untrained trunk." in (out_folder / "report" / "table.md").read_text()


def test_the_version_is_printed(glip):
    assert glip("--version")[:2] == (0, f"{glip_adapt.__version__}\n")


def test_doctor_prints_versions(glip):
    code, out, _ = glip("doctor")
    assert code == 0
    assert out.index("torch") < out.index("threads") < out.index("GPUs")
    assert [row["what"] for row in json.loads(glip("doctor", "--json")[1])][-3:] == [
        "threads",
        "bfloat16 on the CPU",
        "GPUs",
    ]
    assert "than float32" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["detect", "absent.jpg", "--classes", "dog"], "absent.jpg"),
        (["eval", "NoSuchSet"], "NoSuchSet"),
        (["bench", "absent.toml", "--out", "runs"], "absent.toml"),
        (["report", "absent"], "absent"),
        (["detect", "x.jpg", "--classes", "dog", "--trunk", "glip-nan"], "did you mean 'glip-nano'"),
        (["detect", "x.jpg", "--classes", "dog", "--checkpoint", "absent.pth"], "absent.pth"),
        (["convert", "absent.pth", "out.safetensors"], "absent.pth"),
        (["audit", "--classes", " , "], "at least one class name"),
    ],
)
def test_an_expected_error_is_one_message_and_exit_code_1(glip, arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "audit":
        arguments = [*arguments, "--trunk", "glip-nano"]
    code, _, err = glip(*arguments)
    assert code == 1
    assert expected in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("detect", "photo.jpg"), "name what to find"),
        (("adapt", "photos", "--method", "zero_shot"), "zero_shot trains nothing"),
    ],
)
def test_a_command_without_its_use_is_refused_before_anything_is_loaded(glip, arguments, expected):
    code, _, err = glip(*arguments)
    assert (code, expected in " ".join(err.replace("│", " ").split())) == (2, True)


def test_wrong_usage_is_exit_code_2(glip):
    assert glip("adapt")[0] == 2
    assert glip("adapt", "x", "--method", "prompt", "--shots", "none", "--out", "y")[0] == 2


def test_data_export_writes_a_synthetic_set(glip, tmp_path, monkeypatch):
    tiny = replace(glyphs13.glyph_sets()[5], images=(2, 1, 1))
    monkeypatch.setattr(glyphs13, "glyph_sets", lambda: (tiny,))
    code, out, err = glip("data", "export", "glyphs13", "--out", tmp_path)
    assert code == 0, err
    assert "1 synthetic datasets" in out
    assert glip("data", "check", tmp_path / "glyphs13" / tiny.name)[0] == 0
    code, _, err = glip("data", "export", "glyphs14", "--out", tmp_path)
    assert code == 1
    assert "did you mean 'glyphs13'" in err


def test_doctor_estimates_the_memory_of_every_method(glip):
    code, out, _ = glip("doctor", "--trunk", "glip-nano", "--size", "160", "160", "--json")
    assert code == 0
    assert {row["method"] for row in json.loads(out)} >= {"prompt", "linear_probe", "full"}
