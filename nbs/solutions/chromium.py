"""Pages in a browser, for chapter 28: Chromium or Chrome, steered by `playwright`.

Where one of the two is missing, `browser` and what `with_browser` returns are None."""

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from IPython.display import Image

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
browser = next(filter(None, map(shutil.which, PROGRAMS)), None) if sync_playwright else None
thread = ThreadPoolExecutor(1)  # the browser's own: a notebook's thread has a loop already


@cache
def player() -> tuple:
    "What steers the browser, and the browser, which is opened once."
    steering = sync_playwright().start()
    return steering, steering.chromium.launch(executable_path=browser, args=["--no-sandbox"])


def with_browser(html: str, work: Callable[[Any, str], Any]) -> Any:
    "What `work` makes of the browser and the address of a page; None where there is no browser."
    if not browser:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(html, encoding="utf-8")
        return thread.submit(lambda: work(player()[1], path.as_uri())).result()


def photograph(html: str, first: str, last: str) -> Image | str:
    "A picture of a page from the top of one element to the bottom of another."

    def work(chrome: Any, address: str) -> bytes:
        page = chrome.new_page(viewport={"width": 680, "height": 900}, reduced_motion="reduce")
        page.goto(address)
        boxes = [page.locator(part).first.bounding_box() for part in (first, last)]
        top, bottom = boxes[0]["y"], boxes[1]["y"] + boxes[1]["height"] + 6
        clip = {"x": 0, "y": top, "width": 680, "height": bottom - top}
        return page.screenshot(type="jpeg", quality=25, full_page=True, clip=clip)

    taken = with_browser(html, work)
    return Image(taken, format="jpeg") if taken else "no browser (or no playwright) here"


def close_browser() -> None:
    "Close the browser, if there is one."
    if browser:
        steering, chrome = player()
        thread.submit(lambda: (chrome.close(), steering.stop())).result()
