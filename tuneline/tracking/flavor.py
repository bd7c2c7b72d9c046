"""Make a model directory an MLflow model: an `MLmodel` file beside it, and the loader that the file names.

Nothing is copied and nothing is loaded to write it, whatever the size of the weights.
"""

from pathlib import Path
from typing import Any

FILES = "files"


class ChatModel:
    """Answers chats; what `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer

        from tuneline.model.load import load_model

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = load_model(Path(folder)).eval()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> str:
        """Answer one chat greedily.

        Args:
            model_input: `{"messages": [{"role", "content"}, ...]}`.
            params: `max_tokens`, 64 where it is not given.
        """
        inputs = self.tokenizer.apply_chat_template(
            model_input["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = self.model.generate(**inputs, max_new_tokens=(params or {}).get("max_tokens", 64), do_sample=False)
        text = self.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return str(text).strip()


def _load_pyfunc(path: str) -> ChatModel:
    """Load the model; MLflow calls this by its name."""
    return ChatModel(path)


def mlmodel_text() -> str:
    """Return the `MLmodel` file for a folder whose weights lie in `files/` beside it."""
    import mlflow.pyfunc
    from mlflow.models import Model

    model = Model()
    mlflow.pyfunc.add_to_model(model, loader_module=__name__, data=FILES)
    return str(model.to_yaml())


def write_mlmodel(folder: Path) -> None:
    """Write `MLmodel` into a folder that holds `files/`."""
    (folder / "MLmodel").write_text(mlmodel_text())
