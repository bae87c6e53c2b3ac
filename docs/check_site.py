"""Looks at every page of the built site in a headless Chromium, as a phone and a desktop show it.

    make docs-check                          # builds the site and looks at all of it
    python docs/check_site.py faq/ api/      # looks at some pages; pictures go to site-pictures/

It needs `pip install playwright` and a Chromium on PATH (or in CHROMIUM). A page fails if it logs
an error, asks another host for anything, or is wider than the window. Every page is drawn 390 and
1280 pixels wide, light and dark.
"""

import argparse
import functools
import http.server
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any

SITE = pathlib.Path(__file__).resolve().parents[1] / "site"
WIDTHS, HEIGHT = (390, 1280), 900
SCHEMES = ("light", "dark")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the server's log out of the report."""


def serve(folder: pathlib.Path) -> str:
    """Serves a folder on a free port until the process ends; returns its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def faults(page: Any, address: str, name: str, picture: pathlib.Path) -> Iterator[str]:
    """Opens a page, draws it, and yields a sentence for each thing that is wrong."""
    messages: list[str] = []
    page.on("console", lambda entry: entry.type == "error" and messages.append(entry.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on(
        "request",
        lambda request: (
            request.url.startswith((address, "data:", "blob:"))
            or messages.append(f"asks for {request.url}")
        ),
    )
    page.goto(address + name, wait_until="networkidle")
    width = page.evaluate("document.scrollingElement.scrollWidth")
    page.screenshot(path=picture, full_page=True)
    yield from messages
    if width > page.viewport_size["width"]:
        yield f"is {width} pixels wide, expected at most {page.viewport_size['width']}"


def main() -> None:
    """Checks all pages; exits with 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", default="site-pictures", help="a folder for what was seen")
    parser.add_argument("pages", nargs="*", help="as faq/ (default: all)")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright  # imported late: --help does without it

    chromium = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    )
    if chromium is None or not (SITE / "index.html").exists():
        sys.exit("this needs a Chromium on PATH (or in CHROMIUM) and a built site: make docs")
    pictures = pathlib.Path(options.pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    address, wrong = serve(SITE), 0
    names = options.pages or sorted(
        str(path.parent.relative_to(SITE)).removeprefix(".") + "/"
        for path in SITE.rglob("index.html")
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in WIDTHS:
            for scheme in SCHEMES:
                context = browser.new_context(
                    viewport={"width": width, "height": HEIGHT}, color_scheme=scheme
                )
                for name in names:
                    path = name.strip("/")
                    picture = pictures / f"{path or 'home'}_{width}_{scheme}.png"
                    page = context.new_page()
                    for fault in faults(page, address, f"{path}/" if path else "", picture):
                        wrong += 1
                        print(f"{path or 'home'} ({width} px, {scheme}) {fault}")
                    page.close()
                context.close()
        browser.close()
    print(f"{len(names)} pages, {wrong} faults, pictures in {pictures}/")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
