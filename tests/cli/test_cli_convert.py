"""The verb ``convert``."""

import pytest
from public_files import VOCABULARY, add_trunk, save_public, small_state, tuned

from glip_adapt import load_adapter, load_trunk
from glip_adapt.adapters.storage import read_description


@pytest.fixture(autouse=True)
def _small_trunk(monkeypatch):
    add_trunk(monkeypatch, "small")


@pytest.fixture
def state():
    return small_state()


@pytest.fixture
def file(state, tmp_path):
    return save_public(tuned(state), tmp_path / "tuned.pth")


@pytest.fixture
def convert(glip):
    """Run the verb on the small trunk; return exit code, standard output, and what else was said, in one line."""

    def run(*arguments):
        code, out, err = glip("convert", *arguments, "--trunk", "small", "--vocabulary", VOCABULARY)
        return code, out, " ".join(err.replace("│", " ").split())

    return run


def test_help_has_an_example(glip):
    code, out, _ = glip("convert", "--help")
    assert code == 0
    assert "Example: glip-adapt convert model_best.pth adapters/raccoon" in " ".join(out.split())


def test_weights_become_a_file_and_the_prompt_of_the_file_is_said(convert, file, tmp_path, caplog):
    code, out, err = convert(file, tmp_path / "small.safetensors")
    assert code == 0, err
    trunk = load_trunk("small", checkpoint=tmp_path / "small.safetensors", vocabulary=VOCABULARY)
    assert f"{tmp_path / 'small.safetensors'}: SHA-256 of the weights {trunk.checksum}" in " ".join(out.split())
    assert f"glip-adapt convert {file} FOLDER --trunk small" in caplog.text


def test_a_prompt_becomes_an_adapter_that_its_file_is_the_trunk_of(convert, file, tmp_path, caplog):
    code, out, err = convert(file, tmp_path / "adapter", "--classes", "red box, [b]blue[/b]")
    assert code == 0, err
    assert "for the caption 'red box. [b]blue[/b]'" in out
    assert f"--adapter {tmp_path / 'adapter'} --checkpoint {file}" in out
    assert "glip-adapt convert" not in caplog.text
    trunk = load_trunk("small", checkpoint=file, vocabulary=VOCABULARY)
    assert load_adapter(tmp_path / "adapter", trunk=trunk).class_names == ("red box", "[b]blue[/b]")


def test_the_name_of_a_folder_is_printed_as_it_is(convert, file, tmp_path):
    folder = tmp_path / "a:smile:[b]\x1b[2J"
    code, out, err = convert(file, folder, "--classes", "red box")
    assert code == 0, err
    assert f"--adapter {tmp_path}/a:smile:[b]\\x1b[2J --checkpoint" in out


def test_classes_may_come_from_the_dataset_of_the_training(convert, file, coco_folder, tmp_path):
    code, _, err = convert(file, tmp_path / "adapter", "--dataset", coco_folder)
    assert code == 0, err
    assert [c.name for c in read_description(tmp_path / "adapter").classes] == ["red box", "blue box"]


def test_an_adapter_that_is_there_is_replaced_only_on_demand(convert, file, tmp_path):
    target = tmp_path / "adapter"
    assert convert(file, target, "--classes", "red box")[0] == 0
    code, _, err = convert(file, target, "--classes", "blue box")
    assert code == 1
    assert str(target) in err
    assert read_description(target).classes[0].name == "red box"
    assert convert(file, target, "--classes", "blue box", "--overwrite")[0] == 0
    assert read_description(target).classes[0].name == "blue box"


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ("folder", [], "Name a file that ends in .safetensors for the weights; or, for the tuned prompt"),
        ("small.bin", [], "Name a file that ends in .safetensors"),
        ("folder", ["--classes", " , "], "Name a file that ends in .safetensors"),
        ("x.safetensors", ["--classes", "red box"], "a tuned prompt, which becomes a folder"),
        ("folder", ["--classes", "red box", "--dataset", "set"], "name classes or a dataset, not both"),
        ("folder", ["--classes", "red box", "--prompts", "official"], "official prompts belong to a dataset"),
    ],
)
def test_options_that_do_not_belong_together_are_wrong_usage(convert, file, tmp_path, target, options, said):
    code, _, err = convert(file, tmp_path / target, *options)
    assert code == 2
    assert said in err
    assert not (tmp_path / target).exists()


def test_classes_for_a_file_without_a_prompt_are_one_error(convert, state, tmp_path):
    code, _, err = convert(save_public(state, tmp_path / "plain.pth"), tmp_path / "adapter", "--classes", "red box")
    assert code == 1
    assert "holds no tuned prompt" in err
    assert not (tmp_path / "adapter").exists()
