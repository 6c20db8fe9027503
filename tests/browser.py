"""Debian's Chromium, headless, as a person's browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.infra.debian import need_chromium

PAGE_TIMEOUT_S = 60
BROWSER_FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "window-size=1600,1000",
)


@contextmanager
def browser(folder: Path) -> Iterator[webdriver.Chrome]:
    """Opens a browser, or skips where there is none."""
    chromium, driver = need_chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in BROWSER_FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    page = webdriver.Chrome(options, Service(driver))
    try:
        yield page
    finally:
        page.quit()


def wait_for_text(page: webdriver.Chrome, *parts: str, timeout_s: float = PAGE_TIMEOUT_S) -> str:
    """Waits until a page shows all of these; gives its whole text."""
    deadline = time.monotonic() + timeout_s
    text = ""
    while not all(part in text for part in parts):
        assert time.monotonic() < deadline, text
        time.sleep(0.3)
        text = page.execute_script("return document.body.innerText")
    return text
