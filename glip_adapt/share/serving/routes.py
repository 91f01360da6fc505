"""The application: ``create_app`` puts service, guard and routes together.

- ``POST /detect``: an image, ``task`` and ``threshold`` by query or form
- ``GET /tasks``, ``GET /health``, ``GET /metrics``
- ``POST /predict``, ``POST /setup``: for Label Studio; below ``/tasks/NAME`` for one of several tasks

``service.py`` computes, ``uploads.py`` reads requests, ``guard.py`` says who may ask. Starlette rather than FastAPI: a
request is bytes and two words, for which a model of fields and a page of documentation, loaded from elsewhere, are no
help; and the studio has it already.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from glip_adapt.share.serving import label_studio
from glip_adapt.share.serving.guard import ServiceGuard
from glip_adapt.share.serving.metrics import CONTENT_TYPE
from glip_adapt.share.serving.references import References
from glip_adapt.share.serving.service import Service, Task
from glip_adapt.share.serving.uploads import RefusedError, read_body, read_upload

AT_A_TIME = 8  # images of one request of Label Studio

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    service: Service, hosts: Iterable[str], token: str = "", references: References | None = None
) -> Starlette:
    """Return the application.

    Args:
        service: its tasks.
        hosts: names by which it may be asked for where there is no token, see ``hosts_of``.
        token: that requests need; none if empty.
        references: where images of Label Studio may come from; by default requests bring them.
    """
    routes = _Routes(service, references or References(most_bytes=service.limits.most_bytes))
    table: dict[tuple[str, str], Endpoint] = {
        ("POST", "/detect"): routes.detect,
        ("GET", "/tasks"): routes.tasks,
        ("GET", "/health"): routes.health,
        ("GET", "/metrics"): routes.metrics,
        ("POST", "/predict"): routes.predict,
        ("POST", "/setup"): routes.setup,
        ("POST", "/tasks/{task}/predict"): routes.predict,
        ("POST", "/tasks/{task}/setup"): routes.setup,
        ("GET", "/tasks/{task}/health"): routes.health,
    }
    listed = [Route(path, _answered(service, path, entry), methods=[kind]) for (kind, path), entry in table.items()]
    return Starlette(
        routes=listed,
        middleware=[Middleware(ServiceGuard, hosts=hosts, token=token)],
        exception_handlers={HTTPException: _no_route},
    )


def _answered(service: Service, path: str, endpoint: Endpoint) -> Endpoint:
    """Return an endpoint whose refusals and failures are JSON, and which is counted."""

    async def counted(request: Request) -> Response:
        started, status = time.perf_counter(), 500
        try:
            response = await endpoint(request)
            status = response.status_code
        except RefusedError as error:
            status = error.status
            response = JSONResponse({"error": str(error)}, status, error.headers)
        except Exception:
            logger.exception("%s failed", path)
            response = JSONResponse({"error": "The detector failed; the log of the service says why."}, status)
        service.metrics.requests.labels(path, status).inc()
        service.metrics.request_seconds.labels(path).observe(time.perf_counter() - started)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    return counted


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"There is no {request.method} {request.url.path[:100]} here. See POST /detect, GET /tasks, GET /health."
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


class _Routes:
    """The endpoints."""

    def __init__(self, service: Service, references: References) -> None:
        self._service, self._references = service, references

    async def detect(self, request: Request) -> Response:
        """Return the boxes in the image of a request."""
        with self._service.admitted():
            upload = await read_upload(request, self._service.limits)
            task = self._service.task(upload.fields.get("task"))
            threshold = _threshold(upload.fields.get("threshold"))
            seen = await self._service.detect(task, upload.image)
            return JSONResponse(seen.to_json(threshold))

    async def tasks(self, request: Request) -> Response:
        """Return what each task finds."""
        return JSONResponse([task.to_json() for task in self._service.tasks.values()])

    async def health(self, request: Request) -> Response:
        """Return that the service is there; Label Studio looks for these words."""
        return JSONResponse({"status": "UP", "model_class": "glip_adapt"})

    async def metrics(self, request: Request) -> Response:
        """Return the numbers of the service."""
        return Response(self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def setup(self, request: Request) -> Response:
        """Return the version of a task, after a look at the labelling configuration."""
        with self._service.admitted():
            task, fields = self._task(request), await self._json(request)
            if fields.get("schema"):
                label_studio.read_config(fields["schema"]).check(task.model.class_names)
            return JSONResponse({"model_version": task.version})

    async def predict(self, request: Request) -> Response:
        """Return a prediction for each task of Label Studio; images that cannot be read have none."""
        with self._service.admitted():
            task, fields = self._task(request), await self._json(request)
            entries = fields.get("tasks")
            if not isinstance(entries, list):
                raise RefusedError(422, "Expected a list of tasks.")
            control = label_studio.read_config(fields.get("label_config"))
            control.check(task.model.class_names)
            results: list[dict[str, Any] | RefusedError] = []
            for first in range(0, len(entries), AT_A_TIME):
                some = entries[first : first + AT_A_TIME]
                results += await asyncio.gather(*(self._predict_one(task, control, entry) for entry in some))
            return JSONResponse({"results": _told(results, task.version)})

    async def _predict_one(
        self, task: Task, control: label_studio.Control, entry: Any
    ) -> dict[str, Any] | RefusedError:
        try:
            reference = label_studio.reference_of(entry, control)
            content = await self._service.aside(self._references.read, reference)
            return label_studio.prediction(await self._service.detect(task, content), control)
        except RefusedError as error:
            return error

    def _task(self, request: Request) -> Task:
        return self._service.task(request.path_params.get("task", request.query_params.get("task")))

    async def _json(self, request: Request) -> dict[str, Any]:
        """Return the JSON object of a request; RefusedError, 400, if it is none."""
        body = await read_body(request, self._service.limits)
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise RefusedError(400, "Expected a JSON object.")
        return fields


def _told(results: list[dict[str, Any] | RefusedError], version: str) -> list[dict[str, Any]]:
    """Return predictions, and none for images that cannot be read; the first reason is raised if that are all."""
    refused = [result for result in results if isinstance(result, RefusedError)]
    if refused and len(refused) == len(results):
        raise refused[0]
    for error in refused:
        logger.warning("An image of Label Studio is left out: %s", error)
    return [label_studio.nothing(version) if isinstance(result, RefusedError) else result for result in results]


def _threshold(stated: str | None) -> float | None:
    """Return the threshold of a request.

    Raises:
        RefusedError: 422 if it is not a number from 0 to 1.
    """
    if stated is None:
        return None
    try:
        value = float(stated)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise RefusedError(422, f"Expected a threshold from 0 to 1, got {stated[:50]!r}.")
    return value
