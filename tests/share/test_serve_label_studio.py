"""A service as the ML backend of Label Studio: predictions in its form, images from the named places alone."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlencode

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from glip_adapt.core.settings import ViewConfig
from glip_adapt.data.dataset import load_dataset
from glip_adapt.engine.adapted import attach
from glip_adapt.share.serving.label_studio import read_config
from glip_adapt.share.serving.references import References
from glip_adapt.share.serving.routes import create_app
from glip_adapt.share.serving.service import Service, Task
from glip_adapt.share.serving.uploads import RefusedError

CONFIG = (
    '<View><Image name="photo" value="$url"/><RectangleLabels name="boxes" toName="photo">'
    '<Label value="Red box"/><Label value="car"/></RectangleLabels></View>'
)
KEY = "s3cret"


def encoded(seed=0, size=(80, 64)):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def data_uri(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


@pytest.fixture
def task(tiny_trunk):
    model = attach(tiny_trunk, "zero_shot", classes=("red box", "blue box"))
    model.thresholds = {"red box": 0.1, "blue box": 0.1}
    return Task(name="boxes", model=model, view=ViewConfig(short_side=64), version="boxes-1")


@pytest.fixture
def label_studio():
    """A stand-in of Label Studio; returns its address and the requests that came."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            if self.path == "/data/away":
                self.send_response(302)
                self.send_header("Location", "/data/upload/1/a.png")
                self.end_headers()
                return
            is_there = self.path.startswith("/data/upload/1/")
            self.send_response(200 if is_there else 401)
            self.end_headers()
            self.wfile.write(encoded() if is_there else b"")

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def files(tmp_path):
    root = tmp_path / "root"
    (root / "album").mkdir(parents=True)
    (root / "album" / "a.png").write_bytes(encoded())
    (tmp_path / "secret.png").write_bytes(encoded(1))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    return root


@pytest.fixture
def client(task, label_studio, files):
    service = Service({"boxes": task})
    references = References(label_studio=label_studio[0], key=KEY, local_files=files)
    yield TestClient(
        create_app(service, (), "t", references), base_url="http://x", headers={"Authorization": "Bearer t"}
    )
    service.close()


def predict(client, *references, config=CONFIG, path="/predict"):
    tasks = [{"id": number, "data": {"url": reference}} for number, reference in enumerate(references)]
    return client.post(path, json={"tasks": tasks, "label_config": config, "project": "1.1", "params": {}})


def test_setup_and_health_answer_as_label_studio_expects(client):
    answer = client.post("/setup", json={"project": "1.1", "schema": CONFIG, "hostname": "http://evil.example"})
    assert answer.json() == {"model_version": "boxes-1"}
    assert client.get("/health").json()["status"] == "UP"
    assert client.post("/tasks/boxes/setup", json={}).json() == {"model_version": "boxes-1"}
    assert client.get("/tasks/boxes/health").json()["status"] == "UP"


def test_a_prediction_holds_the_boxes_for_which_there_is_a_label(client, task):
    (one,) = predict(client, data_uri(encoded())).json()["results"]
    found = task.model.predict(Image.open(io.BytesIO(encoded())), view=task.view, threshold=0.1)
    red = found.select(found.labels == 0)
    assert 0 < len(red) < len(found)
    assert one["model_version"] == "boxes-1"
    assert one["score"] == pytest.approx(red.scores.mean().item(), abs=1e-5)
    assert len(one["result"]) == len(red)
    first = one["result"][0]
    assert (first["from_name"], first["to_name"], first["type"]) == ("boxes", "photo", "rectanglelabels")
    assert (first["original_width"], first["original_height"]) == (80, 64)
    value, (left, top, right, bottom) = first["value"], red.boxes_xyxy[0].clamp(min=0).tolist()
    assert value["rectanglelabels"] == ["Red box"]
    edges = (value["x"] * 0.8, value["y"] * 0.64, value["width"] * 0.8, value["height"] * 0.64)
    assert edges == pytest.approx((left, top, min(right, 80) - left, min(bottom, 64) - top), abs=1e-2)


def test_a_prediction_is_what_the_reader_of_label_studio_exports_takes(client, tmp_path):
    (one,) = predict(client, data_uri(encoded())).json()["results"]
    (tmp_path / "a.png").write_bytes(encoded())
    document = [{"data": {"image": "a.png"}, "annotations": [{"result": one["result"]}]}]
    (tmp_path / "tasks.json").write_text(json.dumps(document))
    split = load_dataset(tmp_path, format="label_studio").train
    assert split.classes == ("Red box",)
    assert len(split.records[0].annotations) == len(one["result"])


def test_the_same_image_by_each_way_gives_the_same(client, label_studio):
    address, asked = label_studio
    ways = (
        data_uri(encoded()),
        "/data/upload/1/a.png",
        f"{address}/data/upload/1/a.png?x=1",
        "/data/local-files/?d=album/a.png",
        f"{address}/data/local-files/?d=album%2Fa.png",
    )
    results = predict(client, *ways).json()["results"]
    assert len(results) == len(ways)
    scores = [[region["score"] for region in result["result"]] for result in results]
    assert len(scores[0]) > 3
    assert scores == [pytest.approx(scores[0], abs=1e-5)] * len(ways)  # they went through the network in batches
    assert sorted(asked) == [("/data/upload/1/a.png", f"Token {KEY}"), ("/data/upload/1/a.png?x=1", f"Token {KEY}")]


@pytest.mark.parametrize(
    "reference",
    [
        "http://evil.example/a.png",
        "https://{host}/data/upload/1/a.png",
        "http://user@{host}/data/upload/1/a.png",
        "http://{host}@evil.example/data/upload/1/a.png",
        "http://{host}.evil.example/data/upload/1/a.png",
        "//evil.example/data/upload/1/a.png",
        "http://127.0.0.1:1/data/upload/1/a.png",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        "http://[bad/a.png",
    ],
)
def test_no_other_host_is_asked(client, label_studio, reference, monkeypatch):
    address, asked = label_studio
    answer = predict(client, reference.format(host=address.removeprefix("http://")))
    assert answer.status_code == 422
    assert "not an image of the Label Studio that was named" in answer.json()["error"]
    assert asked == []


@pytest.mark.parametrize(
    "name", ["../secret.png", "link.png", "/etc/hostname", "album", "absent.png", "a\0b", "", "x" * 5000]
)
def test_no_file_outside_the_root_is_read(client, name):
    answer = predict(client, f"/data/local-files/?{urlencode({'d': name})}")
    assert answer.status_code == 422
    assert "There is no file" in answer.json()["error"]


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("/data/away", "answered 302"),
        ("/data/upload/2/a.png", "answered 401"),
        ("data:image/png;base64,@@@", "no valid base64"),
        (data_uri(b"no image"), "not an image that can be read"),
        ("", "Expected the text 'url'"),
    ],
)
def test_an_image_that_cannot_be_had_is_one_sentence(client, reference, sentence):
    answer = predict(client, reference)
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]


def test_one_image_that_cannot_be_had_leaves_the_others(client):
    results = predict(client, data_uri(encoded()), data_uri(b"no image")).json()["results"]
    assert results[0]["result"] != []
    assert results[1] == {"result": [], "score": 0.0, "model_version": "boxes-1"}


def test_without_a_named_label_studio_nothing_is_fetched():
    for reference in ("/data/upload/1/a.png", "/data/local-files/?d=a.png", "http://127.0.0.1/a.png"):
        with pytest.raises(RefusedError, match="--label-studio"):
            References().read(reference)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "not valid XML"),
        ("<View>", "not valid XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', "not valid XML"),
        ("<View/>", "Expected a labelling configuration"),
        (CONFIG.replace("$url", "url"), "Expected a labelling configuration"),
        (CONFIG.replace("Red box", "van"), "the labels van, car"),
    ],
)
def test_a_configuration_without_use_is_refused(client, config, sentence):
    answer = predict(client, data_uri(encoded()), config=config)
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]


def test_a_configuration_without_labels_takes_any(task):
    control = read_config(CONFIG.replace('<Label value="Red box"/><Label value="car"/>', ""))
    assert control.label_of("whatever") == "whatever"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"tasks": {}}', b"[" * 100_000])
def test_what_is_no_request_of_label_studio_is_refused(client, body):
    answer = client.post("/predict", content=body)
    assert answer.status_code in (400, 422)
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("address", ["localhost:8080", "ftp://x", "http://u:p@x", "http://x/?a=b"])
def test_what_is_no_address_of_label_studio_is_told_at_the_start(address):
    with pytest.raises(ValueError, match=r"such as http://localhost:8080"):
        References(label_studio=address)
