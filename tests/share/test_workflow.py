"""Adapting to a dataset in one call: what it returns, and where the adapter goes."""

import tempfile

import pytest

from glip_adapt import FitConfig, load_adapter, load_dataset
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.train import History, Validation
from glip_adapt.share import workflow
from glip_adapt.share.card import read_facts
from glip_adapt.share.workflow import AdaptResult, adapt_dataset

SHORT = FitConfig(max_steps=1, short_sides=(64,), test_short_side=64)


@pytest.fixture
def adapt(tiny_trunk, coco_folder, tmp_path):
    """Adapt to the generated dataset from one shot, into a folder."""

    def run(**options):
        data = load_dataset(coco_folder)
        given = {"method": "prompt", "shots": 1, "out": tmp_path / "adapter", "recipe": SHORT} | options
        return adapt_dataset(tiny_trunk, data, **given)

    return run


def test_the_result_holds_the_saved_model_and_the_scores_of_before_and_after(adapt, tiny_trunk, tmp_path):
    steps = []
    done = adapt(on_step=lambda step, total: steps.append((step.step, total)))
    assert steps == [(1, 1)]
    assert len(done.history.steps) == 1
    assert done.folder == tmp_path / "adapter"
    loaded = load_adapter(done.folder, trunk=tiny_trunk)
    for name, tensor in done.model.owned_tensors().items():
        assert tensor.equal(loaded.owned_tensors()[name])
    facts = read_facts(done.folder)
    assert (facts.shots, facts.seed) == (1, 3)
    assert facts.metrics == {"test AP, zero-shot": done.before.ap, "test AP": done.after.ap}


def test_the_start_was_kept_if_no_later_state_was_better():
    for best, expected in (((0,), True), ((0, 2), False), ((), False)):
        validations = [Validation(step, 0.5, step in best) for step in (0, 2)]
        result = AdaptResult(
            model=None, history=History(2, validations=validations), before=None, after=None, folder=None
        )
        assert result.kept_start == expected


def test_all_shots_are_all_images_with_boxes(adapt):
    read = read_facts(adapt(shots="all").folder)
    assert (read.shots, read.data) == ("all", "shapes/train")


def test_an_adapter_is_replaced_only_when_asked_for_and_before_training(adapt, monkeypatch):
    adapt()
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "fit", lambda *a, **k: pytest.fail("trained"))
        with pytest.raises(FileExistsError, match="holds an adapter already"):
            adapt(method="linear_probe")
    done = adapt(method="linear_probe", overwrite=True)
    assert {file.name for file in done.folder.iterdir()} == {"adapter.json", "adapter.safetensors", "training.json"}


def test_the_folder_is_tried_before_training(adapt, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "fit", lambda *a, **k: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot take"):
        adapt(out=tmp_path / "file" / "x")
    (tmp_path / "baked").mkdir()
    (tmp_path / "baked" / "baked.json").touch()
    with pytest.raises(FileExistsError, match=r"holds a baked model\. Name another folder"):
        adapt(out=tmp_path / "baked", overwrite=True)


def test_an_adapter_whose_folder_was_taken_meanwhile_goes_beside_it(adapt, tmp_path, monkeypatch, caplog):
    save = AdaptedModel.save

    def taken_first(model, folder, **options):
        if folder == tmp_path / "adapter":
            save(model, folder)
        save(model, folder, **options)

    monkeypatch.setattr(AdaptedModel, "save", taken_first)
    assert adapt().folder == tmp_path / "adapter-2"
    assert str(tmp_path / "adapter-2") in caplog.text
    assert read_facts(tmp_path / "adapter-2") is not None


def test_an_adapter_that_has_no_room_is_rescued_and_the_error_says_where(adapt, tiny_trunk, tmp_path, monkeypatch):
    save = AdaptedModel.save

    def no_room(model, folder, **options):
        if folder == tmp_path / "adapter":
            raise OSError("No room.")
        save(model, folder, **options)

    monkeypatch.setattr(AdaptedModel, "save", no_room)
    (tmp_path / "rescued").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "rescued"))
    with pytest.raises(OSError, match="No room") as raised:
        adapt()
    (other,) = (tmp_path / "rescued").iterdir()
    assert str(other) in str(raised.value)
    assert load_adapter(other, trunk=tiny_trunk).adapter.name == "prompt"
