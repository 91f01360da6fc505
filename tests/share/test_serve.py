"""A service: answers of batches, tasks that share features, what is refused, and who may ask."""

import base64
import io
import threading
import time
import zlib

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from glip_adapt.core.settings import ViewConfig
from glip_adapt.engine.adapted import attach
from glip_adapt.share.baked import bake
from glip_adapt.share.serving import service as service_file
from glip_adapt.share.serving.guard import is_loopback
from glip_adapt.share.serving.routes import create_app
from glip_adapt.share.serving.service import Service, Task, load_tasks
from glip_adapt.share.serving.uploads import Limits
from glip_adapt.share.studio.guard import hosts_of

HOME = "http://127.0.0.1:9090"
VIEW = ViewConfig(short_side=64)
CLASSES = {"boxes": ("red box", "blue box"), "things": ("box",), "all": ("grey box",)}
METHODS = {"boxes": "prompt", "things": "zero_shot", "all": "full"}
LIMITS = Limits(most_bytes=200_000, most_pixels=20_000, most_waiting=8)


def image(seed=0, size=(80, 64)):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def tasks(tiny_trunk):
    models = {name: attach(tiny_trunk, METHODS[name], classes=classes) for name, classes in CLASSES.items()}
    return {name: Task(name=name, model=model, view=VIEW, version=f"{name}-1") for name, model in models.items()}


@pytest.fixture
def service(tasks):
    service = Service(tasks, LIMITS)
    yield service
    service.close()


@pytest.fixture
def client(service):
    return TestClient(create_app(service, hosts_of("127.0.0.1")), base_url=HOME)


def expected(tasks, name, picture, threshold=0.0):
    found = tasks[name].model.predict(picture, view=VIEW, threshold=threshold)
    return found.boxes_xyxy, found.scores, [found.class_names[label] for label in found.labels]


def assert_same(answer, wanted, tolerance=1e-5):
    assert answer.status_code == 200, answer.text
    boxes = answer.json()["detections"]
    boxes_xyxy, scores, names = wanted
    assert [box["class"] for box in boxes] == names
    assert len(names) > 3
    torch.testing.assert_close(torch.tensor([box["score"] for box in boxes]), scores, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        torch.tensor([box["box_xyxy"] for box in boxes]), boxes_xyxy, rtol=0, atol=1000 * tolerance
    )


@pytest.mark.parametrize("name", CLASSES)
def test_an_answer_is_what_the_model_predicts(client, tasks, name):
    answer = client.post("/detect", params={"task": name, "threshold": 0}, content=encoded(image()))
    assert_same(answer, expected(tasks, name, image()))
    assert {key: answer.json()[key] for key in ("schema", "task", "width", "height")} == {
        "schema": 2, "task": name, "width": 80, "height": 64,
    }  # fmt: skip


def test_a_form_brings_the_same_as_a_body(client):
    content = encoded(image())
    by_body = client.post("/detect", params={"task": "boxes", "threshold": 0.1}, content=content)
    by_form = client.post("/detect", data={"task": "boxes", "threshold": "0.1"}, files={"image": ("x.png", content)})
    assert by_form.json()["detections"] == by_body.json()["detections"] != []


def test_a_photograph_that_lies_on_its_side_is_turned(client, tasks):
    turned = Image.Exif()
    turned[0x0112] = 6
    answer = client.post("/detect", params={"task": "boxes", "threshold": 0}, content=encoded(image(), exif=turned))
    assert (answer.json()["width"], answer.json()["height"]) == (64, 80)
    assert_same(answer, expected(tasks, "boxes", image().transpose(Image.Transpose.ROTATE_270)))


def ask_together(client, service, asked, monkeypatch):
    """Send requests while the detector is busy with the first, so that the others wait for one batch.

    Returns their answers in order, and the sizes of the batches.
    """
    sizes, entered, free, real = [], threading.Event(), threading.Event(), service._batcher._compute

    def compute(items):
        entered.set()
        assert free.wait(10)
        sizes.append(len(items))
        return real(items)

    monkeypatch.setattr(service._batcher, "_compute", compute)
    answers = {}

    def ask(place):
        name, content = asked[place]
        answers[place] = client.post("/detect", params={"task": name, "threshold": 0}, content=content)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(asked))]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    last = time.monotonic() + 10
    while service._batcher._queue.qsize() < len(asked) - 1 and time.monotonic() < last:
        time.sleep(0.001)
    free.set()
    for thread in threads:
        thread.join()
    return [answers[place] for place in range(len(asked))], sizes


def test_answers_of_a_batch_are_those_of_single_requests(client, service, tasks, monkeypatch):
    names = ["boxes", "things", "all", "boxes", "things", "boxes"]
    images = [
        image(seed, size) for seed, size in enumerate([(80, 64), (90, 64), (80, 64), (64, 100), (80, 60), (80, 64)])
    ]
    asked = [(name, encoded(one)) for name, one in zip(names, images, strict=True)]
    answers, sizes = ask_together(client, service, asked, monkeypatch)
    assert sizes == [1, 5]
    for answer, name, one in zip(answers, names, images, strict=True):
        assert_same(answer, expected(tasks, name, one))


def test_tasks_share_the_features_of_an_image_and_a_task_that_trains_the_encoder_does_not(
    client, service, tiny_trunk, monkeypatch
):
    seen, real = [], tiny_trunk.network.encode_image
    monkeypatch.setattr(
        tiny_trunk.network, "encode_image", lambda images: seen.append(len(images.image_sizes_hw)) or real(images)
    )
    for name in ("boxes", "things", "boxes"):
        assert client.post("/detect", params={"task": name}, content=encoded(image(5))).status_code == 200
    assert seen == [1]
    assert client.post("/detect", params={"task": "boxes"}, content=encoded(image(6))).status_code == 200
    assert client.post("/detect", params={"task": "all"}, content=encoded(image(7))).status_code == 200
    assert seen == [1, 1]
    assert service._cache.statistics.memory_hits == 2


def test_what_no_request_has_used_for_longest_leaves_the_cache(tasks, monkeypatch):
    monkeypatch.setattr(service_file, "CACHE_BYTES", 100_000)
    small = Service(tasks, LIMITS)
    client = TestClient(create_app(small, hosts_of("127.0.0.1")), base_url=HOME)
    for seed in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9):
        client.post("/detect", params={"task": "boxes"}, content=encoded(image(seed)))
    kept = small._cache.statistics
    assert 0 < kept.memory_bytes <= 100_000
    assert kept.memory_hits == 1
    small.close()


def bomb():
    """A PNG of few bytes that claims 60,000 × 60,000 pixels."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + bytes((1, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b"", 400, "holds no image"),
        (b"GIF89a", 422, "not an image that can be read"),
        (b"<svg/>" * 100, 422, "not an image that can be read"),
        (encoded(image())[:900], 422, "not an image that can be read"),
        (encoded(image(), "JPEG")[:700], 422, "not an image that can be read"),
        (encoded(image(size=(150, 150))), 413, "150 × 150 pixels; at most 20,000"),
        (bomb(), 413, "60000 × 60000 pixels|exceeds limit"),
        (bytes(200_001), 413, "larger than 200,000 bytes"),
    ],
)
def test_a_bad_upload_is_refused_with_one_sentence(client, content, status, sentence):
    for sent in ({"content": content}, {"files": {"image": ("x", content)}}):
        answer = client.post("/detect", params={"task": "boxes"}, **sent)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
        assert any(part in answer.json()["error"] for part in sentence.split("|")), answer.text
        assert "BytesIO" not in answer.text


def test_a_body_without_a_stated_length_is_read_no_further_than_allowed(client):
    read = []

    def endless():
        while True:
            read.append(1)
            yield bytes(50_000)
            assert len(read) < 100

    assert client.post("/detect", content=iter_of(endless(), 20)).status_code == 413


def iter_of(source, most):
    for _, part in zip(range(most), source, strict=False):
        yield part


@pytest.mark.parametrize(
    ("fields", "status", "sentence"),
    [
        ({"task": "bxes"}, 404, "did you mean 'boxes'"),
        ({}, 400, "Say which task: boxes, things, all"),
        ({"task": "boxes", "threshold": "high"}, 422, "threshold from 0 to 1, got 'high'"),
        ({"task": "boxes", "threshold": "nan"}, 422, "threshold from 0 to 1"),
        ({"task": "boxes", "threshold": "1.5"}, 422, "threshold from 0 to 1"),
    ],
)
def test_a_bad_field_is_refused(client, fields, status, sentence):
    answer = client.post("/detect", params=fields, content=encoded(image()))
    assert answer.status_code == status
    assert sentence in answer.json()["error"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"no form"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nab',
        ),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nab\r\n--x--\r\n'),
    ],
)
def test_a_bad_form_is_refused(client, kind, body):
    answer = client.post("/detect", content=body, headers={"Content-Type": kind})
    assert answer.status_code in (400, 422)
    assert list(answer.json()) == ["error"]


def test_too_many_requests_are_told_when_to_come_again_and_later_ones_are_answered(client, service):
    service._waiting = LIMITS.most_waiting
    answer = client.post("/detect", params={"task": "boxes"}, content=encoded(image()))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "8 requests wait already" in answer.json()["error"]
    assert client.get("/health").status_code == 200
    service._waiting = 0
    assert client.post("/detect", params={"task": "boxes"}, content=encoded(image())).status_code == 200
    assert service._waiting == 0
    assert client.post("/detect", params={"task": "boxes"}, content=b"no image").status_code == 422
    assert service._waiting == 0


def test_one_image_that_fails_does_not_take_its_batch_with_it(client, service, tasks, monkeypatch):
    real = service._batcher._compute

    def compute(items):
        if any(task.name == "things" for task, _ in items):
            raise RuntimeError("out of memory")
        return real(items)

    monkeypatch.setattr(service._batcher, "_compute", compute)
    asked = [(name, encoded(image(seed))) for seed, name in enumerate(["boxes", "boxes", "things", "boxes"])]
    answers, _ = ask_together(client, service, asked, monkeypatch)
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
    assert answers[2].json() == {"error": "The detector failed; the log of the service says why."}


def test_numbers_for_prometheus(client):
    content = encoded(image())
    for name in ("boxes", "things"):
        client.post("/detect", params={"task": name}, content=content)
    client.post("/detect", params={"task": "boxes"}, content=b"no image")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    for line in (
        'glip_adapt_requests_total{route="/detect",status="200"} 2.0',
        'glip_adapt_requests_total{route="/detect",status="422"} 1.0',
        'glip_adapt_images_total{task="boxes"} 1.0',
        'glip_adapt_request_seconds_bucket{le="+Inf",route="/detect"} 3.0',
        'glip_adapt_request_seconds_count{route="/detect"} 3.0',
        "glip_adapt_feature_cache_hits 1.0",
        "glip_adapt_feature_cache_misses 1.0",
        "glip_adapt_waiting_requests 0.0",
        "# TYPE glip_adapt_batch_images histogram",
    ):
        assert line in lines
    assert all(line.startswith("#") or len(line.rsplit(" ", 1)) == 2 for line in lines)


def test_tasks_are_listed(client):
    listed = client.get("/tasks").json()
    assert [entry["task"] for entry in listed] == list(CLASSES)
    assert listed[0] == {
        "task": "boxes", "version": "boxes-1", "trunk": "glip-nano",
        "classes": ["red box", "blue box"], "thresholds": {"red box": 0.3, "blue box": 0.3},
    }  # fmt: skip


def test_an_unknown_route_is_json_too(client):
    for answer, status in ((client.get("/nowhere"), 404), (client.get("/detect"), 405)):
        assert answer.status_code == status
        assert "POST /detect" in answer.json()["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:9090"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_without_a_token_no_other_site_may_ask(client, headers):
    answer = client.post("/detect", params={"task": "boxes"}, content=encoded(image()), headers=headers)
    assert answer.status_code == 403
    assert list(answer.json()) == ["error"]


def test_with_a_token_only_who_has_it_may_ask_by_any_name(service):
    guarded = TestClient(create_app(service, hosts_of("0.0.0.0"), token="sésame"), base_url="http://detector:9090")
    password = base64.b64encode("label-studio:sésame".encode()).decode()
    bad = ("", "Bearer", "Bearer sesame", "sesame", "Basic !!", "Basic c2VzYW1l")
    for header, status in [*((header, 401) for header in bad), (f"Basic {password}", 200)]:
        answer = guarded.get("/tasks", headers={"Authorization": header} if header else {})
        assert answer.status_code == status, header
    assert guarded.get("/tasks").headers["www-authenticate"] == "Bearer"
    assert guarded.get("/health").json()["status"] == "UP"
    assert guarded.post("/detect", content=encoded(image())).status_code == 401


def test_a_bearer_token(service):
    guarded = TestClient(create_app(service, (), token="abc123"), base_url="http://detector:9090")
    assert guarded.get("/tasks", headers={"Authorization": "Bearer abc123"}).status_code == 200
    assert guarded.get("/tasks", headers={"Authorization": "Bearer abc124"}).status_code == 401


def test_only_this_machine_is_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.0.0.2")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.1", "example.org")))


def test_tasks_come_from_folders_of_adapters_and_baked_models(tiny_trunk, tmp_path, monkeypatch):
    model = attach(tiny_trunk, "prompt", classes=("red box",))
    model.save(tmp_path / "adapter")
    baked = bake(model)
    baked.save(tmp_path / "baked")
    monkeypatch.setattr(service_file, "load_baked", lambda folder, device: baked)  # a tiny trunk is in no catalogue
    opened = []
    folders = {"one": tmp_path / "adapter", "two": tmp_path / "adapter", "three": tmp_path / "baked"}
    tasks = load_tasks(folders, lambda folder: opened.append(folder) or tiny_trunk)
    assert opened == [tmp_path / "adapter"]
    assert [task.model.class_names for task in tasks.values()] == [("red box",)] * 3
    assert tasks["one"].version.startswith("one-")
    assert tasks["one"].version[4:] == tasks["two"].version[4:] != tasks["three"].version[6:]
