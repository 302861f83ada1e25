"""The options of build that say how weights are made: converter, quantization, importance matrix, gates."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelpack.cli.app import App

if TYPE_CHECKING:
    from modelpack.converter import ConverterChoice
    from modelpack.engine.comparison import Comparison
    from modelpack.upstream import UpstreamEnvironment
    from modelpack.weights import WeightsOptions

_OPTIONS = (
    click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix: a file of llama-imatrix."),
    click.option("--imatrix-from", metavar="TEXT", help="Compute one on this text file, or on the 'builtin' text."),
    click.option(
        "--gate",
        "gates",
        multiple=True,
        metavar="[QUANT:]LIMITS",
        help="Measure variants, and fail (exit 7) beyond max_kld=N,min_top1=N or the 'default' limits.",
    ),
    click.option("--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE", help="Type of some tensors."),
    click.option("--output-tensor-type", metavar="TYPE", help="Type of the output tensor."),
    click.option("--token-embedding-type", metavar="TYPE", help="Type of the token embeddings."),
    click.option("--pure", is_flag=True, help="One type for all tensors instead of a mixture."),
    click.option(
        "--allow-requantize", is_flag=True, help="Quantize also what is quantized already: weights lose twice."
    ),
    click.option(
        "--converter",
        type=click.Choice(["auto", "native", "upstream"]),
        default="auto",
        show_default=True,
        help="Whose converter: modelpack's own, or llama.cpp's (see modelpack converter).",
    ),
    click.option("--trust-remote-code", is_flag=True, help="Let llama.cpp's converter run code of the checkpoint."),
    click.option(
        "--allow-tokenizer-mismatch",
        is_flag=True,
        help="Go on where llama.cpp tokenizes otherwise than the checkpoint; the artifact says so.",
    ),
    click.option("--deep", is_flag=True, help="Look at every weight of a checkpoint; a NaN or an infinity is refused."),
)


def weights_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options; they arrive as keyword arguments, for the two functions below."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def parse_weights(arguments: dict[str, Any]) -> "WeightsOptions":
    """Raises InvalidInputError, UnknownQuantizationError."""
    from modelpack.quality import Gates
    from modelpack.quantize import Recipe, parse_tensor_rule, parse_tensor_type
    from modelpack.weights import WeightsOptions

    output, embedding = arguments["output_tensor_type"], arguments["token_embedding_type"]
    recipe = Recipe(
        tensor_types=tuple(parse_tensor_rule(text) for text in arguments["tensor_types"]),
        output_tensor_type=parse_tensor_type(output) if output else None,
        token_embedding_type=parse_tensor_type(embedding) if embedding else None,
        pure=arguments["pure"],
        allow_requantize=arguments["allow_requantize"],
    )
    return WeightsOptions(
        recipe=recipe,
        imatrix=arguments["imatrix"],
        imatrix_text=arguments["imatrix_from"],
        gates=Gates.parse(arguments["gates"]),
    )


def choose_converter(app: App, arguments: dict[str, Any]) -> "ConverterChoice":
    from modelpack.converter import ConverterChoice

    return ConverterChoice(
        arguments["converter"],
        upstream_environment(app),
        arguments["trust_remote_code"],
        arguments["deep"],
        arguments["allow_tokenizer_mismatch"],
    )


def upstream_environment(app: App) -> "UpstreamEnvironment":
    """Where llama.cpp's converter is installed: beside the store of this person, unless told otherwise."""
    from platformdirs import user_data_path

    from modelpack.upstream import UpstreamEnvironment

    environment = app.settings.environment
    if named := environment.get("MODELPACK_CONVERTER_DIR"):
        return UpstreamEnvironment(Path(named).expanduser().absolute())
    data = environment.get("XDG_DATA_HOME")
    name = "modelpack-converter"
    return UpstreamEnvironment(Path(data) / name if data else user_data_path(name, appauthor=False))


def comparison_document(comparison: "Comparison") -> dict[str, object]:
    """As ``compare`` and ``build`` answer it."""
    return {
        "perplexity": comparison.perplexity,
        "base_perplexity": comparison.base_perplexity,
        "mean_kld": comparison.mean_kld,
        "p99_kld": comparison.p99_kld,
        "same_top": comparison.same_top,
        "tokens": comparison.tokens,
        "context": comparison.context,
    }
