"""Chapters as a reader sees them, in JupyterLab and a real browser:

    pip install -e ".[course]" playwright && python .ci/browser.py [--shots FOLDER] [CHAPTER ...]

Opens each chapter 1400 pixels wide, and 1012 without the list of files, scrolls it from top to
bottom, and fails where code or an output is cut, an output is an error or on stderr, a figure is
wider than 700 pixels, or a metric's name became a mail link. Needs Chromium or Chrome.

JupyterLab marks a notebook as changed when the kernel's Python differs from the stored one in its
patch version; nothing in a notebook prevents it, so that is not looked at."""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

NOTEBOOKS = Path(__file__).parent.parent / "nbs"
FIVE = ["00_overview", "*/05_variation", "*/07_anchored", "*/??_training", "*/??_results"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = ((1400, 900, "lab"), (1012, 900, "doc"))  # the second without the list of files

LOOK = """() => {
  const found = [], all = css => document.querySelectorAll('.jp-Notebook ' + css);
  const name = e => (e.innerText || e.tagName).trim().slice(0, 60).replace(/\\s+/g, ' ');
  const wide = e => e.offsetParent && e.scrollWidth > e.clientWidth + 1;
  const data = kind => all(`[data-mime-type="application/vnd.jupyter.${kind}"]`);
  for (const e of all('.cm-scroller')) if (wide(e)) found.push('code cut: ' + name(e));
  for (const e of all('.jp-OutputArea-output')) if (wide(e)) found.push('output cut: ' + name(e));
  for (const e of data('stderr')) found.push('output on stderr: ' + name(e));
  for (const e of data('error')) found.push('an error: ' + name(e));
  for (const e of all('.jp-OutputArea-output img'))
    if (e.clientWidth > 720) found.push('figure of ' + e.clientWidth + ' pixels');
  for (const e of all('a[href^="mailto:"]')) found.push('a mail link: ' + name(e));
  return found;
}"""


def free_port() -> int:
    "A port that nobody listens on."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def serve(folder: Path, port: int) -> subprocess.Popen:
    "JupyterLab on `folder`, answering."
    options = {"ServerApp.token": "", "ServerApp.password": "", "ServerApp.root_dir": folder}
    options |= {
        "LabApp.news_url": "",
        "LabApp.extension_manager": "readonly",
    }
    line = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
    ]
    line += [f"--{name}={value}" for name, value in options.items()]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(240):
        try:
            urlopen(f"http://127.0.0.1:{port}/api", timeout=2)
            return process
        except OSError:
            time.sleep(0.5)
    process.kill()
    raise SystemExit("JupyterLab does not answer.")


def look(page, address: str, shot: Path | None) -> list[str]:
    "What is wrong with the chapter at `address`, seen from top to bottom."
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_timeout(2500)
    wrong: list[str] = []
    pane = page.query_selector(".jp-WindowedPanel-outer") or page.query_selector(".jp-Notebook")
    height = page.evaluate("e => e.scrollHeight", pane)
    number = 0
    place = 0
    while place < height:
        page.evaluate("([e, y]) => e.scrollTo(0, y)", [pane, place])
        page.wait_for_timeout(250)
        wrong += [line for line in page.evaluate(LOOK) if line not in wrong]
        if shot is not None and number % 4 == 0:
            page.screenshot(path=f"{shot}_{number:02}.png")
        number += 1
        place += 700
        height = page.evaluate("e => e.scrollHeight", pane)
    return wrong


def main() -> int:
    "Look at the chapters; the number of things that are wrong."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", default=FIVE)
    parser.add_argument("--shots", type=Path)
    args = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser = None
    if browser is None:
        print("No browser or no playwright here: the chapters were not looked at.")
        return 0
    chapters = [
        p
        for name in args.chapters
        for p in sorted(NOTEBOOKS.glob(f"{name}.ipynb"))
        if "solutions" in name or p.parent.name != "solutions"
    ]
    lost = [name for name in args.chapters if not list(NOTEBOOKS.glob(f"{name}.ipynb"))]
    if lost:
        raise SystemExit(f"There is no chapter {lost[0]!r}; give one as '3_judging/38_report'.")
    wrong = 0
    with tempfile.TemporaryDirectory() as d, sync_playwright() as play:
        folder = Path(d) / "nbs"
        shutil.copytree(NOTEBOOKS, folder)
        port = free_port()
        lab = serve(folder, port)
        try:
            seen = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            for width, height, mode in WIDTHS:
                page = seen.new_page(viewport={"width": width, "height": height})
                for path in chapters:
                    name = path.relative_to(NOTEBOOKS)
                    shot = None
                    if args.shots:
                        args.shots.mkdir(parents=True, exist_ok=True)
                        shot = args.shots / f"{path.stem}_{width}"
                    address = f"http://127.0.0.1:{port}/{mode}/tree/{name}?reset"
                    found = look(page, address, shot)
                    print(
                        f"{name}, {width} wide: {len(found) or 'nothing'} wrong", *found, sep="\n  "
                    )
                    wrong += len(found)
            seen.close()
        finally:
            lab.terminate()
            lab.wait(20)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))
