"""Find and check the inputs of a training: base model, adapters, and tokenizer with chat template and new tokens.

All checks run on the meta device, before any weights are loaded.
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
    """Find the inputs of a recipe and check that they fit together.

    Returns:
        The manifests `tokenizer` and `base_model`, and a description of the choices.

    Raises:
        TunelineError: An input is missing, or method, model, tokenizer and adapters do not fit together.
    """
    tokenizer, base_model, notes = locate_model(config)
    base_model = source.add_adapters(base_model, config.load.adapters)
    check_inputs(base_model, tokenizer, config)
    return tokenizer, base_model, "; ".join(notes)


def locate_model(config: ResolveConfig) -> tuple[Manifest, Manifest, list[str]]:
    """Find base model and tokenizer with chat template and new tokens, without checking them against the recipe.

    Returns:
        The manifests `tokenizer` and `base_model`, and the choices: source of the model, and template.

    Raises:
        TunelineError: The model or a template is missing.
    """
    base_tokenizer, base_model, source_note = source.resolve_model(config.model, config.load)
    tokenizer, template_note = _add_tokens_and_template(base_tokenizer, source.model_type(base_model), config)
    return tokenizer, base_model, [source_note, template_note]


def locate_tokenizer(config: ResolveConfig) -> tuple[Manifest, list[str]]:
    """Find the tokenizer of a run without the weights of its base model.

    Returns:
        The manifest `tokenizer`, and the choices: source of the model, and template.

    Raises:
        TunelineError: The model or a template is missing.
    """
    base_tokenizer, model_type, source_note = source.resolve_tokenizer(config.model, config.load)
    tokenizer, template_note = _add_tokens_and_template(base_tokenizer, model_type, config)
    return tokenizer, [source_note, template_note]


def _add_tokens_and_template(tokenizer: Manifest, model_type: str, config: ResolveConfig) -> tuple[Manifest, str]:
    """Add new tokens and the chat template to a tokenizer."""
    extended = new_tokens.add_new_tokens(tokenizer, config.load.new_tokens, config.load.new_special_tokens)
    return selection.select_template(extended, config.template, model_type, config.template_arguments)


def check_inputs(base_model: Manifest, tokenizer: Manifest, config: ResolveConfig) -> None:
    """Check a recipe against its base model on the meta device.

    Raises:
        RecipeError: The device lacks a dtype, a target module does not exist, a rank exceeds a matrix, rows exceed the
            model's positions, a quantized model would be trained fully, or an adapter belongs to a different base
            model.
    """
    model_config = read_config(source.manifest_folder(base_model), config.load)
    family = families[config.method.type]
    _import_functions(config)
    precision.check_dtype(config.load.dtype)
    precision.inference_dtype(config.answers_dtype)
    model_kind = quantize.quantization_kind(model_config.to_dict())
    requested_kind = config.load.quantization.type if config.load.quantization else None
    quantization.check_not_quantized(model_kind, requested_kind)
    for kind, key in ((model_kind, "model"), (requested_kind, "load.quantization")):
        quantization.check_trainable(kind, trains_all=family.kind == "full", device=device.device_type(), key=key)
    if config.load.rope_scaling:
        rope.scale_rope(model_config, config.load.rope_scaling, config.max_length)
    else:
        rope.check_max_length(model_config, config.max_length)
    meta_model = build_meta_model(model_config, trust_remote_code=config.load.trust_remote_code)
    new_ids = add_new_tokens(meta_model, source.manifest_folder(tokenizer))
    for adapter in config.load.adapters:
        check_fits(meta_model, adapter.path)
        if adapter.use == "reward":
            source.check_same_base(base_model, adapter.path)
        method = adapter_method(adapter.path)
        if adapter.use == "merge" and not families[method].mergeable:
            raise RecipeError(
                f"load.adapters: {adapter.path} was trained with {method}, which cannot be merged. Set use: continue, "
                "or remove the adapter."
            )
    if any(adapter.use == "continue" for adapter in config.load.adapters):
        family.check_continuation(source.adapter_folders(base_model)[-1], config.method, meta_model)
    else:
        family.check(meta_model, config.method, new_ids=new_ids)


def _import_functions(config: ResolveConfig) -> None:
    if config.reward_function:
        reward_function.load_reward_function(config.reward_function)
    for name in config.metrics:
        reward_function.load_reward_function(name, METRICS_KEY)
