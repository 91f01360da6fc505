"""The web application of the studio: the page, pictures, labels, jobs. ``create_app`` puts its parts together.

- ``labels.py``: labels of a folder, saved in its own label files
- ``pictures.py``: pictures for the screen
- ``work.py``: what needs a detector; it is loaded in the background, so that the page opens at once
- ``jobs.py``: progress, and stopping
- ``guard.py``: who may ask
- ``page.html``, ``page.css`` and the scripts: the page; it loads nothing from elsewhere
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from glip_adapt.core.errors import GlipAdaptError
from glip_adapt.share.studio.adapters import PAGE_FILE, adapters_in
from glip_adapt.share.studio.guard import Guard
from glip_adapt.share.studio.jobs import BusyError, Job, Jobs
from glip_adapt.share.studio.labels import Labels, LabelStore, StaleError
from glip_adapt.share.studio.pictures import picture, thumbnail

if TYPE_CHECKING:
    from glip_adapt.share.studio.work import Work

METHODS = ("auto", "exemplars", "prompt", "lora", "linear_probe", "full")
"""Methods that the page offers."""
SCRIPTS = ("page.js", "labelling.js", "state.js", "editor.js")
"""Files of the page's program."""

_FILES = {"/": "page.html"} | {f"/{name}": name for name in ("page.css", *SCRIPTS)}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
_MOST_SUGGESTED = 100


class Studio:
    """What the routes work with.

    Attributes:
        store: pictures and labels.
        jobs: what runs in the background.
        work: the detector at work; None until it is loaded.
    """

    def __init__(self, store: LabelStore) -> None:
        self.store, self.jobs = store, Jobs()
        self.work: Work | None = None

    def load(self, open_trunk: Callable[[], Any]) -> None:
        """Load a trunk in the background."""

        def load(job: Job) -> str:
            job.tell("loading the detector; the terminal shows a download")
            trunk = open_trunk()
            from glip_adapt.share.studio.work import Work  # imports torch, which takes seconds

            self.work = Work(self.store, trunk)
            return str(trunk.name)

        self.jobs.start("load", load)

    def working(self) -> Work:
        """Return the detector at work; BusyError while a job has it, ValueError if it could not be loaded."""
        self.jobs.check_idle()
        if self.work is None:
            raise ValueError("No detector is loaded; the terminal says why. Boxes can be drawn by hand.")
        return self.work


def create_app(studio: Studio, hosts: Iterable[str], token: str | None) -> Starlette:
    """Return the application.

    Args:
        studio: what it works with.
        hosts: names by which it may be asked for, see ``hosts_of``.
        token: that requests must bring, see ``Guard``.
    """
    reads = {
        "/api/folder": _folder,
        "/api/labels/{key}": _labels,
        "/api/job": _job,
        "/picture/{key}": _picture,
        "/thumbnail/{key}": _thumbnail,
        "/report/{adapter}": _report,
    }
    writes = {
        "/api/labels/{key}": _save,
        "/api/classes": _type_classes,
        "/api/find/{key}": _find,
        "/api/compare/{key}": _compare,
        "/api/adapt": _adapt,
        "/api/suggest": _suggest,
        "/api/stop": _stop,
    }
    routes = [Route(path, _answer(studio, function), methods=["GET"]) for path, function in reads.items()]
    routes += [Route(path, _answer(studio, function), methods=["POST"]) for path, function in writes.items()]
    routes += [Route(path, _file(name), methods=["GET"]) for path, name in _FILES.items()]
    return Starlette(routes=routes, middleware=[Middleware(Guard, hosts=hosts, token=token)])


def _answer(studio: Studio, function: Callable[[Studio, Mapping[str, Any]], Any]) -> Callable[[Request], Any]:
    """Return an endpoint that calls a function with the fields of the address and of the body, in a thread."""

    async def endpoint(request: Request) -> Response:
        fields: dict[str, Any] = {}
        try:
            if request.method == "POST":
                fields = await request.json()
                if not isinstance(fields, dict):
                    raise ValueError("Expected a JSON object.")
            result = await run_in_threadpool(function, studio, fields | request.path_params)
        except StaleError as error:
            return JSONResponse({"error": str(error), "labels": _labels_json(studio, error.labels)}, 409)
        except BusyError as error:
            return JSONResponse({"error": str(error)}, 503)
        except KeyError as error:
            return JSONResponse({"error": f"There is no {error}. Load the page again."}, 404)
        except (GlipAdaptError, ValueError, TypeError, OSError, RuntimeError) as error:
            return JSONResponse({"error": str(error)}, 422)
        return result if isinstance(result, Response) else JSONResponse(result, headers={"Cache-Control": "no-store"})

    return endpoint


def _file(name: str) -> Callable[[Request], Any]:
    path = Path(__file__).with_name(name)

    async def endpoint(request: Request) -> Response:
        kind = f"{_TYPES[path.suffix]}; charset=utf-8"
        return Response(path.read_bytes(), media_type=kind, headers={"Cache-Control": "no-cache"})

    return endpoint


def _folder(studio: Studio, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that the page shows of the folder."""
    store = studio.store
    store.refresh()
    pictures = [
        {"id": key, "name": name, "labelled": labels.is_labelled, "boxes": len(labels.boxes)}
        for key, name, labels in store.overview()
    ]
    adapters = [
        {"name": name, "report": (store.folder / name / PAGE_FILE).is_file(), "path": str(store.folder / name)}
        for name in adapters_in(store.folder)
    ]
    return {
        "folder": str(store.folder).encode(errors="replace").decode(),
        "format": store.format,
        "classes": store.classes,
        "used": store.used_classes,
        "pictures": pictures,
        "adapters": adapters,
        "methods": METHODS,
        "trunk": studio.work.trunk.name if studio.work else None,
    }


def _labels(studio: Studio, fields: Mapping[str, Any]) -> dict[str, Any]:
    labels = studio.store.labels_of(fields["key"])
    height, width = studio.store.size_of(fields["key"])
    return _labels_json(studio, labels) | {"width": width, "height": height}


def _save(studio: Studio, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Save the boxes of a picture: ``{"boxes": [{"name", "box"}] or null, "revision"}``."""
    boxes = fields["boxes"]
    if boxes is not None:
        boxes = [(entry["name"], _box(entry["box"])) for entry in boxes]
    return _labels_json(studio, studio.store.save(fields["key"], boxes, fields["revision"]))


def _box(stated: Any) -> tuple[float, float, float, float]:
    x, y, w, h = map(float, stated)
    return x, y, w, h


def _labels_json(studio: Studio, labels: Labels) -> dict[str, Any]:
    boxes = [{"name": name, "box": box} for name, box in labels.boxes]
    return {"boxes": boxes, "labelled": labels.is_labelled, "revision": labels.revision}


def _type_classes(studio: Studio, fields: Mapping[str, Any]) -> dict[str, Any]:
    studio.store.type_classes(_names(fields))
    return {"classes": studio.store.classes}


def _names(fields: Mapping[str, Any]) -> list[str]:
    names = fields["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("Expected a list of names.")
    return list(dict.fromkeys(names))


def _job(studio: Studio, fields: Mapping[str, Any]) -> dict[str, Any]:
    job = studio.jobs.current
    return {"job": job.to_json() if job else None}


def _picture(studio: Studio, fields: Mapping[str, Any]) -> Response:
    return _image(studio, fields["key"], picture)


def _thumbnail(studio: Studio, fields: Mapping[str, Any]) -> Response:
    return _image(studio, fields["key"], thumbnail)


def _image(studio: Studio, key: str, encoded: Callable[..., tuple[bytes, str]]) -> Response:
    path = studio.store.path_of(key)
    content, kind = encoded(path, studio.store.declared_size(key), path.stat().st_mtime_ns)
    return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=60"})


def _report(studio: Studio, fields: Mapping[str, Any]) -> Response:
    """Return the page of an adapter, which may load nothing and run nothing."""
    if (name := fields["adapter"]) not in adapters_in(studio.store.folder):
        raise KeyError(name)
    path = studio.store.folder / name / PAGE_FILE
    if not path.resolve().is_relative_to(studio.store.folder):
        return PlainTextResponse("That page lies outside of the folder.", 403)
    return Response(path.read_bytes(), media_type="text/html", headers={"Content-Security-Policy": _REPORT_POLICY})


def _find(studio: Studio, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"found": studio.working().find(fields["key"], _names(fields), str(fields["adapter"]))}


def _compare(studio: Studio, fields: Mapping[str, Any]) -> dict[str, Any]:
    return studio.working().compare(fields["key"], str(fields["adapter"]))


def _adapt(studio: Studio, fields: Mapping[str, Any]) -> dict[str, Any]:
    method, minutes, work = fields["method"], fields["minutes"], studio.working()
    if method not in METHODS:
        raise ValueError(f"Expected one of {', '.join(METHODS)} as method, got {method!r}.")
    if minutes is not None and not 0 < float(minutes) < 10_000:
        raise ValueError(f"Expected a number of minutes above 0, got {minutes!r}.")
    limit = None if minutes is None else float(minutes)
    return {"job": studio.jobs.start("adapt", lambda job: work.adapt(job, method, limit)).to_json()}


def _suggest(studio: Studio, fields: Mapping[str, Any]) -> dict[str, Any]:
    work, names, adapter = studio.working(), _names(fields), str(fields["adapter"])
    count = min(max(int(fields["count"]), 1), _MOST_SUGGESTED)
    return {"job": studio.jobs.start("suggest", lambda job: work.suggest(job, count, names, adapter)).to_json()}


def _stop(studio: Studio, fields: Mapping[str, Any]) -> dict[str, Any]:
    studio.jobs.stop()
    return _job(studio, fields)
