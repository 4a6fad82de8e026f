"""The command line: parse, one call, print. Everything heavy is imported inside the commands."""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kdexport import __version__
from kdexport.commands.bench import bench, choose
from kdexport.commands.content import briefs
from kdexport.commands.eval import evaluate
from kdexport.commands.options import (
    EXISTING,
    FiniteRange,
    allow_option,
    channels_option,
    json_option,
    recipe_of,
    set_option,
)
from kdexport.commands.serve import serve
from kdexport.commands.train import distill, finetune, import_targets, run, sweep
from kdexport.commands.write import content, write
from kdexport.errors import InputError, refusal
from kdexport.system.interrupts import how_it_ended, raised
from kdexport.system.streams import (
    forget_stdout,
    print_json,
    print_rich,
    read_stdin,
    settle_streams,
)

NUMBERS = (  # of `generate`: names, type, default, help
    ("-n --max-new-tokens", click.IntRange(1), 96, "Tokens at most."),
    ("--min-new-tokens", click.IntRange(0), 0, "No end before so many."),
    ("-t --temperature", FiniteRange(0), 0.0, "0: always the likeliest token."),
    ("--top-k", click.IntRange(0), 0, "0: all tokens."),
    ("--top-p", FiniteRange(0, 1, min_open=True), 1.0, "The likeliest that together reach it."),
    ("--min-p", FiniteRange(0, 1), 0.0, "Tokens that share as likely as the likeliest."),
    ("--repetition-penalty", FiniteRange(0.01, 100), 1.0, "Of tokens of prompt and text."),
    ("--frequency-penalty", FiniteRange(-2, 2), 0.0, "Off a logit for each time it was written."),
    ("--presence-penalty", FiniteRange(-2, 2), 0.0, "Off a logit once it was written."),
    ("--no-repeat-ngram", click.IntRange(0), 0, "No N tokens in a row twice; 0: any may."),
    ("--variants", click.IntRange(1, 64), 1, "Texts for each prompt."),
    ("--beams", click.IntRange(1, 64), 1, "Width of a beam search."),
    ("--seed", click.INT, 0, ""),
)


def number_options(command: Any) -> Any:
    """Give a command the options of NUMBERS."""
    for names, kind, default, words in reversed(NUMBERS):
        command = click.option(*names.split(), type=kind, default=default, help=words)(command)
    return command


class Commands(click.Group):
    """A group under which a reader that has enough ends the work, as no failure."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; click's own way to end at a closed pipe is exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            forget_stdout()
            raise click.exceptions.Exit(0) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="kdexport")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, verbose: bool) -> None:
    """From a big language model to a small, fast, verified one that writes marketing copy.

    \b
    kdexport run recipes/quickstart.yaml      all of it, resumable
    kdexport generate exported/quickstart-int8 --prompt "An SMS for a bakery's spring sale"

    Completion: eval "$(_KDEXPORT_COMPLETE=bash_source kdexport)" (or zsh_source, fish_source)
    """
    context.obj = {"verbose": verbose}


COMMANDS = (
    run,
    distill,
    finetune,
    sweep,
    import_targets,
    bench,
    evaluate,
    choose,
    briefs,
    serve,
    write,
    content,
)
for command in COMMANDS:
    cli.add_command(command)


@cli.command()
@click.argument("checkpoint", type=EXISTING)
@click.option("-o", "--out", type=EXISTING, help="The bundle's folder [default: exported/NAME].")
@click.option("--quantize", is_flag=True, help="Write a quantized bundle too, as NAME-SCHEME.")
@click.option("--scheme", help="int8 (default), int8-portable, int8-block or int4.")
@click.option("--calibrate", type=EXISTING, help="Texts or pairs by which to round weights.")
@click.option("--max-kl", type=FiniteRange(0, min_open=True), help="Nats that quantizing may cost.")
@click.option(
    "--kv-cache",
    type=click.Choice(["float32", "int8"]),
    help="Of its texts' keys and values [default: float32; int8 in the graph for batches].",
)
@click.option("--backend", type=click.Choice(["mobius", "optimum"]), default="mobius")
@allow_option
@json_option
def export(checkpoint: Path, quantize: bool, as_json: bool, **asked: Any) -> None:
    """Turn a model into an ONNX bundle that runs without torch.

    CHECKPOINT is a run folder (runs/NAME) or a Hugging Face folder. The graph must compute what
    the model computes, or nothing is written. For what mobius-onnx does not build there is
    --backend optimum, in an environment with optimum-onnx. A run's bundle is not written either
    where it fails the size or quality of its recipe's bench.fail_if, unless --allow is given.
    """
    from kdexport.pipeline.stages import export_checkpoint

    for name in ("scheme", "calibrate", "max_kl", "kv_cache"):
        if asked[name] is not None and not quantize:
            where = f"--{name.replace('_', '-')}"
            raise InputError("is of --quantize, which is not given", where=where)
    asked["scheme"] = (asked["scheme"] or "int8") if quantize else None
    bundles = export_checkpoint(checkpoint, **asked)
    if as_json:
        print_json([str(bundle.path) for bundle in bundles])
    else:
        from kdexport.bundle import LEDGER
        from kdexport.describe import describe_ledger

        for bundle in bundles:
            click.echo(f"{bundle.path}  {bundle.n_bytes / 1e6:.1f} MB")
            if LEDGER in bundle.manifest.files:
                print_rich(describe_ledger(bundle.file(LEDGER)))


@cli.command(context_settings={"show_default": True})
@click.argument("bundle", type=EXISTING)
@click.option("-p", "--prompt", help="What to write about, in plain words ('-' reads stdin).")
@click.option("--brief", "brief_path", type=EXISTING, help="A file of briefs, JSONL or a table.")
@channels_option
@click.option("--brand", "brand_path", type=EXISTING, help="A brand's style pack, for --brief.")
@click.option("--raw", is_flag=True, help="Give --prompt to the model as it is, without a chat.")
@number_options
@click.option("--logit-bias", multiple=True, metavar="ID=VALUE", help="Add to a token's logit.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. Repeatable.")
@click.option("--regex", metavar="PATTERN", help="Each text is one that matches, as a whole.")
@click.option("--choice", "choices", multiple=True, metavar="TEXT", help="... or one of these.")
@click.option("--schema", type=EXISTING, help="... or JSON by the schema in this file.")
@click.option("--logprobs", type=click.IntRange(0, 100), help="In --json: each token, N others.")
@click.option("--prompt-cache", type=EXISTING, help="Keep what prompts begin with in this folder.")
@click.option("--draft", type=EXISTING, help="A student's bundle guesses; the text is --exact's.")
@click.option("--exact", is_flag=True, help="Compute a token alike alone and among others.")
@click.option("--threads", type=click.IntRange(1), help="Threads [default: physical cores].")
@json_option
def generate(bundle: Path, prompt: str | None, brief_path: Path | None, **options: Any) -> None:
    """Write copy with a bundle, streaming. Needs no torch."""
    from kdexport.copywriting.text_form import form_of
    from kdexport.copywriting.writing import write_briefs, write_prompt

    if (prompt is None) == (brief_path is None):
        raise InputError("give either --prompt or --brief", where="kdexport generate")
    if brief_path is not None and options["raw"]:
        raise InputError("is of --prompt; a brief is asked as a chat", where="--raw")
    options["form"] = form_of(*(options.pop(name) for name in ("regex", "choices", "schema")))
    if prompt == "-":
        prompt = read_stdin()
    if prompt is not None and not prompt.strip():
        raise InputError("the prompt is empty", where="--prompt")
    if prompt is not None:
        for name, option in (("channels_folder", "--channels"), ("brand_path", "--brand")):
            if options.pop(name) is not None:
                raise InputError("is of --brief, which is not given", where=option)
        write_prompt(bundle, prompt, click.echo, **options)
    elif brief_path is not None:
        write_briefs(bundle, brief_path, click.echo, **options)


@cli.command()
@click.argument("bundle", type=EXISTING)
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what a bundle is: model, scheme, sizes, parents, versions."""
    from kdexport.bundle import open_bundle

    opened = open_bundle(bundle)
    if as_json:
        click.echo(opened.manifest.model_dump_json(indent=2))
    else:
        from kdexport.describe import describe_bundle

        print_rich(describe_bundle(opened))


@cli.command()
@click.argument("bundle", type=EXISTING)
@json_option
def verify(bundle: Path, as_json: bool) -> None:
    """Check every byte of a bundle against its manifest; exit code 1 when something differs."""
    from kdexport.bundle import verify_bundle

    problems = verify_bundle(bundle)
    if as_json:
        print_json({"bundle": str(bundle), "whole": not problems, "problems": problems})
    else:
        click.echo("\n".join(problems) if problems else f"{bundle}: whole")
    if problems:
        raise SystemExit(1)


@cli.command()
@click.argument("recipe", type=EXISTING, required=False)
@set_option
@click.option("--no-probes", is_flag=True, help="Only list what is there; compute nothing.")
@json_option
def doctor(recipe: Path | None, overrides: Sequence[str], no_probes: bool, as_json: bool) -> None:
    """Say what this machine has, which parts of kdexport can run on it, and which scheme suits it.

    For the scheme, ONNX Runtime's quantized products are checked and timed: some seconds, 0.5 GB.

    With a RECIPE, prove on its own teacher, student and texts that distilling computes what it
    says: losses, masks, batches, caches, vocabularies, files. Exit code 1 where a proof fails.
    """
    from kdexport.describe import describe_machine, machine_rows

    if recipe is not None:
        _prove(recipe, overrides, as_json)
        return
    if overrides:
        raise InputError("is of a recipe, and none is given", where="--set")

    rows = machine_rows(probes=not no_probes)
    print_json(rows) if as_json else print_rich(describe_machine(rows))


def _prove(recipe: Path, overrides: Sequence[str], as_json: bool) -> None:
    from kdexport.describe import describe_proofs, proof_rows
    from kdexport.pipeline.doctor import examine

    rows = proof_rows(examine(recipe_of(recipe, overrides)))
    print_json(rows) if as_json else print_rich(describe_proofs(rows))
    if not all(row["ok"] for row in rows):
        raise SystemExit(1)


def main() -> None:
    """Entry point: errors of ours become one line and an exit code, without a traceback."""
    settle_streams()
    interrupts = raised()
    try:
        cli(standalone_mode=False, prog_name="kdexport")
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.exceptions.Exit as done:
        raise SystemExit(done.exit_code) from None
    except (Exception, KeyboardInterrupt) as error:
        # An interrupt may come out as another error: a library's import that fails half-way.
        if interrupts or isinstance(error, click.Abort):
            _fail(*how_it_ended(error, interrupts))
        _end(error)


def _end(error: BaseException) -> None:
    """One line for what the user can mend; a traceback for a mistake of ours, or when asked for."""
    known = refusal(error)
    if known is None:
        raise error
    if any(flag in sys.argv[1:2] for flag in ("-v", "--verbose")):
        traceback.print_exception(error)
    try:
        sys.stdout.flush()
    except OSError:
        forget_stdout()
    _fail(str(known), known.exit_code)


def _fail(text: str, code: int) -> None:
    click.echo(f"kdexport: {' '.join(text.splitlines())}", err=True)
    raise SystemExit(code)
