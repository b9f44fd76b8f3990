"""A headless Chromium for the tests that open a page: Debian's, or whichever is on the PATH."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """The browser, started with these arguments, and closed at the end. The test fails if no browser is installed."""
    from playwright.sync_api import sync_playwright  # here, for the tests without a browser do without

    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.fail(f"none of {', '.join(CHROMIUM)} is on the PATH: apt-get install chromium", pytrace=False)
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*arguments, *root])
        yield browser
        browser.close()
