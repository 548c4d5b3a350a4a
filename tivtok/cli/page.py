"""``tivtok app``: the tokenizer as a page in a browser."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tivtok import editing
from tivtok.cli.demo import CLIP
from tivtok.cli.options import DeviceOption, ModelOption, Precision, PrecisionOption, SizeOption, parse_tiv_sets
from tivtok.cli.output import CommandError, rate_rows, say, token_rows
from tivtok.cli.reconstruct import write_reconstruction
from tivtok.cli.source import Source, encode_source, known_rate
from tivtok.loading import load_model
from tivtok.tokenizer import TivTok
from tivtok.tokens import Tokens

MOST_STEPS = 200


class Shown(StrEnum):
    """What is shown beside the original."""

    BOTH = "TIV and TV"
    TIV = "TIV only"
    TV = "what TV adds"
    SWAPPED = "TIV of the second video"


def app(
    model: ModelOption = "tiny",
    size: SizeOption = "native",
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Of this machine; the page is for its users alone.")
    ] = 7860,
) -> None:
    """Try the tokenizer in a browser: upload a video, see what its tokens hold.

    Example: tivtok app --model runs/mine
    """
    with tempfile.TemporaryDirectory() as folder:
        page = build_page(Workshop(load_model(model, device, precision), size, Path(folder)))
        say(f"the page is at http://127.0.0.1:{port}, until ctrl-C")
        try:
            page.launch(server_name="127.0.0.1", server_port=port, quiet=True)
        except OSError:
            raise CommandError(f"--port {port} is in use: name another one") from None
        finally:
            page.close(verbose=False)


class Workshop:
    """Encodes and decodes what the page is given. Each video it makes is a new file of ``folder``."""

    def __init__(self, model: TivTok, size: str, folder: Path) -> None:
        self.model = model
        self.size = size
        self.folder = folder

    def run(
        self, video: str | None, second: str | None, shown: str, tiv_sets: str, steps: int
    ) -> tuple[str, str, dict[str, str]]:
        """Encode ``video`` and decode what is to be ``shown`` of its tokens.

        Args:
            second: the video that TIV tokens come from where they are swapped.
            tiv_sets: as for ``--tiv-sets``.
            steps: of refinement, 0 for none.

        Returns:
            The paths of an MP4 (original and result, side by side) and of the token file, and facts about it.

        Raises:
            OSError, ValueError: as the commands; or a video is missing.
        """
        source, tokens = self._encode(video, "first", tiv_sets, steps)
        if shown == Shown.SWAPPED:
            tokens = editing.swap(self._encode(second, "second", tiv_sets, steps)[1], tokens)
        stored = Path(tempfile.mkdtemp(dir=self.folder)) / f"{source.path.stem}.tivtok"
        tokens.save(stored, "float16")
        size = stored.stat().st_size
        facts = token_rows(tokens, size) | rate_rows(tokens, size)

        result = stored.with_suffix(".mp4")
        alone = editing.tiv_only(tokens, editing.grey_tokens(self.model, tokens.height, tokens.width).to("cpu"))
        scores = write_reconstruction(
            self.model,
            alone if shown == Shown.TIV else tokens,
            source,
            result,
            known_rate(source.fps, source.path),
            beside=True,
            audio=False,
            beyond=alone if shown == Shown.TV else None,
        )
        return str(result), str(stored), facts | {"quality": f"{scores}, against the first video"}

    def _encode(self, video: str | None, which: str, tiv_sets: str, steps: int) -> tuple[Source, Tokens]:
        if video is None:
            raise CommandError(f"the {which} video is missing")
        source = Source(Path(video), self.size, self.model)
        return source, encode_source(self.model, source, parse_tiv_sets(tiv_sets), steps)


def build_page(workshop: Workshop) -> Any:
    """Make the page: a ``gradio.Blocks``, which ``launch()`` serves.

    Raises:
        CommandError: gradio is not installed.
    """
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise CommandError(f"the page needs {error.name}: pip install 'tivtok[app]'") from None

    def run(*inputs: Any) -> tuple[str, str, str]:
        try:
            result, stored, facts = workshop.run(*inputs)
        except (OSError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        return (
            result,
            stored,
            "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in facts.items())]),
        )

    with gr.Blocks(title="TivTok", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            "# TivTok\nVideos to time-invariant (TIV) and time-variant (TV) tokens, and back. "
            f"Model: {workshop.model.config.name}."
        )
        with gr.Row():
            with gr.Column():
                video = gr.Video(str(CLIP), label="Video", sources=["upload"])
                second = gr.Video(label="Second video, to take TIV tokens from", sources=["upload"])
                shown = gr.Radio([str(kind) for kind in Shown], value=str(Shown.BOTH), label="Show")
                sets = gr.Dropdown(["1", "2", "4", "8", "auto"], value="1", label="TIV sets")
                steps = gr.Slider(0, MOST_STEPS, 0, step=10, label="Refinement steps (slow)")
                button = gr.Button("Encode and decode", variant="primary")
            with gr.Column():
                result = gr.Video(label="Original and result", autoplay=True, loop=True)
                facts = gr.Markdown()
                stored = gr.File(label="Token file")
        button.click(run, [video, second, shown, sets, steps], [result, stored, facts], api_name="run")
    return page
