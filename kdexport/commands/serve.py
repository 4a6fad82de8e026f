"""The command that serves a bundle. Everything heavy is imported inside it."""

from pathlib import Path
from typing import Any

import click

from kdexport.commands.options import EXISTING, FiniteRange, channels_option
from kdexport.errors import require_extras


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=EXISTING)
@click.option("--host", default="127.0.0.1", help="Others than this machine's want a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: a free one.")
@click.option("--threads", type=click.IntRange(1), help="Threads [default: physical cores].")
@click.option("--max-batch", type=click.IntRange(1, 1024), default=32, help="Texts at a time.")
@click.option("--queue", type=click.IntRange(0), default=64, help="Texts that may wait besides.")
@click.option("--timeout", type=FiniteRange(0, min_open=True), default=120, help="Seconds each.")
@click.option("--drain", type=FiniteRange(0), default=30, help="Seconds left after SIGTERM.")
@channels_option
@click.option("--brand", "brand_path", type=EXISTING, help="A brand's style pack, for /v1/copy.")
@click.option("--api-key-env", metavar="NAME", help="The variable with the key to ask for.")
def serve(bundle: Path, **options: Any) -> None:
    """Answer over HTTP as OpenAI's API does, many requests in one batch. Needs no torch.

    \b
    /                                                    a page for briefs and their copy
    /v1/completions, /v1/chat/completions, /v1/models    as OpenAI's
    /v1/copy                                             variants of copy for a brief
    /health, /metrics                                    for those who watch it

    docs/serving.md has what each takes.
    """
    require_extras("serve")
    from kdexport.serve.server import serve as answer

    answer(bundle, lambda line: click.echo(f"kdexport: {line}", err=True), **options)
