"""What a service keeps, and gives back, over many requests."""

import asyncio
import gc
import random
from collections import Counter

import pytest

from glip_adapt.core.settings import ViewConfig
from glip_adapt.engine.adapted import attach
from glip_adapt.share.serving import service as service_file
from glip_adapt.share.serving.service import Service, Task

FULL_CACHE = 100_000  # bytes: some images
AT_ONCE = 5


@pytest.fixture
def service(tiny_trunk, monkeypatch):
    monkeypatch.setattr(service_file, "CACHE_BYTES", FULL_CACHE)
    model = attach(tiny_trunk, "prompt", classes=("red box", "blue box"))
    service = Service({"boxes": Task(name="boxes", model=model, view=ViewConfig(short_side=64), version="1")})
    yield service
    service.close()


def ask(service, images):
    """Have small pictures, none of which came before, looked at: AT_ONCE at a time."""
    draws = random.Random(service._cache.statistics.misses)
    contents = [b"P6 64 64 255\n" + draws.randbytes(3 * 64 * 64) for _ in range(images)]

    async def ask_all():
        for first in range(0, images, AT_ONCE):
            some = contents[first : first + AT_ONCE]
            await asyncio.gather(*(service.detect(service.task("boxes"), content) for content in some))

    asyncio.run(ask_all())


def kept_objects():
    gc.collect()
    return Counter(type(one).__name__ for one in gc.get_objects())


def test_requests_leave_no_objects_behind(service):
    ask(service, 100)  # the cache is full, and what the first calls set up is there
    before = kept_objects()
    ask(service, 100)
    after = kept_objects()
    assert service._cache.statistics.misses == 200
    assert {name: more for name in after if (more := after[name] - before[name]) >= 100} == {}  # one of each request


def test_memory_is_given_back_once_in_a_number_of_images(service, monkeypatch):
    given_back_at = []
    monkeypatch.setattr(service_file, "GIVE_BACK_EVERY", 10)
    monkeypatch.setattr(service_file, "give_back", lambda: given_back_at.append(service._cache.statistics.misses))
    ask(service, 35)
    assert len(given_back_at) in (2, 3)  # batches are of any size up to AT_ONCE
    assert given_back_at[0] in range(10, 10 + AT_ONCE)
