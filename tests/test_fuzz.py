"""Mutated files of every kind through the command line: an answer or one clear error, nothing outside, no hang.

Slow: ``python -m pytest -m slow tests/test_fuzz.py``, about ten minutes on one core. Each mutation is fixed by its
number.
"""

import copy
import functools
import json
import random
import signal
import sys
import traceback
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pytest
from bench.made_up import RECORDS, store
from PIL import Image
from stand_in_hub import hub_within_reach

import glip_adapt
from glip_adapt import cli, load_trunk
from glip_adapt.cli import terminal
from glip_adapt.data.fetch import ARCHIVE_REPOSITORY
from glip_adapt.data.odinw import find_spec
from glip_adapt.engine.memory import MemoryEstimate

pytestmark = pytest.mark.slow

MUTATIONS = 500
SECONDS = 120  # of one call, on a machine that may be busy
ODD = [
    None, True, False, 0, 1, -1, 2**31, 2**63, -(10**30), 1e308, float("nan"), float("inf"), -0.0, "", " ", "x" * 5000,
    "a\0b", "\x1b]0;title\x07\x1b[31m", "../../outside", "/etc/hostname", "$x^$", "[/red]", "<script>alert(1)</script>",
    "\ud800", "\u202eabc", "nan", "1", [], {}, [[]], [None], {"id": 1}, "骰子", "file:///etc/hostname", "CON", "a\\b",
]  # fmt: skip


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the command line in a folder of its own; whatever it is given, it ends in time and touches nothing else."""
    inside = tmp_path / "outer" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    monkeypatch.setattr(terminal, "console", terminal.Console(width=120))
    monkeypatch.setattr(terminal, "stderr", terminal.Console(stderr=True, width=120))
    monkeypatch.setenv("GLIP_ADAPT_DATA", str(inside / "data"))

    def too_long(*_):
        raise AssertionError(f"no answer within {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)

    def run(what, *arguments):
        monkeypatch.setattr(sys, "argv", ["glip-adapt", *map(str, arguments)])
        signal.alarm(SECONDS)
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            pytest.fail(f"{what}: {' '.join(sys.argv)}\n{traceback.format_exc()}")
        finally:
            signal.alarm(0)
        out, err = capsys.readouterr()
        assert code in (0, 1, 2), (what, code)
        assert code == 0 or (out + err).strip(), (what, "failed without a word")
        assert "Traceback" not in out + err, (what, out, err)
        assert not set(out + err) & set("\x1b\x07\x9b\u202e"), (what, out, err)
        assert [path.name for path in inside.parent.iterdir()] == ["inside"], (what, "wrote outside")
        return code

    yield run
    signal.alarm(0)


def places(value, path=()):
    """Every place in JSON content, as a path of keys."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutated(content, dice):
    """Return JSON content with one to three of its places changed."""
    content = copy.deepcopy(content)
    for _ in range(dice.randint(1, 3)):
        path = dice.choice([place for place in places(content) if place] or [()])
        if not path:
            return copy.deepcopy(dice.choice(ODD))
        *above, last = path
        parent = functools.reduce(lambda value, key: value[key], above, content)
        what = dice.choice(("odd", "odd", "odd", "remove", "double", "nest", "swap"))
        if what == "odd":
            parent[last] = copy.deepcopy(dice.choice(ODD))
        elif what == "remove":
            del parent[last]
        elif what == "double" and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        elif what == "nest":
            parent[last] = functools.reduce(lambda inner, _: [inner], range(dice.choice((1, 3, 150))), parent[last])
        else:
            other = dice.choice([place for place in places(content) if place])
            parent[last] = copy.deepcopy(functools.reduce(lambda value, key: value[key], other, content))
    return content


def damaged(content, dice):
    """Return bytes with a few flipped, cut, inserted or repeated."""
    content = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(content) + 1)
        what = dice.choice(("flip", "flip", "cut", "insert", "repeat", "zero"))
        if what == "flip" and at < len(content):
            content[at] ^= 1 << dice.randrange(8)
        elif what == "cut":
            del content[at : at + dice.choice((1, 10, 10**9))]
        elif what == "insert":
            content[at:at] = dice.randbytes(dice.choice((1, 4, 100)))
        elif what == "repeat":
            content[at:at] = content[max(0, at - 50) : at] * dice.choice((1, 20))
        else:
            content[at : at + 4] = bytes(4)
    return bytes(content)


def mutate_json(content, dice):
    """Return the bytes of a changed JSON file, most of which can still be parsed."""
    if dice.random() < 0.2:
        return damaged(json.dumps(content).encode(), dice)
    if dice.random() < 0.02:
        return dice.choice((b"[" * 200_000, b'{"a":' * 100_000, b"", b"\xff\xfe{}", b"null", b"1e999"))
    return json.dumps(mutated(content, dice)).encode("utf-8", "surrogatepass")


@pytest.fixture
def quick_trunk(monkeypatch, tiny_trunk):
    """A tiny trunk that is loaded once."""
    monkeypatch.setattr(glip_adapt, "load_trunk", lambda *a, **k: tiny_trunk, raising=False)


FORMATS = ("png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "jp2", "pcx", "tga", "dib", "avif")


def test_pictures(call, quick_trunk, tmp_path):
    sources = []
    for number, suffix in enumerate(FORMATS):
        path = tmp_path / f"source.{suffix}"
        image = Image.effect_noise((48, 40), 60).convert(("RGB", "L")[number % 2])
        exif = Image.Exif()
        exif[274] = number % 9
        image.save(path, **({"exif": exif} if suffix in ("jpg", "png", "webp", "avif") else {}))
        sources.append((suffix, path.read_bytes()))
        path.unlink()
    for number in range(MUTATIONS):
        dice = random.Random(number)
        suffix, content = dice.choice(sources)
        path = tmp_path / "outer" / "inside" / f"x.{dice.choice((suffix, 'jpg', 'png'))}"
        path.write_bytes(damaged(content, dice))
        document = {
            "images": [{"id": 1, "file_name": path.name}],
            "annotations": [],
            "categories": [{"id": 1, "name": "box"}],
        }
        (path.parent / "labels.json").write_text(json.dumps(document))
        call(number, "detect", path, "--classes", "red box", "--out", "found", "--short-side", "32")
        call(number, "data", "check", "labels.json")
        path.unlink()


def coco(folder):
    """A sound COCO file of three pictures in a split folder."""
    (folder / "test").mkdir(parents=True)
    images, boxes = [], []
    for n in range(3):
        Image.effect_noise((40, 30), 60).convert("RGB").save(folder / "test" / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "width": 40, "height": 30})
        boxes.append({"id": n, "image_id": n, "category_id": n % 2, "bbox": [3, 4, 20, 15], "area": 300, "iscrowd": 0})
        boxes[-1]["segmentation"] = [[3, 4, 23, 4, 23, 19]]
    categories = [{"id": n, "name": f"red box {n}", "supercategory": "none"} for n in range(3)]
    return {"images": images, "annotations": boxes, "categories": categories}


def test_coco_files(call, quick_trunk, tmp_path):
    folder = tmp_path / "outer" / "inside" / "set"
    content, file = coco(folder), folder / "test" / "_annotations.coco.json"
    found = [{"image_id": n, "category_id": n % 2, "bbox": [3, 4, 20, 15], "score": 0.5} for n in range(3)]
    for number in range(MUTATIONS):
        dice = random.Random(number)
        file.write_bytes(mutate_json(content, dice))
        (folder.parent / "found.json").write_bytes(
            mutate_json(found, dice) if number % 2 else json.dumps(found).encode()
        )
        ids = dice.choice(("renumbered", "as_in_file"))
        call(number, "data", "check", folder)
        call(number, "data", "sample", file, "--shots", 1, "-o", "sample.json")
        call(number, "score", "found.json", file, "--annotation-ids", ids)
        if number % 5 == 0:
            call(number, "eval", folder, "--short-side", "32")


PLAN = {
    "trunks": ["glip-nano"],
    "datasets": ["glyphs13/Dice"],
    "methods": ["prompt", "lora"],
    "shots": [0, 1],
    "seeds": [3],
    "fit": {"max_steps": 2, "short_sides": [64], "lora": {"learning_rate": 0.1}},
    "settings": {"lora": {"rank": 2}},
    "protocol": {"selection": "last", "retention": ["glyphs13/Dice"]},
}


def toml(value):
    """Return a value as TOML, inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value if value is not None else "nothing").replace("NaN", "nan").replace("Infinity", "inf")


def mutate_plan(dice):
    if dice.random() < 0.03:
        return dice.choice((b"a = " + b"[" * 100_000, b".".join([b"a"] * 100_000) + b" = 1", b"\xff", b"[[[[", b""))
    content = mutated(PLAN, dice)
    text = (
        "\n".join(f"{json.dumps(str(key))} = {toml(value)}" for key, value in content.items())
        if isinstance(content, dict)
        else toml(content)
    )
    encoded = text.encode("utf-8", "surrogatepass")
    return damaged(encoded, dice) if dice.random() < 0.2 else encoded


@pytest.fixture(scope="module")
def nano():
    return load_trunk("glip-nano")


def test_plans(call, nano, monkeypatch, tmp_path):
    monkeypatch.setattr("glip_adapt.trunks.catalogue.load_trunk", lambda name, **settings: nano)
    monkeypatch.setattr(
        "glip_adapt.engine.memory.estimate_memory",
        lambda *a, **k: MemoryEstimate(weights=1, trained=1, activations=1, features=1),
    )
    for number in range(MUTATIONS):
        (tmp_path / "outer" / "inside" / "plan.toml").write_bytes(mutate_plan(random.Random(number)))
        call(number, "bench", "plan.toml", "--out", "runs", "--dry-run")


def test_records(call, nano, monkeypatch, tmp_path):
    monkeypatch.setattr("glip_adapt.trunks.catalogue.load_trunk", lambda name, **settings: nano)
    monkeypatch.setattr(
        "glip_adapt.engine.memory.estimate_memory",
        lambda *a, **k: MemoryEstimate(weights=1, trained=1, activations=1, features=1),
    )
    inside = tmp_path / "outer" / "inside"
    (inside / "plan.toml").write_text("\n".join(f"{key} = {toml(value)}" for key, value in PLAN.items()))
    store(inside / "runs", RECORDS)
    files = sorted((inside / "runs").glob("*/record.json"))
    sound = {file: json.loads(file.read_text()) for file in files}
    for number in range(MUTATIONS):
        dice = random.Random(number)
        file = dice.choice(files)
        content = copy.deepcopy(sound[file])
        content["config"] = {"fit": {"seed": 3}, "protocol": {"prompts": "names"}, "settings": {}, "predict": {}}
        file.write_bytes(mutate_json(content, dice))
        call(number, "bench", "plan.toml", "--out", "runs", "--dry-run")
        if number % 20 == 0:  # drawing takes seconds
            call(number, "report", "runs")
        file.write_text(json.dumps(sound[file]))


NAMES = [
    "../outside.txt", "/outside.txt", "Raccoon/../../outside.txt", "C:\\outside.txt", "Raccoon\\..\\..\\outside.txt",
    "Raccoon/" + "x" * 300, "Raccoon/" + "d/" * 2000 + "x", "Raccoon/CON", "Raccoon/a\0b", "", "Raccoon", "Raccoon//x",
    "__MACOSX/x", "Raccoon/Raccoon.v2-raw.coco/train/annotations_without_background.json/x", "Raccoon/\x1b[31m", "~/x",
]  # fmt: skip


def mutate_archive(sound, dice, path):
    """Return a zip file with hostile entries, links, lying sizes, or damaged bytes."""
    if dice.random() < 0.5:
        return damaged(sound, dice)
    path.write_bytes(sound)
    with ZipFile(path, "a", ZIP_DEFLATED) as archive:
        for _ in range(dice.randint(1, 3)):
            entry = ZipInfo(dice.choice(NAMES) or "x")
            entry.external_attr = dice.choice((0, 0o120777, 0o020666, 0o100644, 0o040755)) << 16
            entry.compress_type = dice.choice((0, ZIP_DEFLATED))
            content = dice.choice((b"x", b"/etc/hostname", bytes(10**6), b"../../outside.txt"))
            archive.writestr(entry, content)
    content = path.read_bytes()
    path.unlink()
    return damaged(content, dice) if dice.random() < 0.2 else content


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives(call, monkeypatch, tmp_path):
    inside = tmp_path / "outer" / "inside"
    spec = find_spec("Raccoon")
    with ZipFile(tmp_path / "sound.zip", "w") as archive:
        for split in spec.splits.values():
            content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "raccoon"}]}
            archive.writestr(split.ann_file.removeprefix("odinw/"), json.dumps(content))
            archive.writestr(split.img_dir.removeprefix("odinw/") + "/a.png", b"x" * 100)
    sound = (tmp_path / "sound.zip").read_bytes()
    with hub_within_reach(monkeypatch, tmp_path / "cache") as hub:
        for number in range(MUTATIONS):
            content = mutate_archive(sound, random.Random(number), tmp_path / "made.zip")
            hub.put(ARCHIVE_REPOSITORY, "odinw_35/Raccoon.zip", content)
            root = inside / str(number)
            code = call(number, "data", "fetch", "Raccoon", "--root", root)
            whole = (root / "Raccoon").is_dir()
            assert whole == (code == 0), (number, code)
            assert not list(tmp_path.rglob("outside.txt")), number
