"""The goldens of tests/parity, reproduced from the checkout alone; tests/parity/README.md says how they were made.

The comparison is that of benchmarks/parity.py, in both precisions; tests without marker take the first of its two ways.
"""

import copy
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, load_benchmark

from glip_adapt.core.structures import Tokens
from glip_adapt.engine.adapted import attach
from glip_adapt.share.baked import bake, load_baked
from glip_adapt.trunks.catalogue import Trunk, read_checkpoint
from glip_adapt.trunks.cross_attention import FusionLayer
from glip_adapt.trunks.glip import decode as decoding
from glip_adapt.trunks.glip import dyhead, text
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.fpn import ImageEncoder
from glip_adapt.trunks.released import TRUNKS
from glip_adapt.trunks.tokenizer import Tokenizer

PARITY = Path(__file__).resolve().parents[1] / "parity"
VOCABULARY = SHARED / "parity" / "vocab.txt"
TINY_VARIANTS = ("glip_a_tiny", "glip_tiny")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # on shared cores two threads mostly wait for each other


@pytest.fixture(scope="module")
def parity():
    yield from load_benchmark("parity")


@pytest.fixture(scope="module")
def goldens(parity):
    """The golden files by their path in the folder."""
    return {golden.path.relative_to(PARITY).as_posix(): golden for golden in parity.read_folder(PARITY).goldens}


@pytest.fixture(scope="module")
def weights(parity):
    """The module that draws weights and pictures."""
    return parity.import_file(PARITY / "weights.py")


@pytest.fixture(scope="module")
def trunk_of(weights, goldens, tmp_path_factory):
    """A function from variant to its trunk, with stand-in weights that came through a public-style file.

    All small goldens have one caption; its tokens come from one of them, so that no vocabulary is needed.
    """

    @functools.cache
    def drawn(name, shape):  # both variants share the weights of the encoders
        return torch.from_numpy(np.ascontiguousarray(weights.tensor(name, shape, 0)))

    @functools.cache
    def load(variant):
        entries = json.loads((PARITY / f"{variant}.state_dict.json").read_text())
        state = {}
        for name, (shape, dtype) in entries.items():
            derived = dtype != "float32" or "cell_anchors" in name
            state[f"module.{name}"] = torch.zeros(shape) if derived else drawn(name, tuple(shape))
        path = tmp_path_factory.mktemp("parity") / f"{variant}.pth"
        torch.save({"model": state}, path)
        name = {"glip_a_tiny": "glip-t-a", "glip_tiny": "glip-t"}[variant]
        glip = build_glip(TRUNKS[name].config)
        glip.load_state_dict(read_checkpoint(path, glip, name).state)
        path.unlink()
        tokens = tokens_of(goldens["train_glip_tiny.npz"].arrays)
        tokenizer = SimpleNamespace(
            encode_in_chunks=lambda classes, most: [tokens], doubts=lambda classes, captions: []
        )
        return Trunk(name, glip.requires_grad_(False), tokenizer, "stand-in")

    yield load
    load.cache_clear()
    drawn.cache_clear()


def tokens_of(arrays):
    ids = torch.from_numpy(arrays["input_ids"]).long()[None]
    positive_map = json.loads(str(arrays["positive_map"]))
    token_map = torch.zeros(1, len(positive_map), ids.shape[1], dtype=torch.bool)
    for label, indices in positive_map.items():
        token_map[0, int(label) - 1, indices] = True
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool), token_map)


def failing(lines, at_least):
    """The lines that do not pass, of at least so many."""
    lines = list(lines)
    assert len(lines) >= at_least
    assert sum(line.limits.float64 == 1e-5 for line in lines) >= 5
    return [str(line) for line in lines if not line.passed]


@pytest.mark.parametrize("variant", TINY_VARIANTS)
def test_every_stage_and_detection_equals_the_public_code(variant, parity, goldens, trunk_of, weights, monkeypatch):
    monkeypatch.setattr(parity, "WAYS", parity.WAYS[:1])
    golden = goldens[f"eval_{variant}.npz"]
    assert failing(parity.compare(golden, trunk_of(variant), weights, PARITY), at_least=50) == []


def test_losses_and_gradient_of_a_prompt_equal_the_public_code(parity, goldens, trunk_of, weights, monkeypatch):
    monkeypatch.setattr(parity, "WAYS", parity.WAYS[:1])
    head = trunk_of("glip_tiny").network.head
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    golden = goldens["train_prompt_glip_tiny.npz"]
    assert failing(parity.compare(golden, trunk_of("glip_tiny"), weights, PARITY), at_least=6) == []
    for name, tensor in head.state_dict().items():  # float64 came and went
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("errors", "passed"),
    [((9e-6, 4e-3), True), ((2e-5, 4e-3), False), ((9e-6, 6e-3), False), ((float("nan"), 0), False)],
)
def test_a_line_passes_if_both_errors_are_within_their_limits(errors, passed, parity):
    line = parity.Line("file", "quantity", *errors, parity.FORWARD)
    assert line.passed == passed
    assert str(line).startswith("pass" if passed else "FAIL")


def test_what_float32_cannot_tell_is_no_failure_but_its_error_is_shown(parity):
    line = parity.Line("file", "quantity", 1e-6, 0.3, parity.FLOAT64_ONLY)
    assert line.passed
    assert "3.00e-01 ≤   –" in str(line)
    assert parity.FORWARD.against("float32") == parity.Limits(5e-3, 5e-3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("eval_glip_large_2.npz", "eval"),
        ("train_glip_tiny.npz", "train"),
        ("train_prompt_glip_tiny_b.npz", "train_prompt"),
        ("training_captions.json", "training_captions"),
        ("steps_full_f64.npz", "steps"),
        ("tta_glip_tiny.npz", "tta"),
        ("flickr_recall.json", "flickr_recall"),
        ("evaluation.npz", None),
        ("a_new_kind.npz", None),
    ],
)
def test_the_longest_start_of_a_name_that_fits_is_the_kind(name, kind, parity):
    assert parity.kind_of(name) == kind


@pytest.fixture
def folder(tmp_path):
    """A folder with nothing that is compared."""
    for name in ("training_captions.json", "something_else.npz"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "code"),
    [([], 0), (["--require", "training_captions"], 1), (["--require", "steps"], 1), (["--require", "eval,train"], 1)],
)
def test_a_required_kind_that_was_not_compared_is_a_failure(options, code, parity, folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["parity.py", "--fixtures", str(folder), *options])
    assert parity.main() == code
    out = capsys.readouterr().out
    assert "training_captions.json: not compared" in out
    assert "something_else.npz: unknown" in out
    assert ("FAIL" in out) == bool(code)


@pytest.mark.parametrize(("shift", "code"), [(0, 0), (1e-8, 1)])
def test_scores_of_predictions_are_compared_without_a_network(shift, code, parity, folder, monkeypatch, capsys):
    golden = json.loads((PARITY / "extra" / "lvis_ap.json").read_text())
    golden["results"]["fixed_ap"]["results"]["APr"] += shift
    (folder / "lvis_ap_2.json").write_text(json.dumps(golden))
    monkeypatch.setattr("sys.argv", ["parity.py", "--fixtures", str(folder), "--require", "lvis_ap"])
    assert parity.main() == code
    assert f"{code} failed" in capsys.readouterr().out


def test_a_file_of_scores_that_is_no_json_is_named(parity, folder):
    (folder / "flickr_recall.json").write_text("{")
    with pytest.raises(SystemExit, match=r"flickr_recall\.json is no JSON file"):
        parity.read_folder(folder)


def test_a_file_that_gave_no_line_was_not_compared(parity, folder, monkeypatch, capsys):
    np.savez(folder / "chunked_glip_tiny.npz", salt=0)
    monkeypatch.setattr(parity, "compare_all", lambda *_: iter(()))
    monkeypatch.setattr("sys.argv", ["parity.py", "--fixtures", str(folder), "--require", "chunked"])
    assert parity.main() == 1
    assert "FAIL  required, but not compared: chunked" in capsys.readouterr().out


def test_a_gradient_that_only_one_side_has_fails(parity, monkeypatch):
    ours = {name: torch.zeros(4) for name in ("both", "ours", "without")}
    for name in ("both", "ours"):
        ours[name].grad = torch.ones(4)
    for name, result in (("network", None), ("forward", None), ("measure_losses", ()), ("in_public_names", ours)):
        monkeypatch.setattr(parity, name, lambda *_, result=result, **__: result)
    monkeypatch.setattr(parity, "same_tokens", lambda *_: ("input_ids", 0.0, parity.EQUAL))
    arrays = {"labels": ["fish"], "grad_names": np.array(["both", "public"]), "grad_norms64": np.array([2.0, 1.0])}
    golden = parity.Golden(Path("train.npz"), "train", arrays)
    measured = parity.measure_train(golden, None, None, torch.float64)
    errors = {quantity: error for quantity, error, limits in measured if not error <= limits.float64}
    assert errors == {"gradients that the file does not know": 1, "gradient norm public": 1.0}


@pytest.mark.parametrize("options", [["--require", "stepps"], ["--fixtures", "nowhere"]])
def test_a_kind_or_folder_that_does_not_exist_is_refused(options, parity, folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["parity.py", "--fixtures", str(folder), *options])
    with pytest.raises(SystemExit) as stop:
        parity.main()
    assert stop.value.code == 2
    assert options[-1] in capsys.readouterr().err


def test_files_that_cannot_be_reproduced_are_listed_with_the_reason(parity, tmp_path):
    (tmp_path / "float64").mkdir()
    np.savez(tmp_path / "float64" / "eval_glip_large.npz", anchor_stride=5)
    batch = {"seeds": [1], "sizes": [[64, 64]], "caption": "fish", "salt": 0}
    np.savez(tmp_path / "steps_full_f64.npz", mode="full", **batch)
    found = parity.read_folder(tmp_path)
    assert found.goldens == []
    assert {path.name for path in found.others} == {"eval_glip_large.npz", "steps_full_f64.npz"}
    np.savez(tmp_path / "train_glip_tiny.npz", gt_boxes_0=np.zeros((0, 4)), labels=["fish"], **batch)
    assert {golden.kind for golden in parity.read_folder(tmp_path).goldens} == {"train", "steps"}


def test_the_variant_comes_from_the_name_or_else_from_the_tensors(parity, goldens, tmp_path):
    entries = parity.entries_of("glip_large", PARITY)
    sizes = {name: int(np.prod(shape)) for name, (shape, _) in entries.items() if "layers.2.blocks.17" in name}
    arrays = {"names": np.array(list(sizes)), "sizes_of": np.array(list(sizes.values()))}
    assert parity.variant_of(parity.Golden(tmp_path / "steps_full_f64.npz", "steps", arrays), PARITY) == "glip_large"
    assert (
        parity.variant_of(parity.Golden(tmp_path / "steps_glip_a_tiny.npz", "steps", arrays), PARITY) == "glip_a_tiny"
    )
    for name in ("extra/steps_full_f64.npz", "extra/steps_linear_prob_f64.npz"):
        assert parity.variant_of(goldens[name], PARITY) == "glip_tiny"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "train_glip_tiny.npz",
        "extra/steps_full_f64.npz",
        "extra/steps_language_prompt_v2_f64.npz",
        "extra/steps_linear_prob_f32.npz",
        "extra/steps_linear_prob_f64.npz",
    ],
)
def test_gradients_and_steps_equal_the_public_code(name, parity, goldens, trunk_of, weights):
    lines = list(parity.compare(goldens[name], trunk_of("glip_tiny"), weights, PARITY))
    assert len(lines) >= 20
    assert [str(line) for line in lines if not line.passed] == []


@pytest.mark.slow
@pytest.mark.skipif(not VOCABULARY.is_file(), reason="the vocabulary of bert-base-uncased is not in ../shared/parity")
@pytest.mark.parametrize(("kind", "count"), [("chunked", 60), ("phrases", 28), ("tta", 20)])
def test_captions_of_any_kind_give_what_the_public_code_gives(kind, count, parity, goldens, trunk_of, weights):
    trunk = copy.copy(trunk_of("glip_tiny"))
    object.__setattr__(trunk, "tokenizer", Tokenizer.from_file(VOCABULARY))
    lines = list(parity.compare(goldens[f"extra/{kind}_glip_tiny.npz"], trunk, weights, PARITY))
    assert len(lines) == count
    assert [str(line) for line in lines if not line.passed] == []


def normalised_in_float64(self, images):
    pixels = (images.pixels.flip(1).to(self.pixel_mean) - self.pixel_mean) / self.pixel_std
    for picture, (height, width) in zip(pixels, images.image_sizes_hw, strict=True):
        picture[:, height:] = 0
        picture[:, :, width:] = 0
    return pixels


@pytest.mark.slow
def test_the_gradient_notices_pixels_normalised_in_float64(parity, goldens, trunk_of, weights, monkeypatch):
    monkeypatch.setattr(parity, "WAYS", parity.WAYS[:1])
    monkeypatch.setattr(ImageEncoder, "normalise", normalised_in_float64)
    lines = list(parity.compare(goldens["train_prompt_glip_tiny.npz"], trunk_of("glip_tiny"), weights, PARITY))
    assert [line.quantity for line in lines if not line.passed] == ["gradient of the offset table"]


def resized_offsets(x, size_hw):
    return x if x.shape[-2:] == size_hw else F.interpolate(x, size=size_hw, mode="bilinear", align_corners=False)


def residual_on_the_raw_inputs(self, image, text, text_mask):
    to_image, to_text = self.attention(self.norm_image(image), self.norm_text(text), text_mask)
    return image + self.scale_image * to_image, text + self.scale_text * to_text


def errors_of(parity, golden, trunk, weights):
    """The error of each quantity in float32, the first way."""
    return {name: error for name, error, _ in parity.measure_eval(golden, trunk, weights, torch.float32)}


def detections_differ(errors, picture):
    found = f"detections_{picture}"
    return errors[f"{found} labels"] > 0 or errors[f"{found} boxes (pixels)"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [
        (dyhead, "flat_prefix", resized_offsets),
        (FusionLayer, "forward", residual_on_the_raw_inputs),
    ],
    ids=["offsets of neighbours resized", "residual on the raw inputs"],
)
def test_the_check_notices_a_plausible_reading_of_the_network(
    owner, name, replacement, parity, goldens, trunk_of, weights, monkeypatch
):
    monkeypatch.setattr(owner, name, replacement)
    errors = errors_of(parity, goldens["eval_glip_tiny.npz"], trunk_of("glip_tiny"), weights)
    print({k: f"{v:.2g}" for k, v in errors.items() if k.startswith(("token", "bbox", "center", "detections"))})
    assert all(errors[f"{part}_{i}"] > 0.01 for part in ("token_logits", "bbox_reg", "centerness") for i in range(5))
    assert all(detections_differ(errors, picture) for picture in range(2))
    assert max(errors["text_embedded"], *(errors[f"fpn_{i}"] for i in range(5))) <= 5e-3  # upstream of the change


@pytest.mark.slow
@pytest.mark.parametrize("variant", TINY_VARIANTS)
def test_the_check_notices_the_best_token_instead_of_the_mean(variant, parity, goldens, trunk_of, weights, monkeypatch):
    def best_token(output):
        tokens = output.token_logits.float().sigmoid()[:, :, None] * output.token_map[:, None]  # (B, A, K, T)
        return tokens.amax(-1)

    monkeypatch.setattr(decoding, "class_probabilities", best_token)
    errors = errors_of(parity, goldens[f"eval_{variant}.npz"], trunk_of(variant), weights)
    assert all(detections_differ(errors, picture) for picture in range(2))


@pytest.mark.slow
def test_detections_of_a_baked_model_equal_the_public_code(parity, goldens, trunk_of, weights, tmp_path, monkeypatch):
    golden, trunk = goldens["eval_glip_tiny.npz"], trunk_of("glip_tiny")
    bake(attach(trunk, "zero_shot", classes=golden.labels)).save(tmp_path)
    for owner in (text.TextEncoder, Tokenizer):
        monkeypatch.setattr(owner, "__init__", lambda *args, **kwargs: pytest.fail("built"))
    baked = load_baked(tmp_path)
    parameters = [sum(p.numel() for p in glip.parameters()) for glip in (trunk.network, baked.network)]
    assert parameters[0] - parameters[1] == sum(p.numel() for p in trunk.network.text_encoder.parameters()) > 108e6
    (output,) = baked.outputs(parity.pictures(golden.arrays, weights))
    for i, found in enumerate(decoding.decode(output)):
        measured = parity.measure_detections(found, parity.detections_of(golden.arrays, f"{{}}_{i}"))
        assert all(error <= limits.float32 for _, error, limits in measured)
