"""What a training starts from: base model, adapters, tokenizer with template and new tokens, checked to fit together.

Everything is checked on the shapes alone, before any weights are read.
"""

from tuneline.config.sections.evaluate import METRICS_KEY
from tuneline.config.sections.resolve import ResolveConfig
from tuneline.config.validation import quantization
from tuneline.data import reward_function
from tuneline.data.chat_template import selection
from tuneline.data.tokenizer import new_tokens
from tuneline.errors import RecipeError
from tuneline.identity import Manifest
from tuneline.model import device, precision, quantize, rope, source
from tuneline.model.load import add_new_tokens, build_meta_model, read_config
from tuneline.model.methods import adapter_method, check_fits, families


def resolve_inputs(config: ResolveConfig) -> tuple[Manifest, Manifest, str]:
    """Find what a recipe starts from.

    Returns:
        The manifests `tokenizer` and `base_model`, and a sentence that says what was chosen.

    Raises:
        TunelineError: Something is missing, or method, model, tokenizer and adapters do not fit together.
    """
    tokenizer, base_model, said = locate_model(config)
    base_model = source.add_adapters(base_model, config.load.adapters)
    check_inputs(base_model, tokenizer, config)
    return tokenizer, base_model, "; ".join(said)


def locate_model(config: ResolveConfig) -> tuple[Manifest, Manifest, list[str]]:
    """Find base model and tokenizer, with template and new tokens; they are not held against the recipe.

    Returns:
        The manifests `tokenizer` and `base_model`, and what was chosen: the model's place, and the template.

    Raises:
        TunelineError: Something is missing.
    """
    own, base_model, said = source.resolve_model(config.model, config.load)
    tokenizer, chosen = _add_tokens_and_template(own, source.model_type(base_model), config)
    return tokenizer, base_model, [said, chosen]


def locate_tokenizer(config: ResolveConfig) -> tuple[Manifest, list[str]]:
    """Find the tokenizer that a run would use, without the weights of its base model.

    Returns:
        The manifest `tokenizer`, and what was chosen: the model's place, and the template.

    Raises:
        TunelineError: Something is missing.
    """
    own, model_type, said = source.resolve_tokenizer(config.model, config.load)
    tokenizer, chosen = _add_tokens_and_template(own, model_type, config)
    return tokenizer, [said, chosen]


def _add_tokens_and_template(own: Manifest, model_type: str, config: ResolveConfig) -> tuple[Manifest, str]:
    """Add new tokens and the template."""
    grown = new_tokens.add_new_tokens(own, config.load.new_tokens, config.load.new_special_tokens)
    return selection.select_template(grown, config.template, model_type, config.template_arguments)


def check_inputs(base_model: Manifest, tokenizer: Manifest, config: ResolveConfig) -> None:
    """Hold a recipe against the shapes of its base model.

    Raises:
        RecipeError: A type that the device lacks, a target that does not exist, a rank above the matrix, positions
            beyond the model's, full tuning of a quantized model, an adapter for another base.
    """
    about = read_config(source.manifest_folder(base_model), config.load)
    family = families[config.method.type]
    _import_functions(config)
    precision.check_dtype(config.load.dtype)
    precision.inference_dtype(config.answers_dtype)
    comes = quantize.quantization_kind(about.to_dict())
    asked = config.load.quantization.type if config.load.quantization else None
    quantization.check_not_quantized(comes, asked)
    for kind, key in ((comes, "model"), (asked, "load.quantization")):
        quantization.check_trainable(kind, trains_all=family.kind == "full", device=device.device_type(), key=key)
    if config.load.rope_scaling:
        rope.scale_rope(about, config.load.rope_scaling, config.max_length)
    else:
        rope.check_max_length(about, config.max_length)
    shape = build_meta_model(about, trust_remote_code=config.load.trust_remote_code)
    new_ids = add_new_tokens(shape, source.manifest_folder(tokenizer))
    for adapter in config.load.adapters:
        check_fits(shape, adapter.path)
        if adapter.use == "reward":
            source.check_same_base(base_model, adapter.path)
        if adapter.use == "merge" and not families[adapter_method(adapter.path)].mergeable:
            raise RecipeError(
                f"load.adapters: {adapter.path} was made by {adapter_method(adapter.path)}, which has no merged form. Set "
                "use: continue, or leave it out."
            )
    if any(adapter.use == "continue" for adapter in config.load.adapters):
        family.check_continuation(source.adapter_folders(base_model)[-1], config.method, shape)
    else:
        family.check(shape, config.method, new_ids=new_ids)


def _import_functions(config: ResolveConfig) -> None:
    if config.reward_function:
        reward_function.load_reward_function(config.reward_function)
    for name in config.metrics:
        reward_function.load_reward_function(name, METRICS_KEY)
