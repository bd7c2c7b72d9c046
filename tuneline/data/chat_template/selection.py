"""Chat templates: which one a tokenizer gets, and the token that ends its turns.

The model's own template is the truth. A model without one gets that of its family from a small catalogue
(`templates/*.jinja`), or the one that the recipe names. The template then belongs to the tokenizer: it is written into
a copy of it, whose bytes are its identity, and training, evaluation and serving all read it there.
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
"""Templates to try for a `model_type`, in this order; the first that the vocabulary can write is taken."""

TemplateArguments = dict[str, bool | int | str]
GENERIC_TEMPLATES = ("chatml", "default")
ANSWER_PLACEHOLDER = "\ue000answer\ue001"


def template_names() -> list[str]:
    """Return the names of the catalogue."""
    return sorted(path.stem for path in TEMPLATE_FOLDER.glob("*.jinja"))


def select_template(
    tokenizer_manifest: Manifest, wanted: str, model_type: str = "", arguments: TemplateArguments | None = None
) -> tuple[Manifest, str]:
    """Give a tokenizer the template that the recipe wants.

    Args:
        tokenizer_manifest: The base model's tokenizer.
        wanted: `auto`, a name of the catalogue, or the path of a Jinja file.
        model_type: The base model's architecture, as its config names it.
        arguments: Variables that the template is to see, like `enable_thinking`; they become part of it.

    Returns:
        The manifest of the tokenizer to use from here on, and a sentence that says what was chosen and why.

    Raises:
        NotFoundError: The catalogue lacks the name.
        SourceError: No template fits: the tokenizer lacks the tokens that end its turns.
    """
    tokenizer = load_tokenizer(tokenizer_manifest)
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    if wanted == "auto" and own:
        text, said = own, "chat template: the model's own"
    elif wanted == "auto":
        name = _for_family(tokenizer, model_type)
        text, said = (
            read_template(name),
            f"chat template: {name}, as the tokenizer has none and the model is {model_type or '?'}",
        )
    else:
        text, said = read_template(wanted), f"chat template: {wanted}, as the recipe says"
    text = prepend_arguments(text, arguments or {})
    end = _end(tokenizer, wanted, text)
    if text == own and end == tokenizer.eos_token:
        return tokenizer_manifest, said
    return _derived(tokenizer_manifest, text, end), f"{said}; answers end with {end!r}"


def _end(tokenizer: PreTrainedTokenizerBase, wanted: str, text: str) -> str:
    """Return the token that ends the turns of a template.

    Raises:
        SourceError: There is none, or the template cannot write a conversation.
    """
    try:
        end = find_turn_end_token(tokenizer, text)
        fault = (
            f"{wanted} ends its turns with text that is no token of this tokenizer, so a model would not learn to stop."
        )
    except (SourceError, DataError) as error:
        end, fault = None, f"{wanted} cannot be used: {error}"
    if end is None:
        known = ", ".join(compatible_templates(tokenizer)) or "none of the catalogue"
        raise SourceError(f"template: {fault} Take one of those that fit: {known}.")
    return end


def prepend_arguments(template: str, arguments: TemplateArguments) -> str:
    """Return a template that sets its own variables, so that training and serving cannot see different ones."""
    head = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in sorted(arguments.items()))
    return template if template.startswith(head) else head + template


def read_template(wanted: str) -> str:
    """Return the text of a template by name or path.

    Raises:
        NotFoundError: The catalogue lacks the name.
        SourceError: There is no such file.
    """
    path = Path(wanted) if wanted.endswith(".jinja") else TEMPLATE_FOLDER / f"{wanted}.jinja"
    if wanted.endswith(".jinja") or path.is_file():
        try:
            return limits.read_text(path, limits.TEMPLATE_BYTES)
        except SourceError as error:
            raise SourceError(f"template: {error}") from None
    raise NotFoundError.among("template", wanted, ["auto", *template_names()])


def find_turn_end_token(tokenizer: PreTrainedTokenizerBase, template: str) -> str | None:
    """Return the added token that a template puts behind an answer, or nothing where it puts none there.

    Raises:
        SourceError: The template leaves the answer out.
    """
    chat = [message("user", "question"), message("assistant", ANSWER_PLACEHOLDER)]
    before = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        text = render.apply_chat_template(chat, "", tokenizer)
    finally:
        tokenizer.chat_template = before
    if ANSWER_PLACEHOLDER not in text:
        raise SourceError("the chat template leaves out what is said: it is for messages with images.")
    behind = text.rpartition(ANSWER_PLACEHOLDER)[2]
    pieces = Encoder(tokenizer, None, "tokenizers").pieces(behind.lstrip())
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return pieces[0] if pieces and pieces[0] in added else None


def _for_family(tokenizer: PreTrainedTokenizerBase, model_type: str) -> str:
    family = [name for name, types in MODEL_TYPES_BY_TEMPLATE.items() if model_type in types]
    fits = compatible_templates(tokenizer)
    return next((name for name in [*family, *GENERIC_TEMPLATES] if name in fits), "default")


def compatible_templates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the templates of the catalogue that the vocabulary can write: the end of their turns, and other tags."""
    known = tokenizer.get_vocab()
    return [
        name
        for name in template_names()
        if find_turn_end_token(tokenizer, read_template(name)) and _knows_tags(name, known)
    ]


def _knows_tags(name: str, vocabulary: dict[str, int]) -> bool:
    tags = {"llama3": ("<|start_header_id|>",), "chatml": ("<|im_start|>",), "qwen": ("<|im_start|>",)}
    tags |= {"gemma": ("<start_of_turn>",), "phi": ("<|end|>",), "deepseek": ("<｜User｜>",)}
    return all(tag in vocabulary for tag in tags.get(name, ()))


def _derived(tokenizer_manifest: Manifest, template: str, end: str) -> Manifest:
    """Write a copy of the tokenizer with this template, whose end of sequence is the end of its turns."""

    def change(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        tokenizer.chat_template, tokenizer.eos_token = template, end
        return new_tokens.record_files(Path(tokenizer_manifest.only().location))

    return derived_tokenizer.derive_tokenizer(tokenizer_manifest, [template, end], change)
