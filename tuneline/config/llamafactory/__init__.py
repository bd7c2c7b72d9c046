"""LlamaFactory's configuration files, read as they are: each key is taken, told as different, ignored or refused.

Keys are those of LlamaFactory 0.9.5 and of the training arguments of transformers. Its names stay in this room.
"""

from tuneline.config.llamafactory.translate import ImportedConfig, translate
from tuneline.config.parsing.foreign_config import is_llamafactory_config

__all__ = ["Imported", "is_theirs", "translate"]
