"""Take the picture of the search page that README.md and the documentation show: nbs/images/search-page.png, of the demo catalogue.

Needs Chromium, and runs/notebooks with a trained demo (any of the notebooks makes it): `make screenshot`.
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


def main():
    voila = [Path(sys.executable).parent / "voila", "app.ipynb", "--no-browser", f"--port={PORT}"]
    server = subprocess.Popen(voila, cwd=ROOT / "nbs", env=os.environ | {"CLIP_FT_ROOT": str(ROOT / "runs" / "notebooks")})
    try:
        while socket.socket().connect_ex(("127.0.0.1", PORT)): time.sleep(.2)
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"])
            page = browser.new_page(viewport=dict(width=1280, height=860))
            page.goto(f"http://127.0.0.1:{PORT}", timeout=120000)
            page.wait_for_selector(".cf-card", timeout=120000)
            page.get_by_placeholder("What are you looking for?").fill("blue jeans")
            page.wait_for_selector('.cf-grid[data-words="blue jeans"]')
            page.locator(".cf-card").nth(1).hover()
            page.wait_for_timeout(2000)
            picture = Image.open(BytesIO(page.locator(".cf-page").screenshot())).convert("RGB")
            picture = picture.crop((0, 0, picture.width, 760))
            picture.quantize(128, dither=Image.Dither.NONE).save(ROOT / "nbs" / "images" / "search-page.png", optimize=True)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__": main()
