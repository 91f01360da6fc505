"""The web application of the studio: what it serves, what it refuses, and its jobs, without a detector."""

import io
import json
import threading
import time
from urllib.parse import quote

import pytest
from labelled import make_split
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from glip_adapt.share.studio.guard import MOST_BYTES, Guard, hosts_of, new_token
from glip_adapt.share.studio.jobs import BusyError, Jobs
from glip_adapt.share.studio.labels import LabelStore
from glip_adapt.share.studio.routes import SCRIPTS, Studio, create_app

HOME = "http://127.0.0.1:8420"
TOKEN = "a-token_of-the-tests"
BOX = {"name": "owl", "box": [1, 2, 3, 4]}


@pytest.fixture
def studio(tmp_path):
    make_split(tmp_path / "pictures", [[], [], []])
    return Studio(LabelStore(tmp_path / "pictures"))


@pytest.fixture
def client(studio):
    opened = anonymous(studio)
    opened.cookies.set("glip-adapt-8420", TOKEN)
    return opened


def anonymous(studio, host="127.0.0.1", token=TOKEN):
    """Return a client that does not know the token."""
    return TestClient(create_app(studio, hosts_of(host), token), base_url=HOME)


@pytest.fixture
def key(client):
    return client.get("/api/folder").json()["pictures"][0]["id"]


def wait(jobs):
    for _ in range(500):
        if jobs.current.state != "running":
            return jobs.current
        time.sleep(0.01)
    raise AssertionError("the job does not end")


def test_the_page_and_its_files_are_served_and_load_nothing_from_elsewhere(client):
    kinds = {"/": "text/html", "/page.css": "text/css"} | {f"/{name}": "text/javascript" for name in SCRIPTS}
    for path, kind in kinds.items():
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in answer.text
        assert "innerHTML" not in answer.text
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy


def test_labels_go_to_the_folder_and_come_back(client, studio, key):
    start = client.get(f"/api/labels/{key}").json()
    assert (start["boxes"], start["labelled"], start["width"], start["height"]) == ([], False, 40, 30)
    saved = client.post(f"/api/labels/{key}", json={"boxes": [BOX], "revision": start["revision"]})
    assert saved.status_code == 200
    assert client.get(f"/api/labels/{key}").json()["boxes"] == [BOX]
    assert LabelStore(studio.store.folder).labels_of(key).boxes == (("owl", (1, 2, 3, 4)),)
    entry = client.get("/api/folder").json()["pictures"][0]
    assert (entry["labelled"], entry["boxes"]) == (True, 1)


def test_the_second_of_two_pages_is_told_what_the_first_saved(client, key):
    start = client.get(f"/api/labels/{key}").json()["revision"]
    first = client.post(f"/api/labels/{key}", json={"boxes": [BOX], "revision": start}).json()
    second = client.post(f"/api/labels/{key}", json={"boxes": [], "revision": start})
    assert second.status_code == 409
    assert second.json()["labels"] == first
    assert client.get(f"/api/labels/{key}").json()["boxes"] == [BOX]


@pytest.mark.parametrize(
    "body",
    [
        {"boxes": [{"name": "owl", "box": [1, 2, 3]}]},
        {"boxes": [{"name": "owl", "box": ["a", 2, 3, 4]}]},
        {"boxes": [{"name": 3, "box": [1, 2, 3, 4]}]},
        {"boxes": [{"name": "owl"}]},
        {"boxes": 3},
        {"boxes": [BOX] * 3000},
        {},
    ],
)
def test_malformed_labels_are_refused_and_change_nothing(client, studio, key, body):
    revision = client.get(f"/api/labels/{key}").json()["revision"]
    answer = client.post(f"/api/labels/{key}", json={"revision": revision, **body})
    assert answer.status_code in (404, 422)
    assert answer.json()["error"]
    assert not list(studio.store.folder.glob("*.json"))


def test_pictures_are_upright_small_and_in_a_format_of_browsers(client, studio):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (4000, 2400)).save(studio.store.folder / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20), "red").save(studio.store.folder / "old.bmp")
    ids = {entry["name"]: entry["id"] for entry in client.get("/api/folder").json()["pictures"]}
    sizes = {}
    for name in ("turned.jpg", "old.bmp"):
        for kind in ("picture", "thumbnail"):
            answer = client.get(f"/{kind}/{ids[name]}")
            sizes[name, kind] = Image.open(io.BytesIO(answer.content)).size
            assert answer.headers["content-type"] in ("image/png", "image/jpeg")
    assert sizes["old.bmp", "picture"] == (30, 20)
    width, height = sizes["turned.jpg", "picture"]
    assert height == 2048
    assert width == pytest.approx(0.6 * height, abs=2)
    assert max(sizes["turned.jpg", "thumbnail"]) == 200


def test_a_broken_picture_is_one_message(client, studio):
    (studio.store.folder / "broken.png").write_bytes(b"no picture")
    (entry,) = [e for e in client.get("/api/folder").json()["pictures"] if e["name"] == "broken.png"]
    for path in (f"/picture/{entry['id']}", f"/thumbnail/{entry['id']}", f"/api/labels/{entry['id']}"):
        answer = client.get(path)
        assert answer.status_code == 422
        assert "not an image that can be read" in answer.json()["error"]


def test_no_file_outside_the_folder_is_served(client, studio, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (studio.store.folder / "adapter").mkdir()
    (studio.store.folder / "adapter" / "adapter.json").touch()
    (studio.store.folder / "adapter" / "index.html").symlink_to(tmp_path / "secret.png")
    for path in (
        "/picture/../../secret.png",
        "/picture/%2e%2e%2fsecret.png",
        "/picture/..%2F..%2Fsecret.png",
        f"/picture/{tmp_path}/secret.png",
        "/thumbnail/secret.png",
        "/report/%2e%2e",
        "/report/adapter",
        "/labels.py",
        "/page.html/../labels.py",
        "/.glip-adapt-studio.json",
    ):
        answer = client.get(path)
        assert answer.status_code in (403, 404), path
        assert b"secret" not in answer.content.replace(b"secret.png", b"")
    (entry, *_) = client.get("/api/folder").json()["pictures"]
    (studio.store.folder / entry["name"]).unlink()
    (studio.store.folder / entry["name"]).symlink_to(tmp_path / "secret.png")  # after it was listed
    assert client.get(f"/picture/{entry['id']}").status_code == 404


def test_the_page_of_an_adapter_may_run_nothing(client, studio):
    (studio.store.folder / "adapter").mkdir()
    (studio.store.folder / "adapter" / "adapter.json").touch()
    (studio.store.folder / "adapter" / "index.html").write_text("<script>alert(1)</script>")
    answer = client.get("/report/adapter")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


class TestGuard:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "", "10.0.0.7:8420", "a b"]
    )
    def test_another_name_is_refused_as_it_may_be_a_stranger_who_points_it_here(self, client, host):
        for path in ("/", "/api/folder"):
            answer = client.get(path, headers={"host": host})
            assert answer.status_code == 403
            assert "pictures" not in answer.text

    @pytest.mark.parametrize("host", ["127.0.0.1:8420", "localhost:8420", "[::1]:8420", "LOCALHOST"])
    def test_the_names_of_this_machine_are_its_own(self, client, host):
        assert client.get("/api/folder", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "http://127.0.0.1:9999", "null", "http://localhost:8420"]
    )
    def test_another_site_may_neither_read_nor_write(self, client, studio, key, origin):
        body = {"boxes": [BOX], "revision": client.get(f"/api/labels/{key}").json()["revision"]}
        assert client.post(f"/api/labels/{key}", json=body, headers={"origin": origin}).status_code == 403
        assert client.get("/api/folder", headers={"origin": origin}).status_code == 403
        assert not studio.store.labels_of(key).is_labelled
        assert client.post(f"/api/labels/{key}", json=body, headers={"origin": HOME}).status_code == 200

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_another_site_may_link_to_the_page_but_embed_no_picture(self, client, key, site):
        assert client.get(f"/thumbnail/{key}", headers={"sec-fetch-site": site}).status_code == 403
        assert client.get("/", headers={"sec-fetch-site": site}).status_code == 200
        assert client.get(f"/thumbnail/{key}", headers={"sec-fetch-site": "same-origin"}).status_code == 200

    def test_a_form_of_another_site_cannot_post(self, client, key):
        revision = client.get(f"/api/labels/{key}").json()["revision"]
        text = json.dumps({"boxes": [BOX], "revision": revision})
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            answer = client.post(f"/api/labels/{key}", content=text, headers={"content-type": kind})
            assert answer.status_code == 403

    def test_a_request_may_not_be_huge(self, client, key):
        text = '{"boxes": [], "x": "' + MOST_BYTES * "a" + '"}'
        assert (
            client.post(f"/api/labels/{key}", content=text, headers={"content-type": "application/json"}).status_code
            == 403
        )
        chunks = client.post(f"/api/labels/{key}", content=iter([b"{}"]), headers={"content-type": "application/json"})
        assert chunks.status_code == 403

    def test_a_page_for_the_network_answers_to_addresses_and_still_not_to_names(self, studio):
        client = anonymous(studio, "0.0.0.0", None)
        assert client.get("/api/folder", headers={"host": "192.168.1.5:8420"}).status_code == 200
        assert client.get("/api/folder", headers={"host": "evil.example:8420"}).status_code == 403
        client = anonymous(studio, "studio.lan", None)
        assert client.get("/api/folder", headers={"host": "studio.lan:8420"}).status_code == 200
        assert client.get("/api/folder", headers={"host": "127.0.0.1:8420"}).status_code == 403

    def test_without_the_token_nothing_is_answered(self, studio, key):
        client = anonymous(studio)
        body = {"boxes": [BOX], "revision": studio.store.labels_of(key).revision}
        paths = ["/", "/page.js", "/api/folder", f"/thumbnail/{key}", "/absent"]
        for path in (*paths, *(f"{path}?token={wrong}" for path in paths for wrong in ("", TOKEN[:-1], "None"))):
            answer = client.get(path)
            assert answer.status_code == 403
            assert "whole address that the terminal shows" in answer.text
            assert "set-cookie" not in answer.headers
        for headers in (
            {},
            {"authorization": "Bearer "},
            {"authorization": TOKEN},
            {"authorization": f"Basic {TOKEN}"},
        ):
            assert client.post(f"/api/labels/{key}", json=body, headers=headers).status_code == 403
        assert not studio.store.labels_of(key).is_labelled

    def test_the_address_that_is_printed_opens_the_page_and_leaves_a_cookie(self, studio, key):
        client = anonymous(studio)
        answer = client.get(f"/?token={TOKEN}")
        assert answer.status_code == 200
        name, *facts = answer.headers["set-cookie"].split("; ")
        assert name == f"glip-adapt-8420={TOKEN}"
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} == {*facts}
        assert client.get(f"/thumbnail/{key}").status_code == 200  # by the cookie
        client.cookies.clear()
        client.cookies.set("glip-adapt-8421", TOKEN)  # of a server on another port
        assert client.get(f"/thumbnail/{key}").status_code == 403

    def test_a_program_brings_the_token_in_a_header(self, studio, key):
        client = anonymous(studio)
        body = {"boxes": [BOX], "revision": studio.store.labels_of(key).revision}
        headers = {"authorization": f"bearer {TOKEN}"}
        assert client.get("/api/folder", headers=headers).status_code == 200
        assert client.post(f"/api/labels/{key}", json=body, headers=headers).status_code == 200

    def test_a_token_is_no_leave_for_other_sites_and_names(self, studio):
        client = anonymous(studio)
        for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
            answer = client.get(f"/?token={TOKEN}", headers=headers)
            assert answer.status_code == 403
            assert "set-cookie" not in answer.headers

    def test_tokens_are_drawn_and_fit_into_an_address(self):
        tokens = {new_token() for _ in range(20)}
        assert len(tokens) == 20
        assert all(len(token) >= 32 and quote(token, safe="") == token for token in tokens)

    def test_another_server_may_take_other_kinds_and_sizes(self, studio):
        async def app(scope, receive, send):
            await PlainTextResponse("taken")(scope, receive, send)

        client = TestClient(Guard(app, hosts_of("127.0.0.1"), None, kinds=("image/png",), most_bytes=10), base_url=HOME)
        post = lambda content, kind: client.post("/detect", content=content, headers={"content-type": kind})  # noqa: E731
        assert post(b"1234567890", "image/png").text == "taken"
        assert "Expected image/png" in post(b"{}", "application/json").text
        assert "at most 10 bytes" in post(b"12345678901", "image/png").text


class TestJobs:
    def test_a_job_tells_how_far_it_is_and_what_came_of_it(self):
        jobs, told, go = Jobs(), threading.Event(), threading.Event()

        def work(job):
            job.tell("half", 1, 2)
            told.set()
            go.wait(5)
            return {"answer": 42}

        jobs.start("adapt", work)
        told.wait(5)
        shown = jobs.current.to_json()
        assert (shown["state"], shown["message"], shown["done"], shown["total"]) == ("running", "half", 1, 2)
        with pytest.raises(BusyError, match="being adapted"):
            jobs.start("suggest", work)
        go.set()
        assert wait(jobs).result == {"answer": 42}
        assert jobs.current.state == "done"

    def test_a_job_stops_when_it_next_tells_something(self):
        jobs, told = Jobs(), threading.Event()

        def work(job):
            while True:
                job.tell("on and on")
                told.set()
                time.sleep(0.001)

        jobs.start("adapt", work)
        told.wait(5)
        jobs.stop()
        assert wait(jobs).state == "stopped"

    @pytest.mark.parametrize(("error", "shown"), [(ValueError("name it"), "name it"), (KeyError("x"), "KeyError: 'x'")])
    def test_a_job_that_fails_says_why(self, error, shown):
        def work(job):
            raise error

        jobs = Jobs()
        jobs.start("adapt", work)
        assert wait(jobs).state == "failed"
        assert shown in jobs.current.message

    def test_a_long_curve_is_thinned(self):
        jobs = Jobs()
        jobs.start("adapt", lambda job: [job.add_loss(float(n), n == 0) for n in range(5000)] and None)
        assert 100 < len(wait(jobs).losses) <= 300
        assert jobs.current.losses[0] == 0

    def test_labels_are_saved_while_a_detector_works_and_it_is_not_asked_for_more(self, client, studio, key):
        go = threading.Event()
        studio.jobs.start("adapt", lambda job: go.wait(5))
        revision = client.get(f"/api/labels/{key}").json()["revision"]
        assert client.post(f"/api/labels/{key}", json={"boxes": [BOX], "revision": revision}).status_code == 200
        answer = client.post(f"/api/find/{key}", json={"names": ["owl"], "adapter": ""})
        assert answer.status_code == 503
        assert "Wait" in answer.json()["error"]
        go.set()
        wait(studio.jobs)

    def test_without_a_detector_labels_can_be_drawn_and_the_rest_says_so(self, client, studio, key):
        def absent():
            raise OSError("no weights")

        studio.load(absent)
        assert wait(studio.jobs).message == "no weights"
        answer = client.post("/api/adapt", json={"method": "auto", "minutes": None})
        assert answer.status_code == 422
        assert "No detector" in answer.json()["error"]
