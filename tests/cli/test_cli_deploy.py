"""The verbs ``bake`` and ``export``, and detection with what they write."""

import json
import subprocess
import sys

import pytest
import torch

from glip_adapt import attach, load_trunk
from glip_adapt.share import export as exporting


@pytest.fixture
def adapter(tmp_path):
    """A prompt of glip-nano in a folder."""
    model = attach(load_trunk("glip-nano"), "prompt", classes=("red box", "blue box"))
    with torch.no_grad():
        model.owned_tensors()["text_prompt.offset"].normal_(generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_every_verb_has_help_with_an_example(glip):
    for verb in ("bake", "export"):
        code, out, _ = glip(verb, "--help")
        assert code == 0
        assert f"Example: glip-adapt {verb}" in " ".join(out.split())
    assert "Both sides of the result must lie between least_side and 4096" in " ".join(out.split())


def test_a_baked_adapter_detects_and_scores_the_same_without_a_trunk(glip, adapter, coco_folder, tmp_path, monkeypatch):
    code, out, err = glip("bake", adapter, "--out", tmp_path / "baked")
    assert code == 0, err
    assert "prompt for red box, blue box" in out
    image, found = coco_folder / "test" / "0.png", {}
    for name in ("adapter", "baked"):
        code, out, err = glip(
            *("detect", image, "--adapter", tmp_path / name, "--out", tmp_path / f"{name} found", "--short-side", 64)
        )
        assert code == 0, err
        found[name] = json.loads((tmp_path / f"{name} found" / "0.json").read_text())["detections"]
        monkeypatch.setattr("glip_adapt.trunks.catalogue.load_trunk", lambda *a, **k: pytest.fail("loaded a trunk"))
    assert found["adapter"] == found["baked"]
    code, out, err = glip("eval", coco_folder, "--adapter", tmp_path / "baked", "--json", "--short-side", 64)
    assert code == 0, err
    assert "ap50" in out


def test_the_trunk_of_an_adapter_is_found_by_its_own_name(glip, tmp_path):
    attach(load_trunk("glip-nano-a"), "lora", classes=("red [b]box",), settings={"target": "head"}).save(tmp_path / "a")
    code, out, err = glip("bake", tmp_path / "a", "--out", tmp_path / "baked")
    assert code == 0, err
    assert "lora for red [b]box" in out
    assert json.loads((tmp_path / "baked" / "baked.json").read_text())["trunk"]["name"] == "glip-nano-a"


def test_loading_a_baked_model_imports_no_library_of_language(glip, adapter, tmp_path):
    glip("bake", adapter, "--out", tmp_path / "baked")
    code = (
        f"import sys; from glip_adapt import load_baked; load_baked({str(tmp_path / 'baked')!r}); "
        "print(*{'transformers', 'tokenizers', 'peft'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "\n"


def test_export_hands_the_baked_model_on(glip, adapter, tmp_path, monkeypatch):
    def export_onnx(model, path):
        path.write_text(" ".join(model.class_names))

    monkeypatch.setattr(exporting, "export_onnx", export_onnx)
    glip("bake", adapter, "--out", tmp_path / "baked")
    code, _, err = glip("export", tmp_path / "baked", "--out", tmp_path / "model.onnx")
    assert code == 0, err
    assert (tmp_path / "model.onnx").read_text() == "red box blue box"


def test_the_size_of_a_baked_model_is_that_of_its_files(glip, adapter, tmp_path):
    (tmp_path / "baked" / "older").mkdir(parents=True)
    (tmp_path / "baked" / "raccoon.onnx").write_bytes(bytes(50_000_000))
    code, out, err = glip("bake", adapter, "--out", tmp_path / "baked")
    assert code == 0, err
    size = sum((tmp_path / "baked" / name).stat().st_size for name in ("baked.json", "baked.safetensors"))
    assert f"({size / 1e6:.1f} MB)" in out


def test_the_folder_of_an_adapter_is_no_place_for_its_bake(glip, adapter):
    code, _, err = glip("bake", adapter, "--out", adapter)
    assert code == 1
    assert f"{adapter} holds an adapter. Name another folder" in " ".join(err.split())
    assert not (adapter / "baked.json").exists()


def test_export_of_an_adapter_says_to_bake_it(glip, adapter, tmp_path):
    code, _, err = glip("export", adapter, "--out", tmp_path / "model.onnx")
    assert code == 1
    assert f"{adapter} holds an adapter. Bake it first: glip-adapt bake {adapter}" in " ".join(err.split())


@pytest.mark.parametrize(("verb", "what"), [("bake", "adapter"), ("export", "baked model")])
def test_a_folder_without_a_model_is_one_message(glip, tmp_path, verb, what):
    code, _, err = glip(verb, tmp_path, "--out", tmp_path / "out")
    assert code == 1
    assert f"No {what} in {tmp_path}" in " ".join(err.split())
    assert "Traceback" not in err
