"""Take the screenshot of the search page for README.md and the documentation: nbs/images/search-page.png.

Needs Chromium, and the trained demo in runs/notebooks (any of the notebooks trains it): `make screenshot`.
"""
import os
import shutil
import socket
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PORT = 8899


def take_screenshot():
    "The page on the demo catalogue, as PNG."
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=dict(width=1280, height=860))
        page.goto(f"http://127.0.0.1:{PORT}", timeout=120000)
        page.wait_for_selector(".cf-card", timeout=120000)
        page.get_by_placeholder("What are you looking for?").fill("blue jeans")
        page.wait_for_selector('.cf-grid[data-query="blue jeans"]')
        page.locator(".cf-card").nth(1).hover()
        page.wait_for_timeout(2000)
        data = page.locator(".cf-page").screenshot()
        browser.close()
    return data


def main():
    voila = [Path(sys.executable).parent / "voila", "app.ipynb", "--no-browser", f"--port={PORT}"]
    env = os.environ | {"CLIP_FT_ROOT": str(ROOT / "runs" / "notebooks")}
    server = subprocess.Popen(voila, cwd=ROOT / "nbs", env=env)
    try:
        while socket.socket().connect_ex(("127.0.0.1", PORT)):
            time.sleep(.2)
        image = Image.open(BytesIO(take_screenshot())).convert("RGB")
    finally:
        server.terminate()
        server.wait()
    image = image.crop((0, 0, image.width, 760)).quantize(128, dither=Image.Dither.NONE)
    image.save(ROOT / "nbs" / "images" / "search-page.png", optimize=True)


if __name__ == "__main__":
    main()
