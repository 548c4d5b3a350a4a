"""``python -m tivtok_kernels.tune``: what is fastest on this device, for "auto" and the tiles of the Triton kernels.

For every call asked for, first the tile of each Triton kernel is timed against its neighbours, then the backends
against one another. Whatever is timed is first held against the float64 oracle, element by element by error budgets
(docs/numerics.md); what is over its budget, does not compile or does not fit is left out, and the record says why. The
record is written after every step, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import datetime
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor

from tivtok_kernels import backends, error_budgets, measured
from tivtok_kernels.error_budgets import Arithmetic
from tivtok_kernels.layout import Scope, SifLayout
from tivtok_kernels.measured import Entry, Question, Record
from tivtok_kernels.problem import Call, Direction, Problem
from tivtok_kernels.timing import Stopwatch, Watch, interleave, synchronize

TF32 = 2.0**-10  # a mantissa of 10 bits, its rest cut off

# Held against the oracle: so many clips of so many frames at most, in heads of one key head.
CHECKED_CLIPS, CHECKED_FRAMES = 2, 2


class Shape(NamedTuple):
    """A uniform batch: ``clips`` of ``num_tiv`` TIV tokens and ``frames`` frames of ``tokens`` tokens."""

    clips: int
    num_tiv: int
    frames: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read "1x96x4x1032x12x64"; heads may be "12/4", query heads over key heads.

        Raises:
            ValueError: it is not such a text, or a number does not fit.
        """
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)x(\d+)(?:/(\d+))?x(\d+)", text)
        if found is None:
            raise ValueError(f'must be like "1x96x4x1032x12x64" (heads may be "12/4"), got {text!r}')
        clips, num_tiv, frames, tokens, heads, kv_heads, head_dim = (int(n or 0) for n in found.groups())
        shape = cls(clips, num_tiv, frames, tokens, heads, kv_heads or heads, head_dim)
        if shape.layout.local_tokens == 0 or not heads or heads % shape.kv_heads or not head_dim:
            raise ValueError(f"needs frame tokens, a head_dim, heads a multiple of the key heads, got {text!r}")
        return shape

    def __str__(self) -> str:
        heads = f"{self.heads}/{self.kv_heads}" if self.heads != self.kv_heads else str(self.heads)
        return f"{self.clips}x{self.num_tiv}x{self.frames}x{self.tokens}x{heads}x{self.head_dim}"

    @property
    def layout(self) -> SifLayout:
        return SifLayout.uniform(self.clips, self.num_tiv, self.frames, self.tokens)

    @property
    def to_check(self) -> Shape:
        """One so small that the oracle holds its mask, with the same frames and the same heads to a key head."""
        clips, frames = min(self.clips, CHECKED_CLIPS), min(self.frames, CHECKED_FRAMES)
        return self._replace(clips=clips, frames=frames, heads=self.heads // self.kv_heads, kv_heads=1)


class Task(NamedTuple):
    """One call to find the fastest way for."""

    shape: Shape
    scope: Scope
    dtype: torch.dtype
    direction: Direction

    def __str__(self) -> str:
        return f"{self.shape} {self.scope} {str(self.dtype).removeprefix('torch.')} {self.direction}"


class Candidate(NamedTuple):
    """A way to run a call: a backend, or a tile of one."""

    name: str
    backend: str
    inside: Callable[[Callable[[], Any]], Any] = lambda run: run()


class WrongResult(Exception):
    """A candidate that is over its error budget."""


class Tuner:
    """Measures on one device and keeps the record.

    Args:
        device: to measure on.
        path: of the record. One that is there is gone on with.
        watch: seconds of a call.
        seconds: for which the candidates of a question are timed, roughly.
        names: backends to time; None for all that have kernels for the device.
        say: gets a line for every step.
    """

    def __init__(
        self,
        device: torch.device,
        path: Path,
        watch: Watch,
        *,
        seconds: float = 2.0,
        names: Sequence[str] | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        self.device, self.path, self.watch, self.seconds, self.say = device, path, watch, seconds, say
        self.names = default_names(device) if names is None else tuple(names)
        now = measured.conditions(device)
        known = measured.load(path) if path.exists() else None
        if known is not None and (changed := measured.changes(known, device)):
            say(f"measured anew: {', '.join(changed)}")
            known = None
        today = {"date": str(datetime.date.today())}
        self.record = Record(now | today, [] if known is None else known.entries)
        self._truths: dict[Task, _Truth] = {}

    def run(self, tasks: Iterable[Task], *, tiles: bool = True, again: bool = False) -> Record:
        """Answer what the record does not answer yet, or with ``again`` everything."""
        for task in tasks:
            problem = Problem(self.device, task.dtype, task.shape.head_dim, direction=task.direction)
            if tiles and "triton" in self.names and backends.why_not("triton", problem) is None:
                for question, candidates in self._tiles(task):
                    self._answer(question, task, candidates, again)
            reasons = {name: backends.why_not(name, problem) for name in self.names}
            able = [Candidate(name, name) for name, reason in reasons.items() if reason is None]
            refused = {name: reason for name, reason in reasons.items() if reason is not None}
            self._answer(measured.backend_question(problem), task, able, again, refused)
        return self.record

    def _tiles(self, task: Task) -> Iterable[tuple[Question, list[Candidate]]]:
        from tivtok_kernels.triton import configs
        from tivtok_kernels.triton.configs import Pass
        from tivtok_kernels.triton.launch import math_of

        configs.select.cache_clear()  # the record may have changed since
        passes: tuple[Pass, ...] = ("forward",) if task.direction == "forward" else ("dq", "dkdv")
        for kernel in passes:
            head_dim, math = configs.padded(task.shape.head_dim), math_of(task.dtype)
            key = configs.key_of(kernel, self.device, head_dim, math)
            now = configs.select(kernel, self.device, head_dim, math)

            def inside(config: configs.Config, run: Callable[[], Any], key: configs.Key = key) -> Any:
                with configs.instead(key, config):
                    return run()

            found = dict.fromkeys([configs.row(key), now, *configs.neighbours(kernel, now)])
            candidates = [Candidate(configs.name_of(config), "triton", partial(inside, config)) for config in found]
            yield measured.tile_question(key.kernel, key.arch, key.head_dim, key.math), candidates

    def _answer(
        self,
        question: Question,
        task: Task,
        candidates: Sequence[Candidate],
        again: bool,
        refused: dict[str, str] | None = None,
    ) -> None:
        """Time the candidates that are right. The entry is there first, so that one that ends the process is known."""
        known = [entry for entry in self.record.entries if entry.question == question and entry.call == str(task)]
        if known and known[0].seconds and not again:
            return
        left_out = dict(refused or {}) if again or not known else known[0].left_out
        entry = Entry(question, str(task), {}, left_out)
        self.record.entries[:] = [e for e in self.record.entries if e not in known] + [entry]
        calls = {}
        for candidate in candidates:
            if candidate.name in left_out:
                continue
            left_out[candidate.name] = "it ended the process that tried it"
            self._save()
            try:
                calls[candidate.name] = self._prepare(candidate, task)
            except Exception as error:  # whatever a compiler or a driver raises: it is recorded, and the others go on
                left_out[candidate.name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                self._save()
                synchronize(self.device)  # raises where the error has left the device unusable
            except KeyboardInterrupt:
                del left_out[candidate.name]
                self._save()
                raise
            else:
                del left_out[candidate.name]
        if calls:
            samples = interleave(calls, self.watch, self.seconds)
            times = {name: statistics.median(rounds) for name, rounds in samples.items()}
            entry.seconds.update(sorted(times.items(), key=lambda item: item[1]))
        self._save()
        self.say(f"{' '.join(map(str, question))}, {task}: {describe(entry)}")

    def _save(self) -> None:
        measured.save(self.record, self.path)
        backends.choose.cache_clear()

    @torch.no_grad()
    def _prepare(self, candidate: Candidate, task: Task) -> Callable[[], object]:
        """The call to time, after one like it was held against the oracle."""
        truth = self._truth(task)
        got = candidate.inside(partial(_results, candidate.backend, truth.call, truth.dout, task.direction))
        _check(got, truth, candidate.backend)
        call, dout = draw(task.shape, task, self.device)
        module = backends.load(candidate.backend)
        if task.direction == "forward":
            run: Callable[[], object] = partial(module.forward, call)
        else:
            out, lse = module.forward(call)
            run = partial(module.backward, call, out, lse, dout, None)
        candidate.inside(run)
        return partial(candidate.inside, run)

    def _truth(self, task: Task) -> _Truth:
        if task not in self._truths:
            self._truths = {task: _Truth.of(task, self.device)}  # one at a time: they are large
        return self._truths[task]


class _Truth(NamedTuple):
    """A small call, and what it should give.

    Attributes:
        call, dout: on the device, in the dtype of the task.
        results: float64, on the CPU: out and LSE, or gradients.
        budgets: the largest error of each, for a backend.
    """

    call: Call
    dout: Tensor
    results: dict[str, Tensor]
    budgets: Callable[[str], dict[str, Tensor]]

    @classmethod
    def of(cls, task: Task, device: torch.device) -> _Truth:
        call, dout = draw(task.shape.to_check, task, device)
        q, k, v, k_tiv, v_tiv = (x.cpu() for x in (call.q, call.k, call.v, *call.tiv_or_own))
        tiv = (k_tiv, v_tiv) if call.tiv else None
        in_double = None if tiv is None else (k_tiv.double(), v_tiv.double())
        double = call._replace(q=q.double(), k=k.double(), v=v.double(), tiv=in_double)
        keys, values = (torch.cat([tiv[i], x]) if tiv else x for i, x in enumerate((k, v)))
        visible = task.shape.to_check.layout.visibility(task.scope)

        def budgets(backend: str) -> dict[str, Tensor]:
            arithmetic = Arithmetic.of(backend, task.dtype)
            if task.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
                arithmetic = arithmetic._replace(operand=TF32)
            found = error_budgets.budgets(arithmetic, visible, (q, keys, values), dout.cpu(), None, call.scale)
            if tiv:
                rows = len(tiv[0])
                found |= {f"{name}_tiv": found[name][:rows] for name in ("dk", "dv")}
                found |= {name: found[name][rows:] for name in ("dk", "dv")}
            return found

        return cls(call, dout, _results("reference", double, dout.cpu().double(), task.direction), budgets)


def draw(shape: Shape, task: Task, device: torch.device) -> tuple[Call, Tensor]:
    """A call of standard-normal tensors in the layout of ``shape``, and the gradient of its output."""
    generator = torch.Generator().manual_seed(0)
    layout = shape.layout
    ranges = layout.ranges(task.scope)

    def normal(rows: int, heads: int) -> Tensor:
        return torch.randn(rows, heads, shape.head_dim, generator=generator).to(device, task.dtype)

    q, dout = normal(ranges.q_rows, shape.heads), normal(ranges.q_rows, shape.heads)
    k, v = (normal(ranges.k_rows, shape.kv_heads) for _ in range(2))
    tiv = None
    if ranges.a_rows is not None:
        tiv = (normal(ranges.a_rows, shape.kv_heads), normal(ranges.a_rows, shape.kv_heads))
    return Call(q, k, v, tiv, layout, task.scope, shape.head_dim**-0.5), dout


def default_names(device: torch.device) -> tuple[str, ...]:
    """The backends that are worth timing: on a CPU not "triton", which is interpreted there."""
    slow = {"reference"} if device.type != "cpu" else {"reference", "triton"}
    return tuple(name for name in backends.NAMES["attention"] if name not in slow)


def describe(entry: Entry) -> str:
    """The candidates of an entry in words, the fastest first."""
    timed = [f"{name} {seconds * 1e3:.3g} ms" for name, seconds in sorted(entry.seconds.items(), key=lambda x: x[1])]
    return "; ".join([", ".join(timed) or "nothing", *(f"{n} left out: {why}" for n, why in entry.left_out.items())])


def _results(backend: str, call: Call, dout: Tensor, direction: Direction) -> dict[str, Tensor]:
    """out and LSE, or the gradients, on the CPU."""
    module = backends.load(backend)
    out, lse = module.forward(call)
    if direction == "forward":
        named = {"out": out, "lse": lse}
    else:
        grads = module.backward(call, out, lse, dout, None)
        named = dict(zip(("dq", "dk", "dv", "dk_tiv", "dv_tiv"), grads, strict=False))
    return {name: x.cpu() for name, x in named.items()}


def _check(got: dict[str, Tensor], truth: _Truth, backend: str) -> None:
    """Raises:
    WrongResult: an element is over its budget.
    """
    budgets = truth.budgets(backend)
    for name, exact in truth.results.items():
        error = (got[name].double() - exact).abs()
        over = ~(error <= budgets[name])  # NaN is over any
        if over.any():
            raise WrongResult(f"{name}: {int(over.sum())} of {over.numel()} elements over their error budgets")


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLIPSxTIVxFRAMESxTOKENSxHEADSxHEAD_DIM",
            help="A batch to be fast for; several may be given. HEADS may be 12/4: query heads over key heads.",
        ),
    ] = None,
    scope: Annotated[list[str] | None, typer.Option(help="Any of clip, tiv, broadcast.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Any of float32, bfloat16, float16.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Only these backends.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda[:N]; by default a GPU where there is one.")] = None,
    forward_only: Annotated[bool, typer.Option(help="No gradients.")] = False,
    tiles: Annotated[bool, typer.Option(help="Also the tiles of the Triton kernels.")] = True,
    again: Annotated[bool, typer.Option(help="Also what is measured already; tiles go on from the fastest.")] = False,
    seconds: Annotated[float, typer.Option(help="For which the candidates of a question are timed, roughly.")] = 2.0,
) -> None:
    """Time the backends, and the tiles of the Triton kernels, on this device: "auto" then takes what is fastest.

    Each is held against the float64 oracle first. The record is one JSON file per device in the cache folder; without
    it everything is as before. A run that was stopped goes on where it was.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise typer.BadParameter("this machine has no GPU that torch can use", param_hint="--device")
        chosen = torch.device("cuda", chosen.index or 0)
    shapes = []
    for text in shape or ("1x96x4x1032x12x64", "1x96x4x1032x6x128"):
        try:
            shapes.append(Shape.parse(text))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--shape") from None
    scopes = _among("--scope", scope or ["clip", "broadcast"], ("clip", "tiv", "broadcast"))
    dtypes = _among("--dtype", dtype or ["float32" if chosen.type == "cpu" else "bfloat16"], tuple(DTYPES))
    names = _among("--backend", backend, default_names(chosen)) if backend else None
    directions: tuple[Direction, ...] = ("forward",) if forward_only else ("forward", "backward")
    tasks = [Task(s, w, DTYPES[t], d) for s in shapes for w in scopes for t in dtypes for d in directions]  # type: ignore[arg-type]
    path = measured.folders()[0] / measured.file_name(chosen)
    tuner = Tuner(chosen, path, Stopwatch(chosen), seconds=seconds, names=names, say=partial(print, flush=True))
    tuner.run(tasks, tiles=tiles, again=again)
    print(f"wrote {path}")


def _among(option: str, given: list[str], allowed: tuple[str, ...]) -> list[str]:
    for name in given:
        if name not in allowed:
            raise typer.BadParameter(f"must be among {', '.join(allowed)}, got {name}", param_hint=option)
    return given


if __name__ == "__main__":
    typer.run(main)
