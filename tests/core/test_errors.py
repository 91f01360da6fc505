"""The library's own errors can be caught together, and each also as the built-in error that fits."""

import pytest

from glip_adapt.adapters.storage import AdapterMismatchError
from glip_adapt.core.downloads import DamagedDownloadError, DownloadError
from glip_adapt.core.errors import GlipAdaptError, UnknownNameError
from glip_adapt.data.archive import UnsafeArchiveError
from glip_adapt.data.fetch import FetchError
from glip_adapt.engine.optimise import NonFiniteLossError
from glip_adapt.share.hub import HubError
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.tokenizer import CaptionTooLongError

KINDS = {
    AdapterMismatchError: ValueError,
    CaptionTooLongError: ValueError,
    CheckpointError: ValueError,
    DamagedDownloadError: RuntimeError,
    DownloadError: RuntimeError,
    FetchError: RuntimeError,
    HubError: RuntimeError,
    NonFiniteLossError: ArithmeticError,
    UnknownNameError: ValueError,
    UnsafeArchiveError: ValueError,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_of_the_library_is_caught_by_its_base_and_by_a_built_in_error(kind):
    with pytest.raises(GlipAdaptError, match="what happened") as caught:
        raise kind("what happened")
    assert isinstance(caught.value, KINDS[kind])
