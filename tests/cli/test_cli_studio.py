"""The verb ``studio`` up to the moment that it serves."""

import builtins
import socket

import pytest
from labelled import make_split

from glip_adapt.cli import studio


@pytest.fixture
def folder(tmp_path):
    make_split(tmp_path / "pictures", [[], []])
    return tmp_path / "pictures"


@pytest.fixture
def served(monkeypatch):
    """Keep the server and the detector from starting; return the sockets that it would listen on."""
    import uvicorn

    from glip_adapt.share.studio.routes import Studio

    taken = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: taken.extend(sockets))
    monkeypatch.setattr(Studio, "load", lambda self, open_trunk: None)
    yield taken
    for one in taken:
        one.close()


def test_it_listens_on_this_machine_alone_and_shows_the_address(glip, folder, served):
    code, out, err = glip("studio", folder, "--port", "0")
    assert code == 0
    host, port = served[0].getsockname()
    assert host == "127.0.0.1"
    assert f"2 pictures, 0 labelled (coco). Open http://127.0.0.1:{port}/?token=" in out
    assert len(out.split("token=")[1].split()[0]) >= 32
    assert "Other machines" not in err


def test_another_host_is_named_as_open_to_others(glip, folder, served):
    code, _, err = glip("studio", folder, "--host", "0.0.0.0", "--port", "0")
    assert code == 0
    assert served[0].getsockname()[0] == "0.0.0.0"
    assert "Other machines reach this page" in err


def test_a_taken_port_is_left_for_a_free_one_unless_it_was_asked_for(glip, folder, served, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.setattr(studio, "PORT", taken)
        assert glip("studio", folder)[0] == 0
        assert served[0].getsockname()[1] != taken
        code, _, err = glip("studio", folder, "--port", taken)
    assert code == 1
    assert f"port {taken}, cannot be listened on" in err


def test_what_is_no_folder_of_pictures_is_one_message(glip, folder, served, tmp_path):
    assert "There is no folder" in glip("studio", tmp_path / "absent")[2]
    for text, message in {"{": "cannot be read as COCO", '{"images": [': "malformed JSON"}.items():
        (folder / "_annotations.coco.json").write_text(text)
        code, _, err = glip("studio", folder)
        assert code == 1
        assert message in err


def test_without_its_extra_it_says_what_to_install(glip, folder, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    code, _, err = glip("studio", folder)
    assert code == 1
    assert "pip install 'glip-adapt[studio]'" in err
