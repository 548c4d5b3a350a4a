"""``python -m tivtok.experiments``."""

import typer

from tivtok.experiments.ablations import ablations
from tivtok.experiments.latents import latents
from tivtok.experiments.memory import memory
from tivtok.experiments.random_access import random_access
from tivtok.experiments.tiv_sets import tiv_sets

app = typer.Typer(help="Measurements behind decisions.", add_completion=False, pretty_exceptions_enable=False)
app.command("tiv-sets")(tiv_sets)
app.command("latents")(latents)
app.command("memory")(memory)
app.command("random-access")(random_access)
app.command("ablations")(ablations)


@app.callback()
def experiments() -> None:
    """Measurements behind decisions; needs the `bench` extra (matplotlib)."""


if __name__ == "__main__":
    app()
