"""The page of the studio in a real browser, Debian's or Ubuntu's Chromium: labelling by hand, and the whole story."""

import json
import shutil
import subprocess
import sys
import threading

import pytest
from labelled import make_split

from glip_adapt import load_adapter, load_dataset
from glip_adapt.cli.listening import listen
from glip_adapt.share.studio.labels import LabelStore

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

ODD = "<img src=x onerror=alert(1)> & co.png"
TRAINING_MS = 300_000
TOKEN = "a-token_of-the-tests"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser):
    """A page; that it raised no error is checked at the end."""
    errors = []
    opened = browser.new_page(viewport={"width": 1400, "height": 860})
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("dialog", lambda dialog: errors.append(dialog.message))
    yield opened
    opened.close()
    assert errors == []


@pytest.fixture
def served(tmp_path):
    """Serve three pictures of 40 × 30 pixels without a detector; return their folder and the address."""
    import uvicorn

    from glip_adapt.share.studio.guard import hosts_of
    from glip_adapt.share.studio.routes import Studio, create_app

    folder = tmp_path / "pictures"
    make_split(folder, [[], [], []])
    (folder / "3.png").rename(folder / ODD)
    listening = listen("127.0.0.1", 0, usual=0)
    app = create_app(Studio(LabelStore(folder)), hosts_of("127.0.0.1"), TOKEN)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{listening.getsockname()[1]}/?token={TOKEN}"
    server.should_exit = True
    thread.join(5)
    listening.close()


def open_page(page, address):
    page.goto(address)
    expect(page.locator("#saved")).to_have_text("all saved")
    expect(page.locator("#editor image")).to_be_visible()


def name_classes(page, names):
    page.fill("#class-names", names)
    page.click("#add-class button")
    expect(page.locator("#class-names")).to_have_value("")


def select(page, name):
    page.locator(".thumb", has_text=name).click()
    expect(page.locator("#name")).to_have_text(name)


def drag(page, start, end):
    """Drag the mouse between two places in pixels of the picture."""
    scale, left, top = page.evaluate(
        "() => { const m = document.querySelector('#editor').getScreenCTM(); return [m.a, m.e, m.f] }"
    )
    x, y = start
    page.mouse.move(left + scale * x, top + scale * y)
    page.mouse.down()
    page.mouse.move(left + scale * (x + end[0]) / 2, top + scale * (y + end[1]) / 2)
    page.mouse.move(left + scale * end[0], top + scale * end[1])
    page.mouse.up()


def draw(page, box):
    """Draw a box: left, top, width, height in pixels of the picture."""
    x, y, w, h = box
    page.keyboard.press("Escape")
    drag(page, (x, y), (x + w, y + h))


def saved(page, folder):
    """Return the labels of the folder by file name, once all are saved; boxes in whole pixels."""
    expect(page.locator("#saved")).to_have_text("all saved")
    entries = LabelStore(folder).overview()
    return {
        name: [(label, tuple(map(round, box))) for label, box in labels.boxes]
        for _, name, labels in entries
        if labels.is_labelled
    }


def test_boxes_are_drawn_moved_resized_renamed_deleted_and_saved_each_time(page, served):
    folder, address = served
    open_page(page, address)
    name_classes(page, "owl, tawny owl")
    select(page, "2.png")
    draw(page, (5, 5, 10, 8))
    assert saved(page, folder) == {"2.png": [("owl", (5, 5, 10, 8))]}
    page.click("#classes li:has-text('tawny owl')")  # of the next box
    assert saved(page, folder) == {"2.png": [("owl", (5, 5, 10, 8))]}
    page.click("#boxes li")
    page.click("#classes li:has-text('tawny owl')")  # of the chosen one
    assert saved(page, folder) == {"2.png": [("tawny owl", (5, 5, 10, 8))]}
    drag(page, (10, 9), (20, 14))  # inside: moves
    assert saved(page, folder) == {"2.png": [("tawny owl", (15, 10, 10, 8))]}
    drag(page, (25, 18), (30, 20))  # a corner: resizes
    assert saved(page, folder) == {"2.png": [("tawny owl", (15, 10, 15, 10))]}
    drag(page, (20, 15), (60, 15))  # out of the picture: stops at its border
    assert saved(page, folder) == {"2.png": [("tawny owl", (25, 10, 15, 10))]}
    draw(page, (2, 2, 4, 4))
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    assert saved(page, folder) == {"2.png": [("tawny owl", (25, 10, 15, 10)), ("owl", (3, 2, 4, 4))]}
    page.keyboard.press("Delete")
    page.keyboard.press("Control+z")
    assert len(saved(page, folder)["2.png"]) == 2
    page.click("#boxes li:first-child button")
    assert saved(page, folder) == {"2.png": [("owl", (3, 2, 4, 4))]}


def test_closing_loses_nothing_and_names_are_shown_as_text(page, served, browser):
    folder, address = served
    open_page(page, address)
    name_classes(page, "<b>owl</b>, ant")
    select(page, ODD)
    draw(page, (5, 5, 10, 8))
    page.close()  # at once
    again = browser.new_page()
    open_page(again, address)
    expect(again.locator("#classes .what")).to_have_text(["<b>owl</b>", "ant"])
    select(again, ODD)
    expect(again.locator("#boxes li")).to_have_count(1)
    assert saved(again, folder) == {ODD: [("<b>owl</b>", (5, 5, 10, 8))]}
    assert again.locator("#grid img[src=x], #classes b").count() == 0
    again.close()


def test_the_page_opens_by_the_whole_address_only(page, served, browser):
    folder, address = served
    other = browser.new_context().new_page()  # of someone who knows the port alone
    assert other.goto(address.split("?")[0]).status == 403
    expect(other.locator("body")).to_contain_text("whole address that the terminal shows")
    other.close()
    open_page(page, address)
    assert page.url == address.split("?")[0]
    page.reload()
    expect(page.locator("#editor image")).to_be_visible()
    page.context.clear_cookies()
    select(page, "1.png")
    page.click("#nothing")
    expect(page.locator("#notice")).to_contain_text("whole address that the terminal shows")
    assert page.request.get(address).ok  # as in another tab of this browser
    expect(page.locator("#saved")).to_have_text("all saved", timeout=10_000)  # what was refused is sent once more
    assert list(saved(page, folder)) == ["1.png"]


def test_two_pages_on_one_folder_lose_no_labels(page, served, browser):
    folder, address = served
    other = browser.new_page(viewport={"width": 1400, "height": 860})
    for one in (page, other):
        open_page(one, address)
    name_classes(page, "owl, ant")
    other.reload()
    for one in (page, other):
        select(one, "1.png")
    draw(page, (5, 5, 10, 8))
    first = saved(page, folder)
    draw(other, (20, 15, 5, 5))  # it does not know of the first box
    expect(other.locator("#notice")).to_contain_text("changed elsewhere")
    expect(other.locator("#boxes li")).to_have_count(1)
    assert saved(other, folder) == first
    other.click("#accept")  # what was refused is a proposal
    assert saved(other, folder) == {"1.png": [*first["1.png"], ("owl", (20, 15, 5, 5))]}
    other.close()


@pytest.mark.parametrize("again", ["dispatchEvent(new Event('focus'))", "document.querySelector('.thumb').click()"])
def test_an_answer_that_was_asked_for_before_a_change_does_not_undo_it(page, served, again):
    folder, address = served
    open_page(page, address)
    name_classes(page, "owl")
    select(page, "1.png")
    held = []

    def hold(route):
        if route.request.method == "GET":
            held.append((route, route.fetch()))
        else:
            route.continue_()

    page.route("**/api/labels/*", hold)
    with page.expect_request("**/api/labels/*"):
        page.evaluate(again)
    draw(page, (5, 5, 10, 8))
    first = saved(page, folder)
    assert first == {"1.png": [("owl", (5, 5, 10, 8))]}
    ((route, old),) = held
    assert old.json()["boxes"] == []
    with page.expect_response("**/api/labels/*"):
        route.fulfill(response=old)
    draw(page, (20, 15, 5, 5))  # on top of what the page takes for the present labels
    assert saved(page, folder) == {"1.png": [*first["1.png"], ("owl", (20, 15, 5, 5))]}


def test_a_picture_may_show_nothing_and_labels_wait_for_a_server_that_is_away(page, served):
    folder, address = served
    open_page(page, address)
    select(page, "1.png")
    page.click("#nothing")
    assert saved(page, folder) == {"1.png": []}
    page.click("#unlabel")
    assert saved(page, folder) == {}
    name_classes(page, "owl")
    page.route("**/api/labels/*", lambda route: route.abort())
    draw(page, (5, 5, 10, 8))
    expect(page.locator("#saved")).to_contain_text("not saved")
    page.unroute("**/api/labels/*")
    assert saved(page, folder) == {"1.png": [("owl", (5, 5, 10, 8))]}


def test_a_large_folder_asks_for_the_thumbnails_that_are_in_sight(page, served):
    folder, address = served
    picture = (folder / "1.png").read_bytes()
    for number in range(2000):
        (folder / f"more-{number:04}.png").write_bytes(picture)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    open_page(page, address)
    expect(page.locator(".thumb")).to_have_count(2003)
    page.wait_for_load_state("networkidle")
    assert 3 < sum("/thumbnail/" in url for url in asked) < 100
    before = len(asked)
    page.locator(".thumb").last.scroll_into_view_if_needed()
    page.wait_for_load_state("networkidle")
    expect(page.locator(".thumb img").last).to_have_js_property("complete", True)
    assert len(asked) < before + 100


@pytest.mark.slow
def test_the_whole_story_from_a_folder_to_an_adapter(page, tmp_path):
    data = load_dataset("glyphs13/Tools")
    folder = tmp_path / "my photos"
    folder.mkdir()
    records = data.train.records[:8]
    for record in records:
        shutil.copy(record.path, folder)
    command = [sys.executable, "-m", "glip_adapt", "studio", folder, "--trunk", "glip-nano", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=None)
    try:
        address = next(line for line in server.stdout if "Open http" in line).split()[-1]
        _label_and_adapt(page, address, data, records[:3], folder)
    finally:
        server.terminate()
        server.wait(10)
    labelled = load_dataset(folder)
    assert labelled.format == "coco"
    assert len(labelled.train) == 3
    model = load_adapter(folder / "adapter")
    assert set(model.class_names) <= set(data.classes)
    assert len(model.predict(records[5].path)) > 0
    out = tmp_path / "out"
    detect = [
        sys.executable,
        "-m",
        "glip_adapt",
        "detect",
        records[5].path,
        "--adapter",
        folder / "adapter",
        "--out",
        out,
    ]
    subprocess.run(detect, check=True, capture_output=True)
    (found,) = out.glob("*.json")
    assert json.loads(found.read_text())["detections"]


def _label_and_adapt(page, address, data, records, folder):
    open_page(page, address)
    expect(page.locator("#job")).to_be_hidden(timeout=60_000)  # the detector is loaded
    name_classes(page, ", ".join(data.classes))
    page.click("#find")
    expect(page.locator("svg .proposal").first).to_be_visible(timeout=20_000)
    page.click("#accept")
    assert len(saved(page, folder)[records[0].path.name]) > 0
    for record in records:  # correct by hand
        select(page, record.path.name)
        page.keyboard.press("Escape")
        for _ in range(page.locator("#boxes li").count()):
            page.click("#boxes li:first-child button")
        for note in data.train.annotations_of(record):
            page.locator("#classes li", has_text=data.classes[data.train.category_ids.index(note.category_id)]).click()
            draw(page, note.bbox_xywh)
    before = saved(page, folder)
    class_of = dict(zip(data.train.category_ids, data.classes, strict=True))
    truth = {
        record.path.name: [class_of[note.category_id] for note in data.train.annotations_of(record)]
        for record in records
    }
    assert {name: [label for label, _ in boxes] for name, boxes in before.items()} == truth
    page.reload()
    assert saved(page, folder) == before
    _stop_one(page, folder)
    page.select_option("#method", "prompt")
    page.fill("#minutes", "0.1")
    page.click("#adapt")
    expect(page.locator("#job-curve")).to_be_visible(timeout=TRAINING_MS)  # steps are seen as they are made
    expect(page.locator("#notice.good")).to_contain_text("adapter is saved", timeout=TRAINING_MS)
    expect(page.locator("#before-count")).to_contain_text("box", timeout=20_000)
    expect(page.locator("#before image")).to_be_visible()
    expect(page.locator("#after image")).to_be_visible()
    page.evaluate(
        "() => { const it = document.querySelector('#least'); it.value = 0; it.dispatchEvent(new Event('input')) }"
    )
    assert page.locator("#after rect.box").count() > 0
    report = page.request.get(page.url + "report/adapter")
    assert "What to expect" in report.text()
    page.fill("#count", "2")
    page.click("#suggest")
    expect(page.locator("#filters .on")).to_have_text("suggested", timeout=60_000)
    expect(page.locator(".thumb")).to_have_count(2)
    expect(page.locator("#hint")).to_contain_text("Suggested:")
    page.select_option("#by", "adapter")
    page.click("#find")
    expect(page.locator("#find")).to_be_enabled(timeout=20_000)


def _stop_one(page, folder):
    """Start to adapt, and stop."""
    expect(page.locator("#adapt")).to_be_enabled()
    page.select_option("#method", "prompt")
    page.click("#adapt")
    expect(page.locator("#job")).to_be_visible()
    page.click("#stop")
    expect(page.locator("#notice")).to_contain_text("Stopped", timeout=60_000)
    assert not (folder / "adapter" / "adapter.json").exists()
