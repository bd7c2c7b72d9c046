"""Import LlamaFactory configuration files: each key is mapped, reported as different, ignored or rejected.

Keys are those of LlamaFactory 0.9.5 and of the training arguments of transformers. LlamaFactory's names are only used
in this package.
"""

from tuneline.config.llamafactory.serving import ImportedServing, translate_serving
from tuneline.config.llamafactory.translate import ImportedConfig, translate
from tuneline.config.parsing.foreign_config import is_llamafactory_config

__all__ = ["ImportedConfig", "ImportedServing", "is_llamafactory_config", "translate", "translate_serving"]
