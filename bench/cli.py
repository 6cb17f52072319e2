"""Commands only: parse, call one function, map errors to exit codes.

Everything heavy is imported inside a command, so that `bench --help` is instant.
"""

from __future__ import annotations

import enum
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from bench.errors import BenchError, WrongUse

INTERRUPTED = 130

EXIT_CODES = """\
Exit codes: 0 at least one case measured and none failed; 1 a regression or a failed
comparison; 2 wrong use; 3 nothing could be measured; 4 a case failed or timed out;
130 interrupted, results kept.
"""
COMPACT_EXIT_CODES = """\
Exit codes: 0 merged, or nothing to do; 2 wrong use; 3 no usable record; 4 the merged file
could not be written or did not read back, nothing is lost; 130 interrupted, nothing is lost.
"""
BEST_EXIT_CODES = """\
Exit codes: 0 a fastest way was found; 2 wrong use; 3 nothing can run here, or nothing that was
tried keeps the limits; 130 interrupted, results kept.
"""
NIGHT_CODES = """\
Exit codes: 0 no regression; 1 a red night; 2 wrong use; 3 nothing to judge by yet.
"""


class Grouped(TyperCommand):
    """A command whose plain-text help lists its options under the headings of their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section a panel, in the order they first appear."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    help="Measures how ResNet-50 trains and serves on this machine, and says how sure it is.",
    epilog=EXIT_CODES,
)


class BudgetName(enum.StrEnum):
    """The budgets of bench.schema.BUDGETS."""

    quick = "quick"
    standard = "standard"
    strict = "strict"


_METAVARS = {
    "--plan": "NAME|FILE.toml",
    "--results": "DIR",
    "--out": "DIR",
    "--target-ci": "1%",
    "--max-seconds": "S",
    "--timeout": "S",
    "--repeats": "K",
    "--baseline": "SELECTOR",
    "--min-effect": "2%",
    "--fail-if-slower": "3%",
    "--budget": "NAME",
    "--run": "ID",
    "--against": "NIGHTS",
    "--confirm-budget": "10m",
    "--reason": "TEXT",
    "--run-id": "ID",
    "--died": "CODE",
    **dict.fromkeys(("--batch-size", "--world-size", "--image-size", "--threads"), "N,…"),
    **dict.fromkeys(("--loader-workers", "--epochs", "--classes", "--seed"), "N,…"),
    **dict.fromkeys(("--task", "--model", "--device", "--precision", "--engine"), "NAME,…"),
    **dict.fromkeys(("--recipe", "--memory-format", "--weights", "--data"), "NAME,…"),
}
WHAT, HARD, WHERE = "What", "How hard", "Where"


def option(*names: str, panel: str, text: str, **more: Any) -> Any:
    """An option under a heading of the help; without a default shown."""
    more.setdefault("metavar", _METAVARS.get(names[0]))
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **more)


Results = Annotated[
    Path, option("--results", panel=WHERE, text="Folder of results (default: reports/data).")
]
DEFAULT_RESULTS = Path("reports/data")


@app.command("run", cls=Grouped, epilog=EXIT_CODES)
def run_command(
    plan: Annotated[
        str, option("--plan", panel=WHAT, text="Plan by name or TOML file (default: quick).")
    ] = "quick",
    task: Annotated[list[str] | None, option("--task", panel=WHAT, text="train, infer.")] = None,
    model: Annotated[
        list[str] | None, option("--model", panel=WHAT, text="resnet50, … (bench list models).")
    ] = None,
    device: Annotated[
        list[str] | None,
        option("--device", panel=WHAT, text="cpu, cuda, cuda:1, … (default: every device found)."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        option("--precision", panel=WHAT, text="fp32, tf32, amp, amp-fp16, amp-bf16, int8."),
    ] = None,
    amp: Annotated[bool, option("--amp", panel=WHAT, text="Short for --precision amp.")] = False,
    batch_size: Annotated[
        list[str] | None,
        option("--batch-size", panel=WHAT, text="Images per device and step; auto: the largest."),
    ] = None,
    world_size: Annotated[
        list[str] | None,
        option("--world-size", panel=WHAT, text="Devices that train together (DDP, torchrun)."),
    ] = None,
    image_size: Annotated[
        list[str] | None, option("--image-size", panel=WHAT, text="Side in pixels, 32 or more.")
    ] = None,
    engine: Annotated[
        list[str] | None, option("--engine", panel=WHAT, text="eager, … (bench list engines).")
    ] = None,
    engine_mode: Annotated[
        list[str] | None,
        option("--engine-mode", panel=WHAT, text="A way of working of an engine: max-autotune, …"),
    ] = None,
    calibration_images: Annotated[
        list[str] | None,
        option("--calibration-images", panel=WHAT, text="Images INT8 is calibrated on: 32."),
    ] = None,
    data: Annotated[
        list[str] | None,
        option("--data", panel=WHAT, text="synthetic, cifar10, folder:DIR."),
    ] = None,
    loader_workers: Annotated[
        list[str] | None,
        option("--loader-workers", panel=WHAT, text="DataLoader processes for real data."),
    ] = None,
    recipe: Annotated[
        list[str] | None, option("--recipe", panel=WHAT, text="sgd, adam, … (bench list recipes).")
    ] = None,
    memory_format: Annotated[
        list[str] | None, option("--memory-format", panel=WHAT, text="channels_last, contiguous.")
    ] = None,
    weights: Annotated[
        list[str] | None, option("--weights", panel=WHAT, text="random, default, FILE.")
    ] = None,
    threads: Annotated[
        list[str] | None,
        option("--threads", panel=WHAT, text="Intra-op threads (default: every usable core)."),
    ] = None,
    seed: Annotated[list[str] | None, option("--seed", panel=WHAT, text="Default 42.")] = None,
    epochs: Annotated[
        list[str] | None,
        option("--epochs", panel=WHAT, text="Length of the job a time is projected to."),
    ] = None,
    classes: Annotated[
        list[str] | None,
        option("--classes", panel=WHAT, text="Outputs of the model (default: as the data has)."),
    ] = None,
    full: Annotated[
        bool, option("--full", panel=HARD, text="Train all epochs instead of projecting them.")
    ] = False,
    deterministic: Annotated[
        bool,
        option(
            "--deterministic",
            panel=HARD,
            text="Each case also with torch's deterministic algorithms, and what they cost.",
        ),
    ] = False,
    budget: Annotated[
        BudgetName | None,
        option("--budget", panel=HARD, text="quick, standard or strict: 2 %, 1 %, 0.5 %."),
    ] = None,
    target_ci: Annotated[
        str | None, option("--target-ci", panel=HARD, text="Wanted half-width, e.g. 1%.")
    ] = None,
    max_seconds: Annotated[
        float | None, option("--max-seconds", panel=HARD, text="Measuring time of each case.")
    ] = None,
    repeats: Annotated[
        int | None,
        option("--repeats", panel=HARD, text="Rounds of all cases, in fresh interpreters."),
    ] = None,
    timeout: Annotated[
        float | None, option("--timeout", panel=HARD, text="Seconds after which a case is killed.")
    ] = None,
    no_cache: Annotated[
        bool,
        option("--no-cache", panel=HARD, text="Build exported and compiled models anew."),
    ] = False,
    results: Results = DEFAULT_RESULTS,
    run_id: Annotated[
        str | None,
        option("--run-id", panel=WHERE, text="Name of this run (default: made of its start)."),
    ] = None,
    resume: Annotated[
        bool,
        option("--resume", panel=WHERE, text="Finish the newest unfinished run of the same plan."),
    ] = False,
    dry_run: Annotated[
        bool,
        option(
            "--dry-run",
            panel=WHERE,
            text="Print the cases and why any cannot run; measure nothing.",
        ),
    ] = False,
    json: Annotated[
        bool, option("--json", panel=WHERE, text="One JSON object a record on standard output.")
    ] = False,
) -> None:
    """Measure every case of a plan, each in a process of its own.

    A plan is a TOML file of axes and a budget; a flag replaces that axis. Options repeat
    or take comma lists; their product is the cases.
    """
    axes = {
        "task": task, "model": model, "device": device, "precision": precision,
        "batch_size": batch_size, "image_size": image_size, "engine": engine, "data": data,
        "loader_workers": loader_workers, "recipe": recipe, "memory_format": memory_format,
        "weights": weights, "threads": threads, "seed": seed, "epochs": epochs,
        "classes": classes, "world_size": world_size, "engine_mode": engine_mode,
        "calibration_images": calibration_images,
    }  # fmt: skip
    if amp and precision:
        raise WrongUse("--amp means --precision amp; give one of them, not both.")
    if amp:
        axes["precision"] = ["amp"]
    from bench import request

    asked = request.Request(
        plan=plan,
        axes={name: values for name, values in axes.items() if values},
        full=full,
        deterministic=deterministic,
        budget=budget.value if budget else None,
        target_ci=target_ci,
        max_seconds=max_seconds,
        repeats=repeats,
        timeout_s=timeout,
        rebuild=no_cache,
        results=results,
        run_id=run_id,
        resume=resume,
        dry_run=dry_run,
        json=json,
    )
    raise typer.Exit(request.execute(asked))


@app.command("best", cls=Grouped, epilog=BEST_EXIT_CODES)
def best_command(
    task: Annotated[str, option("--task", panel=WHAT, text="infer or train.")] = "infer",
    model: Annotated[
        str | None, option("--model", panel=WHAT, text="resnet50, … (bench list models).")
    ] = None,
    device: Annotated[
        list[str] | None,
        option("--device", panel=WHAT, text="cpu, cuda, cuda:0, … (default: every device)."),
    ] = None,
    engine: Annotated[
        list[str] | None, option("--engine", panel=WHAT, text="Only these (default: every one).")
    ] = None,
    precision: Annotated[
        list[str] | None,
        option("--precision", panel=WHAT, text="Only these (default: all that are not emulated)."),
    ] = None,
    batch_size: Annotated[
        list[str] | None,
        option("--batch-size", panel=WHAT, text="Only these (default: 1,8,32; GPU 1,32,256)."),
    ] = None,
    threads: Annotated[
        list[str] | None,
        option("--threads", panel=WHAT, text="Only these (default: all cores, then half)."),
    ] = None,
    image_size: Annotated[
        str | None, option("--image-size", panel=WHAT, text="Side in pixels: 224.")
    ] = None,
    data: Annotated[
        str | None, option("--data", panel=WHAT, text="synthetic, cifar10, folder:DIR.")
    ] = None,
    weights: Annotated[
        str | None, option("--weights", panel=WHAT, text="random, default, FILE.")
    ] = None,
    classes: Annotated[
        str | None,
        option("--classes", panel=WHAT, text="Outputs of the model (default: as the data has)."),
    ] = None,
    max_latency_ms: Annotated[
        float | None, option("--max-latency-ms", panel=HARD, text="Slowest request allowed …")
    ] = None,
    percentile: Annotated[
        str, option("--percentile", panel=HARD, text="… at this percentile: 50, 90, 95, 99, 99.9.")
    ] = "99",
    max_memory_mib: Annotated[
        float | None, option("--max-memory-mib", panel=HARD, text="Most peak memory allowed.")
    ] = None,
    min_agreement: Annotated[
        str | None,
        option("--min-agreement", panel=HARD, text="Least top-1 agreement with fp32: 99%."),
    ] = None,
    fidelity_images: Annotated[
        int | None,
        option(
            "--fidelity-images",
            panel=HARD,
            text="Inputs on which agreement is judged (default: 256, or twice the classes).",
        ),
    ] = None,
    max_minutes: Annotated[
        float, option("--max-minutes", panel=HARD, text="Time for the search.")
    ] = 4.0,
    no_cache: Annotated[
        bool,
        option("--no-cache", panel=HARD, text="Build exported and compiled models anew."),
    ] = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Search engine, precision, batch size and threads for the fastest way to do a task here.

    Short tries of everything, longer ones of the better, then rounds of the best and of
    fp32, interleaved. Every try is a record.
    """
    from bench import best, request

    one = {"model": model, "image_size": image_size, "data": data, "weights": weights}
    given = {name: [text] for name, text in {**one, "classes": classes}.items() if text}
    several = {
        "device": device, "engine": engine, "precision": precision, "batch_size": batch_size,
        "threads": threads, "task": [task],
    }  # fmt: skip
    given |= {name: texts for name, texts in several.items() if texts}
    axes = {name: request.values(name, texts) for name, texts in given.items()}
    minutes = request.positive(max_minutes, "--max-minutes", "minutes")
    agreement = images = None
    if min_agreement is not None:
        agreement = request.share(min_agreement, "--min-agreement", whole=True)
    if fidelity_images is not None:
        images = request.values("fidelity_images", [str(fidelity_images)])[0]
    asked = best.Request(
        axes=axes,
        limits=best.limits(
            axes,
            latency_ms=max_latency_ms,
            percentile=percentile,
            memory_mib=max_memory_mib,
            agreement=agreement,
            minutes=minutes,
        ),
        minutes=minutes,
        fidelity_images=images,
        results=results,
        rebuild=no_cache,
    )
    raise typer.Exit(best.execute(asked))


@app.command("report", cls=Grouped)
def report_command(
    results: Results = DEFAULT_RESULTS,
    out: Annotated[
        Path, option("--out", panel=WHERE, text="Folder to write (default: reports/latest).")
    ] = Path("reports/latest"),
    baseline: Annotated[
        str | None,
        option(
            "--baseline", panel=WHAT, text="Baseline of the speed-up table, e.g. precision=fp32."
        ),
    ] = None,
) -> None:
    """Render the records into one HTML file and a PNG a chart. Needs no network."""
    from bench import report

    made = report.make(results, out, baseline)
    for sentence in made.passed_over:
        typer.echo(f"Note: {sentence}", err=True)
    typer.echo(made.headline)
    typer.echo(f"Report: {made.path}")


@app.command("compare", cls=Grouped, epilog=EXIT_CODES)
def compare_command(
    a: Annotated[str, typer.Argument(metavar="A", help="Selector of the one side.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Selector of the other side.")],
    min_effect: Annotated[
        str, option("--min-effect", panel=HARD, text="The least change that matters (default: 2%).")
    ] = "2%",
    fail_if_slower: Annotated[
        str | None,
        option("--fail-if-slower", panel=HARD, text="Exit 1 where B is slower by this or more."),
    ] = None,
    results: Results = DEFAULT_RESULTS,
    json: Annotated[
        bool, option("--json", panel=WHERE, text="One JSON object a pair on standard output.")
    ] = False,
) -> None:
    """Say of each case whether B is faster or slower than A, or the same, and how sure that is.

    A selector is run:ID, latest, latest~1, a date (2026-11-21), FIELD=VALUE, or several of
    them joined by commas. Cases pair if they agree in all fields but those named on both sides.
    """
    from bench import compare, request

    limit = None
    if fail_if_slower is not None:
        limit = request.share(fail_if_slower, "--fail-if-slower")
    asked = compare.Request(
        a=a,
        b=b,
        results=results,
        min_effect=request.share(min_effect, "--min-effect"),
        fail_if_slower=limit,
        json=json,
    )
    raise typer.Exit(compare.execute(asked))


@app.command("regress", cls=Grouped, epilog=NIGHT_CODES)
def regress_command(
    run: Annotated[
        str | None,
        option("--run", panel=WHAT, text="The night to judge (default: the newest complete one)."),
    ] = None,
    against: Annotated[
        str | None,
        option("--against", panel=WHAT, text="last-green, anchor:RUN or a date: the baseline."),
    ] = None,
    min_effect: Annotated[
        str, option("--min-effect", panel=HARD, text="The least change that is told (default: 3%).")
    ] = "3%",
    confirm_budget: Annotated[
        str | None,
        option(
            "--confirm-budget",
            panel=HARD,
            text="Time to measure suspects again (default: half of the night's, at least 10m).",
        ),
    ] = None,
    no_confirm: Annotated[
        bool, option("--no-confirm", panel=HARD, text="Judge by history alone; measure nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        option("--out", panel=WHERE, text="Folder for nightly.md, junit.xml and feed.xml; tells."),
    ] = None,
    self_test: Annotated[
        bool,
        option("--self-test", panel=HARD, text="Only say how often this history cries wolf."),
    ] = False,
    died: Annotated[
        int | None,
        option("--died", panel=WHAT, text="Exit code of a run that broke off: the night is red."),
    ] = None,
    results: Results = DEFAULT_RESULTS,
    json: Annotated[
        bool, option("--json", panel=WHERE, text="The judgement as one JSON object.")
    ] = False,
) -> None:
    """Say which series of a night really became slower, since when, and what is suspected.

    A night is one run of a plan. Each case is compared with its nights since the last change;
    suspects are measured again at once, beside a control.
    """
    from bench import regress, request

    size = request.share(min_effect, "--min-effect")
    if self_test:
        raise typer.Exit(regress.self_test(results, run, size))
    asked = regress.Request(
        results=results,
        run=run,
        against=against,
        size=size,
        confirm=not no_confirm,
        confirm_s=(
            None if confirm_budget is None else request.seconds(confirm_budget, "--confirm-budget")
        ),
        out=out,
        json=json,
        died=died,
    )
    raise typer.Exit(regress.execute(asked))


@app.command("accept", cls=Grouped)
def accept_command(
    case: Annotated[str, typer.Argument(metavar="CASE", help="case_id, as bench regress says it.")],
    reason: Annotated[str, option("--reason", panel=WHAT, text="Why this is the new normal.")],
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Take a case as the newest judged night found it for the new normal: a new baseline."""
    from bench import regress

    typer.echo(regress.accept(results, case, reason))


@app.command("compact", cls=Grouped, epilog=COMPACT_EXIT_CODES)
def compact_command(results: Results = DEFAULT_RESULTS) -> None:
    """Merge the records of finished runs into one file a month and machine.

    Every command reads merged and single records alike. Nothing is deleted before the
    merged file has been read back and holds every value. Safe to interrupt and to repeat.
    """
    from bench import compaction

    typer.echo(compaction.tell(compaction.compact(results)))


@app.command("list")
def list_command(
    kind: Annotated[str | None, typer.Argument(help="devices, engines, precisions, …")] = None,
) -> None:
    """Print the plug-ins of a kind, or of all kinds, with a line about each."""
    from bench import listing

    typer.echo(listing.text(kind))


@app.command("doctor")
def doctor_command() -> None:
    """Print what works here, what does not and why, and what makes numbers noisy."""
    from bench import doctor

    typer.echo(doctor.tell(doctor.examine()))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: sentences instead of tracebacks, and the exit codes of EXIT_CODES."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(standalone_mode=True)
    except BenchError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
