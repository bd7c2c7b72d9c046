"""The tags in the answers of a chat template, derived from its own renderings."""

from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from tuneline.serve.answers import probes, tool_probe
from tuneline.serve.answers.markup_reader import Markup

DEFAULT_TAGS = probes.KNOWN_THINKING_TAGS[0]
_CACHE: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, Markup]]" = WeakKeyDictionary()


def find_markup(tokenizer: PreTrainedTokenizerBase) -> Markup:
    """Return the tags of a tokenizer's chat template; derived once per template."""
    template = probes.template_text(tokenizer)
    cached = _CACHE.get(tokenizer)
    if cached is None or cached[0] != template:
        cached = _CACHE[tokenizer] = (template, _derive(tokenizer) if template else Markup())
    return cached[1]


def _derive(tokenizer: PreTrainedTokenizerBase) -> Markup:
    tags = probes.find_thinking_tags(tokenizer)
    header = probes.find_answer_header(tokenizer, tags)
    if tags and header:
        tags = (tags[0], tags[1].removesuffix(header) or tags[1])
    tool_format = tool_probe.derive_format(lambda calls: probes.render_calls(tokenizer, calls, tags))
    return Markup(*(tags or DEFAULT_TAGS), header, tool_format, shows_thinking=tags is not None)
