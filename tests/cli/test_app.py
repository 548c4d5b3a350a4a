"""`tivtok app` as a person uses it, in headless Chromium. Runs where gradio, playwright and Chromium are installed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tivtok.cli import main
from tivtok.cli.page import Workshop, build_page
from tivtok.model.config import TivTokConfig
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens
from tivtok.video import VideoReader, VideoWriter

FRAMES = 40  # three chunks


@pytest.fixture(scope="module")
def model() -> TivTok:
    torch.manual_seed(0)
    small = TivTokConfig.preset("tiny").replace(width=16, heads=1, encoder_layers=1, decoder_layers=1)
    return TivTok(small.replace(native_size=(32, 32)))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("clips")
    ramp = torch.arange(32, dtype=torch.uint8)[None, None, :, None].expand(1, 32, 32, 3)
    for name, level in (("dark", 40), ("light", 200)):
        with VideoWriter(folder / f"{name}.mp4", 25, 32, 32) as writer:
            for frame in range(FRAMES):
                writer.write(ramp.roll(frame, 2) + level)
    return folder / "dark.mp4", folder / "light.mp4"


def test_each_choice_decodes_its_tokens(model: TivTok, clips: tuple[Path, Path], tmp_path: Path) -> None:
    workshop = Workshop(model, "native", tmp_path)
    dark, light = map(str, clips)
    made = {
        shown: workshop.run(dark, light, shown, "2", 0)
        for shown in ("TIV and TV", "TIV only", "what TV adds", "TIV of the second video")
    }
    assert len({VideoReader(result).read([20]).numpy().tobytes() for result, _, _ in made.values()}) == 4
    first, mixed = (Tokens.load(made[shown][1]) for shown in ("TIV and TV", "TIV of the second video"))
    assert torch.equal(first.tv, mixed.tv) and not torch.equal(first.tiv, mixed.tiv)
    assert made["TIV only"][2]["TIV tokens"] == "2 sets of 24 = 48"
    with pytest.raises(ValueError, match="the second video is missing"):
        workshop.run(dark, None, "TIV of the second video", "1", 0)


@pytest.fixture(scope="module")
def browser_page(model: TivTok, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("gradio")
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium")
    served = build_page(Workshop(model, "native", tmp_path_factory.mktemp("made")))
    _, url, _ = served.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(120_000)
            page.goto(url)
            yield page
            browser.close()
    finally:
        served.close(verbose=False)


def test_in_a_browser(browser_page: Any, clips: tuple[Path, Path]) -> None:
    page, facts = browser_page, browser_page.locator("table").first

    def upload(path: Path, video: int) -> None:
        page.locator("input[type=file]").first.set_input_files(path)
        page.locator(f'video[src$="{path.name}"]').nth(video).wait_for()

    def run() -> tuple[str, float]:
        """Returns the facts and the PSNR, once they are others than before."""
        before = facts.inner_text() if facts.count() else ""
        page.get_by_role("button", name="Encode and decode").click()
        page.wait_for_function(
            "before => ![before, undefined].includes(document.querySelector('table')?.innerText)", arg=before
        )
        text = facts.inner_text()
        return text, float(re.search(r"PSNR ([\d.]+) dB", text)[1])

    page.get_by_label("Clear").first.click()
    upload(clips[0], 0)
    text, plain = run()
    assert "1 set of 24 = 24" in text and page.locator("video").nth(1).get_attribute("src").endswith(clips[0].name)
    page.get_by_label("TIV sets").click()
    page.get_by_role("option", name="2").click()
    assert "2 sets of 24 = 48" in run()[0]
    page.get_by_label("number input for Refinement steps").fill("10")
    page.keyboard.press("Tab")
    assert run()[1] > plain
    page.get_by_label("TIV only").check()
    run()
    page.get_by_label("TIV of the second video").check()
    page.get_by_role("button", name="Encode and decode").click()
    page.get_by_text("the second video is missing").first.wait_for()
    upload(clips[1], 0)
    run()


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 1
    assert capsys.readouterr().err == "tivtok: the page needs gradio: pip install 'tivtok[app]'\n"
