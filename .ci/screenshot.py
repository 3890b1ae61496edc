"""Take the screenshots that README.md and the documentation show: nbs/images/search-page.png and checkup-report.png.

Needs Chromium, and a trained demo in runs/notebooks, which running any notebook creates: `make screenshot`.
"""
import os
import shutil
import socket
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PORT = 8899


def start_server():
    "Start Voila with the search page of the demo; returns when it accepts connections."
    command = [Path(sys.executable).parent / "voila", "app.ipynb", "--no-browser", f"--port={PORT}"]
    environment = os.environ | {"CLIP_FT_ROOT": str(ROOT / "runs" / "notebooks")}
    server = subprocess.Popen(command, cwd=ROOT / "nbs", env=environment)
    while socket.socket().connect_ex(("127.0.0.1", PORT)):
        if server.poll() is not None:
            sys.exit("Voila did not start")
        time.sleep(0.2)
    return server


def search(page):
    "Search for blue jeans and hover over a card; returns a PNG of the page."
    page.goto(f"http://127.0.0.1:{PORT}", timeout=120_000)
    page.wait_for_selector(".cf-card", timeout=120_000)
    page.get_by_placeholder("What are you looking for?").fill("blue jeans")
    page.wait_for_selector('.cf-grid[data-query="blue jeans"]')
    page.locator(".cf-card").nth(1).hover()
    page.wait_for_timeout(2000)
    return page.locator(".cf-page").screenshot()


def report(page):
    "Check the demo catalogue; returns a PNG of the beginning of the report."
    with TemporaryDirectory() as folder:
        path = Path(folder) / "check.html"
        program = Path(sys.executable).parent / "clip_ft_checkup"
        command = [program, "--root", ROOT / "runs" / "notebooks", "--report", path]
        subprocess.run(command, check=True)
        page.goto(path.as_uri())
        return page.screenshot()


def save(png, name, height):
    "Save the upper part of a screenshot as a small file."
    image = Image.open(BytesIO(png)).convert("RGB")
    image = image.crop((0, 0, image.width, height)).quantize(128, dither=Image.Dither.NONE)
    image.save(ROOT / "nbs" / "images" / name, optimize=True)


def main():
    server = start_server()
    try:
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            save(search(browser.new_page(viewport={"width": 1280, "height": 860})), "search-page.png", 760)
            save(report(browser.new_page(viewport={"width": 1100, "height": 860})), "checkup-report.png", 700)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
