"""The verb ``serve`` up to the moment that it serves."""

import builtins

import pytest

from glip_adapt import attach, load_trunk
from glip_adapt.cli import serve


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "tools"
    attach(load_trunk("glip-nano"), "linear_probe", classes=("gear", "hammer")).save(folder)
    return folder


@pytest.fixture
def served(monkeypatch):
    """Keep the server from starting; return what would be served: sockets, names, token and images' places."""
    import uvicorn

    from glip_adapt.share.serving import routes

    taken, real = [], routes.create_app

    def create_app(service, hosts, token, references):
        taken.extend((service, hosts, token, references))
        return real(service, hosts, token, references)

    def run(self, sockets):
        taken.extend(sockets)

    monkeypatch.setattr(routes, "create_app", create_app)
    monkeypatch.setattr(uvicorn.Server, "run", run)
    yield taken
    for one in taken[4::5]:
        one.close()


def test_it_listens_on_this_machine_alone_without_a_token(glip, adapter, served):
    code, out, err = glip("serve", adapter, f"more={adapter}", "--port", "0", "--most-megabytes", "1.5")
    service, hosts, token, references, listening = served
    assert code == 0, err
    assert listening.getsockname()[0] == "127.0.0.1"
    assert f"Listening on http://127.0.0.1:{listening.getsockname()[1]}/" in out
    assert "tools: gear, hammer (glip-nano)" in out
    assert "localhost" in hosts
    assert token == ""
    assert list(service.tasks) == ["tools", "more"]
    assert service.tasks["tools"].model.trunk is service.tasks["more"].model.trunk
    assert service.limits.most_bytes == references.most_bytes == 1_500_000


def test_beyond_this_machine_there_is_always_a_token(glip, adapter, served, monkeypatch):
    monkeypatch.delenv("GLIP_ADAPT_TOKEN", raising=False)
    assert "Authorization: Bearer" in glip("serve", adapter, "--host", "0.0.0.0", "--port", "0")[2]
    first = served[2]
    assert len(first) >= 32
    assert glip("serve", adapter, "--host", "0.0.0.0", "--port", "0")[0] == 0
    assert served[7] not in ("", first)


def test_a_token_of_the_environment_is_not_printed(glip, adapter, served, monkeypatch):
    monkeypatch.setenv("GLIP_ADAPT_TOKEN", "s3cret")
    code, out, err = glip("serve", adapter, "--host", "0.0.0.0", "--port", "0")
    assert code == 0
    assert served[2] == "s3cret"
    assert "s3cret" not in out + err


def test_two_tasks_of_one_name_are_told_apart_by_another_name(glip, adapter, served):
    code, _, err = glip("serve", adapter, adapter)
    assert code == 1
    assert "Two tasks are called 'tools'. Give one another name: NAME=" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("absent",), "There is no model in absent"),
        (("--host", "192.0.2.1"), "cannot be listened on"),
        (("--label-studio", "localhost:8080"), "Expected the address of Label Studio"),
        (("--local-files", "absent"), "There is no folder absent"),
    ],
)
def test_a_mistake_is_one_message(glip, adapter, served, words, message):
    code, _, err = glip("serve", adapter, "--port", "0", *words)
    assert code == 1
    assert message in err


@pytest.mark.parametrize("package", ["uvicorn", "python_multipart"])
def test_without_its_extra_it_says_what_to_install(glip, adapter, monkeypatch, package):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    code, _, err = glip("serve", adapter)
    assert code == 1
    assert "pip install 'glip-adapt[serve]'" in err


def test_a_taken_port_is_left_for_a_free_one_unless_it_was_asked_for(glip, adapter, served, monkeypatch):
    assert glip("serve", adapter, "--port", "0")[0] == 0
    taken = served[4].getsockname()[1]
    monkeypatch.setattr(serve, "PORT", taken)
    code, _, err = glip("serve", adapter, "--port", taken)
    assert code == 1
    assert f"port {taken}, cannot be listened on" in err
