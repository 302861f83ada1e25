"""modelpack compare."""

from pathlib import Path

import click

from modelpack.cli.app import App, command
from modelpack.cli.places import require_trusted
from modelpack.errors import InvalidInputError
from modelpack.oci.reference import Reference


@command("compare")
@click.argument("base")
@click.argument("variant")
@click.option("--text", type=click.Path(path_type=Path), help="The text to measure on.  [default: the built-in one]")
@click.option("--gate", metavar="LIMITS", help="Fail (exit 7) beyond these: max_kld=0.1,min_top1=0.9, either or both.")
@click.option(
    "--context", type=click.IntRange(min=16), help="Tokens in a chunk.  [default: 512, or the model's if less]"
)
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.")
@click.option("--device", type=click.Choice(["cpu", "auto"]), default="cpu", show_default=True, help="auto uses a GPU.")
def compare(
    app: App,
    base: str,
    variant: str,
    text: Path | None,
    gate: str | None,
    context: int | None,
    threads: int | None,
    device: str,
) -> None:
    """Measure what a variant lost against the model that it was made from.

    BASE and VARIANT are .gguf files or models in the store. Both read the same text; perplexity, Kullback-Leibler
    divergence (0 is best) and agreement on the next token come out as llama-perplexity would print them. Another chat
    template than the base's is told, with what differs.

    \b
    modelpack compare tiny-llama-BF16.gguf tiny-llama-Q4_K_M.gguf
    modelpack compare tiny-llama:v1-bf16 tiny-llama:v1-q4_k_m --gate max_kld=0.1
    """
    from modelpack import template
    from modelpack.cli.weights import comparison_document
    from modelpack.engine.comparison import compare_models
    from modelpack.engine.task import read_text
    from modelpack.gguf_header import read_header
    from modelpack.quality import EVALUATION_TEXT, Gates

    gates = Gates.parse([gate] if gate else [])
    if gates.with_defaults or gates.by_quantization:
        raise InvalidInputError("--gate of compare wants limits: max_kld=0.1, min_top1=0.9, or both with a comma")
    weights = _find_weights(app, base), _find_weights(app, variant)
    comparison = compare_models(
        *weights,
        read_text(text or EVALUATION_TEXT),
        context=context,
        threads=threads,
        on_gpu=device == "auto",
        progress=app.progress,
    )
    if gates.common:
        gates.common.check(comparison, variant)
    headers = [read_header(path).metadata for path in weights]
    templates = [template.annotations(metadata).get(template.DIGEST_ANNOTATION) for metadata in headers]
    for line in template.difference(*headers):
        app.note(line)
    lines = [
        f"perplexity     {comparison.perplexity:.4f}, of the base {comparison.base_perplexity:.4f}",
        f"KL divergence  {comparison.mean_kld:.6f} on average, {comparison.p99_kld:.6f} at the 99th percentile",
        f"same token     {comparison.same_top:.2%} of {comparison.tokens}",
    ]
    lines.append(f"chat template  {'the same' if templates[0] == templates[1] else 'ANOTHER than that of the base'}")
    document = {"base": base, "variant": variant, **comparison_document(comparison)}
    document["template_sha256"] = {"base": templates[0], "variant": templates[1]}
    app.answer(document, "\n".join(lines))


def _find_weights(app: App, name: str) -> Path:
    """A GGUF file as it is, or the weights of a stored model that the policy allows."""
    from modelpack import catalog

    path = Path(name)
    if path.suffix == ".gguf" or path.is_file():
        return path
    stored = catalog.find_model(app.store, Reference.parse(name))
    require_trusted(app, stored.reference, stored.descriptor)
    return catalog.weights_path(app.store, stored.model)
