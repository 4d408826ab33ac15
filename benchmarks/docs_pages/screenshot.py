"""Photograph a report in a real browser, and check that it fits the width.

    python -m benchmarks.docs_pages.screenshot report.html picture.png --width 1280 --height 1500
    python -m benchmarks.docs_pages.screenshot report.html phone.png --width 390 --height 2600

Needs Chromium or Chrome on the PATH. Ends with status 1 if the page is wider than the window.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# The page stands in a frame of the wanted width: a headless window has a least width of its own.
FRAME = """<iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe>
<script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument.documentElement;
  document.body.setAttribute("data-content-width", page.scrollWidth);
}}</script>"""


def browse(*arguments: str) -> str:
    """Run the browser once with an empty profile; returns what it prints."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"no browser found on the PATH; install one of: {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *QUIET, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def photograph(report: Path, picture: Path, width: int, height: int, scale: float) -> None:
    """Write the top ``height`` pixels of the report as PNG; ``scale`` 2 doubles the resolution."""
    browse(
        f"--window-size={width},{height}",
        f"--force-device-scale-factor={scale:g}",
        f"--screenshot={picture.resolve()}",
        report.resolve().as_uri(),
    )


def content_width(report: Path, width: int) -> int:
    """How wide the content is in a window of ``width``; more than that would scroll sideways."""
    page = html.escape(report.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        frame.write_text(FRAME.format(width=width, page=page), encoding="utf-8")
        printed = browse("--window-size=1600,1000", "--dump-dom", frame.as_uri())
    found = re.search(r'data-content-width="(\d+)"', printed)
    if found is None:
        sys.exit("the browser did not say how wide the page is")
    return int(found[1])


def main() -> None:
    """Read the command line, check the width, take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1500)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    photograph(options.report, options.picture, options.width, options.height, options.scale)
    wide = content_width(options.report, options.width)
    print(f"{options.picture}: content {wide} px in a window of {options.width} px")
    sys.exit(wide > options.width)


if __name__ == "__main__":
    main()
