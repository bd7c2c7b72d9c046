"""What a training starts from: base model, adapters, tokenizer with template and new tokens, checked to fit together.

Everything is checked on the shapes alone, before any weights are read.
"""

from tuneline.config.sections.evaluate import CUSTOM_KEY
from tuneline.config.sections.resolve import ResolveConfig
from tuneline.config.validation import quantization
from tuneline.data import reward_function
from tuneline.data.chat_template import selection
from tuneline.data.tokenizer import new_tokens
from tuneline.errors import RecipeError
from tuneline.identity import Manifest
from tuneline.model import device, precision, quantize, rope, source
from tuneline.model.load import grow, read_config, shape_of
from tuneline.model.methods import check_fits, families, family_of


def find(config: ResolveConfig) -> tuple[Manifest, Manifest, str]:
    """Find what a recipe starts from.

    Returns:
        The manifests `tokenizer` and `base_model`, and a sentence that says what was chosen.

    Raises:
        TunelineError: Something is missing, or method, model, tokenizer and adapters do not fit together.
    """
    tokenizer, base_model, said = locate(config)
    base_model = source.with_adapters(base_model, config.load.adapters)
    check(base_model, tokenizer, config)
    return tokenizer, base_model, "; ".join(said)


def locate(config: ResolveConfig) -> tuple[Manifest, Manifest, list[str]]:
    """Find base model and tokenizer, with template and new tokens; they are not held against the recipe.

    Returns:
        The manifests `tokenizer` and `base_model`, and what was chosen: the model's place, and the template.

    Raises:
        TunelineError: Something is missing.
    """
    own, base_model, said = source.resolve(config.model, config.load)
    tokenizer, chosen = _grown(own, source.model_type(base_model), config)
    return tokenizer, base_model, [said, chosen]


def locate_tokenizer(config: ResolveConfig) -> tuple[Manifest, list[str]]:
    """Find the tokenizer that a run would use, without the weights of its base model.

    Returns:
        The manifest `tokenizer`, and what was chosen: the model's place, and the template.

    Raises:
        TunelineError: Something is missing.
    """
    own, model_type, said = source.resolve_tokenizer(config.model, config.load)
    tokenizer, chosen = _grown(own, model_type, config)
    return tokenizer, [said, chosen]


def _grown(own: Manifest, model_type: str, config: ResolveConfig) -> tuple[Manifest, str]:
    """Add new tokens and the template."""
    grown = new_tokens.with_tokens(own, config.load.new_tokens, config.load.new_special_tokens)
    return selection.with_template(grown, config.template, model_type, config.template_arguments)


def check(base_model: Manifest, tokenizer: Manifest, config: ResolveConfig) -> None:
    """Hold a recipe against the shapes of its base model.

    Raises:
        RecipeError: A type that the device lacks, a target that does not exist, a rank above the matrix, positions
            beyond the model's, full tuning of a quantized model, an adapter for another base.
    """
    about = read_config(source.folder_of(base_model), config.load)
    family = families[config.method.type]
    _import_functions(config)
    precision.check(config.load.dtype)
    precision.for_answers(config.answers_dtype)
    comes = quantize.kind_of(about.to_dict())
    asked = config.load.quantization.type if config.load.quantization else None
    quantization.check_once(comes, asked)
    for kind, key in ((comes, "model"), (asked, "load.quantization")):
        quantization.check_trains(kind, trains_all=family.kind == "full", device=device.kind(), key=key)
    if config.load.rope_scaling:
        rope.scaled(about, config.load.rope_scaling, config.max_length)
    else:
        rope.check_length(about, config.max_length)
    shape = shape_of(about, trust_remote_code=config.load.trust_remote_code)
    new_ids = grow(shape, source.folder_of(tokenizer))
    for adapter in config.load.adapters:
        check_fits(shape, adapter.path)
        if adapter.use == "reward":
            source.check_same_base(base_model, adapter.path)
        if adapter.use == "merge" and not families[family_of(adapter.path)].mergeable:
            raise RecipeError(
                f"load.adapters: {adapter.path} was made by {family_of(adapter.path)}, which has no merged form. Set "
                "use: continue, or leave it out."
            )
    if any(adapter.use == "continue" for adapter in config.load.adapters):
        family.check_continues(source.adapters_of(base_model)[-1], config.method, shape)
    else:
        family.check(shape, config.method, new_ids=new_ids)


def _import_functions(config: ResolveConfig) -> None:
    if config.reward_function:
        reward_function.load_reward(config.reward_function)
    for name in config.metrics:
        reward_function.load_reward(name, CUSTOM_KEY)
