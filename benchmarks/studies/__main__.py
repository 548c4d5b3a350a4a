"""``python -m benchmarks.studies``."""

import typer

from benchmarks.studies.coded import coded
from benchmarks.studies.divisions import divisions
from benchmarks.studies.factorisation import factorisation
from benchmarks.studies.memory import memory
from benchmarks.studies.precision import precision
from benchmarks.studies.random_access import random_access
from benchmarks.studies.start_up import start_up
from benchmarks.studies.synthetic_motion import synthetic_motion
from benchmarks.studies.throughput import throughput
from benchmarks.studies.tiv_sets import tiv_sets
from benchmarks.studies.token_budget import token_budget
from benchmarks.studies.undivided import train_undivided, undivided

app = typer.Typer(help="Measurements behind decisions.", add_completion=False, pretty_exceptions_enable=False)
app.command("tiv-sets")(tiv_sets)
app.command("memory")(memory)
app.command("random-access")(random_access)
app.command("factorisation")(factorisation)
app.command("divisions")(divisions)
app.command("train-undivided")(train_undivided)
app.command("undivided")(undivided)
app.command("synthetic-motion")(synthetic_motion)
app.command("coded")(coded)
app.command("throughput")(throughput)
app.command("token-budget")(token_budget)
app.command("start-up")(start_up)
app.command("precision")(precision)


@app.callback()
def experiments() -> None:
    """Measurements behind decisions; needs the `bench` extra (matplotlib)."""


if __name__ == "__main__":
    app()
