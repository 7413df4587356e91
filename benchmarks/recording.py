"""The first journey on the pages as one animated picture, and its end as a still: `docs/pictures`.

A real `pared up` serves, a real Chromium shows its pages, and the job is a real one. Waiting is shortened in the
picture: what is shown while something works lasts a moment for each change. Run it with `make recording`.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

from chromium import PATIENCE_MS, opened
from PIL import Image, ImageChops, ImageDraw
from playwright.sync_api import Locator, Page
from results import trained_digits
from server import running_pared

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs/pictures"
WIDTH, HEIGHT = 960, 640
MOST_SECONDS, MOST_BYTES, MOST_STILL_BYTES = 60.0, 1_950_000, 150_000
MOST_CHANGES = 16
"""Frames of one wait; of a longer one these are taken at even distances."""
COLOURS = (64, 48, 32, 24)
ARROW = ((0, 0), (0, 17), (4, 13), (7, 20), (10, 19), (7, 12), (13, 12))


def main(url: str, files: Path) -> None:
    """Go through the journey on the service at `url`, and write both pictures."""
    with opened(url, WIDTH, HEIGHT) as page:
        film = Film(page)
        job = journey(film, files)
        film.save(PICTURES / "first-journey.gif")
        still(page, job, PICTURES / "result.png")
    for file in sorted(PICTURES.iterdir()):
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size:,} bytes")
    print(f"{film.seconds:.0f} s in {len(film.frames)} frames")


def journey(film: Film, files: Path) -> str:
    """From two files to a smaller model. Returns the address of the job's page."""
    page = film.page
    page.goto("/")
    film.hold(1.5)
    drop(film, "model", files / "digits_cnn.pt")
    page.wait_for_url("**/models/mdl_*")
    film.follow(lambda: page.get_by_role("link", name="Shrink this model").is_visible())
    film.hold(1.5)
    film.scroll(360)
    film.hold(2.5)
    page.goto("/")
    film.hold(0.8)
    drop(film, "dataset", files / "digits.npz")
    page.wait_for_url("**/datasets/dst_*")
    film.follow(lambda: page.get_by_role("link", name="Use it in a job").is_visible())
    film.hold(1.5)
    film.scroll(360)
    film.hold(1.5)
    page.goto("/")
    film.click(page.get_by_role("link", name="Shrink it"))
    form(film)
    film.click(page.get_by_role("button", name="Start the job"))
    page.wait_for_url("**/jobs/job_*")
    film.follow(lambda: page.locator("#state[data-ended]").count() > 0, shown_s=0.5)
    page.get_by_role("heading", name="Files").wait_for()
    job = page.url
    page.goto(job)
    film.hold(3)
    for _ in range(5):
        film.scroll(480)
        film.hold(1.5)
    page.evaluate("window.scrollTo(0, 0)")
    film.hold(3)
    return job


def drop(film: Film, kind: str, file: Path) -> None:
    """Choose the file in the form, and send it."""
    film.page.set_input_files(f"#{kind}-file", file)
    film.click(film.page.locator(f"[data-upload={kind}] > button"))


def form(film: Film) -> None:
    """A quarter of the parameters is asked for, by the slider; the plan follows."""
    page = film.page
    settled = page.locator("#plan:not([data-live]):not([aria-busy])")
    page.locator("#plan").wait_for()
    film.follow(settled.is_visible)
    film.hold(1)
    page.locator("#f-epochs").fill("5")
    page.locator("#f-target-params").fill("0.9")
    page.locator("#f-target-file-bytes").fill("")
    page.evaluate("window.scrollTo(0, 0)")
    slider = page.locator("input[type=range][data-for=f-target-params]")
    film.point(slider)
    for share in (0.8, 0.6, 0.45, 0.35, 0.25):
        slider.fill(str(share))
        film.hold(0.2)
    page.locator("#preview pre").filter(has_text='"params"').first.wait_for()
    film.follow(settled.is_visible)
    film.hold(2)


def still(page: Page, job: str, file: Path) -> None:
    """The top of the job's page with its result."""
    page.set_viewport_size({"width": 1000, "height": 760})
    page.goto(job)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
    if file.stat().st_size > MOST_STILL_BYTES:
        raise RuntimeError(f"{file} has {file.stat().st_size:,} bytes, of {MOST_STILL_BYTES:,}")


class Film:
    """Frames of a page, each with the seconds that it is shown."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.frames: list[tuple[Image.Image, float]] = []
        self._pointer: tuple[float, float] | None = None

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return sum(seconds for _, seconds in self.frames)

    def hold(self, seconds: float) -> None:
        """Show the page as it is."""
        self._add(self._picture(), seconds)

    def scroll(self, by: int) -> None:
        """Scroll in steps that the eye follows."""
        self._pointer = None
        for _ in range(2):
            self.page.evaluate("by => window.scrollBy({top: by, behavior: 'instant'})", by / 2)
            self.hold(0.15)

    def point(self, at: Locator) -> None:
        """Show an arrow at the middle of an element."""
        at.scroll_into_view_if_needed()
        box = at.bounding_box()
        if box is None:
            raise RuntimeError(f"{at} is not visible")
        self._pointer = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.hold(0.7)

    def click(self, at: Locator) -> None:
        """Point at an element, and click it."""
        self.point(at)
        at.click()
        self._pointer = None

    def follow(self, done: Callable[[], bool], shown_s: float = 0.35) -> None:
        """Show what changes until something is done, each change for a moment; then the last state."""
        changes: list[Image.Image] = []
        until = time.monotonic() + PATIENCE_MS / 1000
        while True:
            ended = done()
            picture = self._picture()
            if not changes or different(changes[-1], picture):
                changes.append(picture)
            if ended:
                break
            if time.monotonic() > until:
                raise TimeoutError(f"{self.page.url} did not come to its end")
            time.sleep(0.3)
        kept = min(len(changes), MOST_CHANGES)
        for number in range(kept):
            self._add(changes[round(number * (len(changes) - 1) / max(1, kept - 1))], shown_s)

    def save(self, file: Path) -> None:
        """Write the animated picture with as many colours as its size allows."""
        if self.seconds > MOST_SECONDS:
            raise RuntimeError(f"the recording lasts {self.seconds:.0f} s")
        sample = Image.new("RGB", (WIDTH, HEIGHT * len(self.frames)))
        for number, (frame, _) in enumerate(self.frames):
            sample.paste(frame, (0, HEIGHT * number))
        file.parent.mkdir(exist_ok=True)
        durations = [round(1000 * seconds) for _, seconds in self.frames]
        for colours in COLOURS:
            # One palette for all frames, so that what stays the same costs nothing.
            palette = sample.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame, _ in self.frames]
            drawn[0].save(file, save_all=True, append_images=drawn[1:], duration=durations, loop=0, optimize=True)
            if file.stat().st_size <= MOST_BYTES:
                return
        raise RuntimeError(f"{file} has {file.stat().st_size:,} bytes")

    def _picture(self) -> Image.Image:
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        if self._pointer is not None:
            shape = [(self._pointer[0] + x, self._pointer[1] + y) for x, y in ARROW]
            ImageDraw.Draw(picture).polygon(shape, fill="black", outline="white")
        return picture

    def _add(self, picture: Image.Image, seconds: float) -> None:
        if self.frames and not different(self.frames[-1][0], picture):
            last, before = self.frames[-1]
            self.frames[-1] = (last, before + seconds)
        else:
            self.frames.append((picture, seconds))


def different(one: Image.Image, other: Image.Image) -> bool:
    """Whether any pixel differs."""
    return ImageChops.difference(one, other).getbbox() is not None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/first-look", help="for the model and the data")
    folder = parser.parse_args().folder.resolve()
    files = trained_digits(folder)
    with running_pared(folder / "pared-data") as url:
        main(url, files)
