"""What the tests of the dashboard are given: a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.web.chromium import Chromium, fail_or_skip


@pytest.fixture(scope="session")
def _chromium() -> Iterator[Chromium]:
    fail_or_skip()
    made = Chromium()
    yield made
    made.close()


@pytest.fixture
def chromium(_chromium: Chromium) -> Iterator[Chromium]:
    """A browser with an empty profile, whose page must not complain."""
    _chromium.complaints.clear()
    yield _chromium
    _chromium.leave()
    assert not _chromium.complaints
