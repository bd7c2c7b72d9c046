"""Template selection: the chat template that a tokenizer gets, and the token that ends its turns.

A model's own template is used as it is. A tokenizer without a template gets the built-in one of its model family
(`templates/*.jinja`), or the one that the recipe names. The template is written into a copy of the tokenizer and is
part of its identity, so training, evaluation and serving all use the same template.
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tuneline import limits
from tuneline.data.chat_template import render
from tuneline.data.schema import message
from tuneline.data.tokenizer import derived_tokenizer, new_tokens
from tuneline.data.tokenizer.fast_encoder import Encoder
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.errors import DataError, NotFoundError, SourceError
from tuneline.identity import Manifest

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
MODEL_TYPES_BY_TEMPLATE = {
    "qwen": ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    "gemma": ("gemma", "gemma2", "gemma3", "gemma3_text"),
    "mistral": ("mistral", "mixtral"),
    "phi": ("phi3", "phimoe"),
    "deepseek": ("deepseek_v2", "deepseek_v3"),
    "llama3": ("llama",),
    "llama2": ("llama",),
}
"""Templates to try for a `model_type`, in this order; the first that is compatible with the vocabulary is used."""

TemplateArguments = dict[str, bool | int | str]
GENERIC_TEMPLATES = ("chatml", "default")
ANSWER_PLACEHOLDER = "\ue000answer\ue001"


def template_names() -> list[str]:
    """Return the names of the built-in templates."""
    return sorted(path.stem for path in TEMPLATE_FOLDER.glob("*.jinja"))


def select_template(
    tokenizer_manifest: Manifest, requested: str, model_type: str = "", arguments: TemplateArguments | None = None
) -> tuple[Manifest, str]:
    """Give a tokenizer the template that the recipe requests.

    Args:
        tokenizer_manifest: The base model's tokenizer.
        requested: `auto`, the name of a built-in template, or the path of a Jinja file.
        model_type: The base model's architecture, as its config names it.
        arguments: Variables to set in the template, such as `enable_thinking`; they become part of it.

    Returns:
        The manifest of the tokenizer to use, and a sentence that names the selected template and the reason.

    Raises:
        NotFoundError: There is no built-in template with this name.
        SourceError: The template is incompatible: the tokenizer lacks the token that ends its turns.
    """
    tokenizer = load_tokenizer(tokenizer_manifest)
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    if requested == "auto" and own:
        text, description = own, "chat template: the model's own"
    elif requested == "auto":
        name = _for_family(tokenizer, model_type)
        text = read_template(name)
        description = f"chat template: {name}, as the tokenizer has none and the model is {model_type or '?'}"
    else:
        text, description = read_template(requested), f"chat template: {requested}, as the recipe says"
    text = prepend_arguments(text, arguments or {})
    end = _turn_end_token(tokenizer, requested, text)
    if text == own and end == tokenizer.eos_token:
        return tokenizer_manifest, description
    return _derive(tokenizer_manifest, text, end), f"{description}; answers end with {end!r}"


def _turn_end_token(tokenizer: PreTrainedTokenizerBase, requested: str, text: str) -> str:
    """Return the token that ends the turns of a template.

    Raises:
        SourceError: There is no such token, or the template cannot render a conversation.
    """
    try:
        end = find_turn_end_token(tokenizer, text)
        fault = (
            f"{requested} ends its turns with text that is not a token of this tokenizer, so the model would not learn "
            "to stop."
        )
    except (SourceError, DataError) as error:
        end, fault = None, f"{requested} cannot be used: {error}"
    if end is None:
        compatible = ", ".join(compatible_templates(tokenizer)) or "no built-in template"
        raise SourceError(f"template: {fault} Use a compatible one: {compatible}.")
    return end


def prepend_arguments(template: str, arguments: TemplateArguments) -> str:
    """Return a template that sets its variables itself, so that training and serving use the same values."""
    head = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in sorted(arguments.items()))
    return template if template.startswith(head) else head + template


def read_template(requested: str) -> str:
    """Return the text of a template, given its name or path.

    Raises:
        NotFoundError: There is no built-in template with this name.
        SourceError: The file does not exist.
    """
    path = Path(requested) if requested.endswith(".jinja") else TEMPLATE_FOLDER / f"{requested}.jinja"
    if requested.endswith(".jinja") or path.is_file():
        try:
            return limits.read_text(path, limits.TEMPLATE_BYTES)
        except SourceError as error:
            raise SourceError(f"template: {error}") from None
    raise NotFoundError.among("template", requested, ["auto", *template_names()])


def find_turn_end_token(tokenizer: PreTrainedTokenizerBase, template: str) -> str | None:
    """Return the added token that a template writes after an answer, or None if it writes no such token.

    Raises:
        SourceError: The template omits the answer.
    """
    chat = [message("user", "question"), message("assistant", ANSWER_PLACEHOLDER)]
    original = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        text = render.apply_chat_template(chat, "", tokenizer)
    finally:
        tokenizer.chat_template = original
    if ANSWER_PLACEHOLDER not in text:
        raise SourceError("the chat template does not render message text: it is for messages with images.")
    suffix = text.rpartition(ANSWER_PLACEHOLDER)[2]
    pieces = Encoder(tokenizer, None, "tokenizers").pieces(suffix.lstrip())
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return pieces[0] if pieces and pieces[0] in added else None


def _for_family(tokenizer: PreTrainedTokenizerBase, model_type: str) -> str:
    family = [name for name, types in MODEL_TYPES_BY_TEMPLATE.items() if model_type in types]
    compatible = compatible_templates(tokenizer)
    return next((name for name in [*family, *GENERIC_TEMPLATES] if name in compatible), "default")


def compatible_templates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the built-in templates whose end of turn and other tags are tokens of the vocabulary."""
    vocabulary = tokenizer.get_vocab()
    return [
        name
        for name in template_names()
        if find_turn_end_token(tokenizer, read_template(name)) and _has_tags(name, vocabulary)
    ]


def _has_tags(name: str, vocabulary: dict[str, int]) -> bool:
    tags = {"llama3": ("<|start_header_id|>",), "chatml": ("<|im_start|>",), "qwen": ("<|im_start|>",)}
    tags |= {"gemma": ("<start_of_turn>",), "phi": ("<|end|>",), "deepseek": ("<｜User｜>",)}
    return all(tag in vocabulary for tag in tags.get(name, ()))


def _derive(tokenizer_manifest: Manifest, template: str, end: str) -> Manifest:
    """Write a copy of the tokenizer with this template, and with its end of turn as the end-of-sequence token."""

    def change(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        tokenizer.chat_template, tokenizer.eos_token = template, end
        return new_tokens.record_files(Path(tokenizer_manifest.only().location))

    return derived_tokenizer.derive_tokenizer(tokenizer_manifest, [template, end], change)
