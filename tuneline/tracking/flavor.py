"""MLflow flavor of a model directory: its `MLmodel` file, and the loader that the file names.

Writing it neither copies nor loads the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline.errors import DataError

FILES = "files"
COLUMNS = ("messages", "prompt", "text")
MAX_TOKENS = 64
"""Default number of tokens of an answer."""

EXAMPLE = '{"messages": [{"role": "user", "content": "Hello"}]}'


class ChatModel:
    """A model that answers chats, as `mlflow.pyfunc.load_model` wraps it."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer

        from tuneline.model.load import load_model

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = load_model(Path(folder)).eval()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> str | list[str]:
        """Answer greedily, one answer per row.

        Args:
            model_input: A chat, `{"messages": [{"role", "content"}, ...]}`, or rows with one of these columns:
                `messages`, a chat; `prompt`, a user message; `text`, a text to continue. Rows are a
                DataFrame, a mapping of columns, a list of records, or a list of prompts.
            params: `max_tokens`, default 64.

        Returns:
            The answer to one chat, or a list of answers for rows.

        Raises:
            DataError: A row has none of the columns, or `messages` is not a chat.
        """
        max_tokens = int((params or {}).get("max_tokens", MAX_TOKENS))
        if _is_one(model_input):
            return self._answer(model_input, max_tokens)
        return [self._answer(row, max_tokens) for row in to_rows(model_input)]

    def _answer(self, row: Any, max_tokens: int) -> str:
        inputs = self._encode(row).to(self.model.device)
        output = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        text = self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return str(text).strip()

    def _encode(self, row: Any) -> Any:
        name, value = parse_request(row)
        if name == "messages":
            return self.tokenizer.apply_chat_template(
                value, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        return self.tokenizer(value, return_tensors="pt")


def to_rows(model_input: Any) -> list[Any]:
    """Return the rows of a request to `mlflow models serve`: a DataFrame, an array, columns, records or prompts."""
    if hasattr(model_input, "to_dict") and hasattr(model_input, "columns"):
        return list(model_input.to_dict(orient="records"))
    if isinstance(model_input, Mapping):
        return _from_columns({str(name): _to_list(column) for name, column in model_input.items()})
    values = _to_list(model_input)
    return values if isinstance(values, list) else [values]


def parse_request(row: Any) -> tuple[str, Any]:
    """Return the request of a row: `messages` and a chat, or `text` and a text.

    Raises:
        DataError: The row has no request.
    """
    record = row if isinstance(row, Mapping) else {"prompt": row}
    name = next((name for name in COLUMNS if _has_value(record.get(name))), None)
    if name is None:
        raise DataError(
            f"A row has the columns {sorted(map(str, record))} and none of {list(COLUMNS)}, like {EXAMPLE}."
        )
    value = _to_list(record[name])
    if name == "messages":
        return name, _chat(value)
    if not isinstance(value, str):
        raise DataError(f"{name}: got {value!r}, expected a text.")
    return ("text", value) if name == "text" else ("messages", [{"role": "user", "content": value}])


def _is_one(model_input: Any) -> bool:
    """Return whether an input is a single chat or text instead of rows."""
    if isinstance(model_input, str):
        return True
    if not isinstance(model_input, Mapping):
        return False
    values = {name: _to_list(model_input[name]) for name in COLUMNS if name in model_input}
    messages = values.get("messages")
    chat = isinstance(messages, list) and all(isinstance(message, Mapping) for message in messages)
    return chat or any(isinstance(value, str) for value in values.values())


def _from_columns(columns: dict[str, Any]) -> list[dict[str, Any]]:
    lists = {name: column if isinstance(column, list) else [column] for name, column in columns.items()}
    length = max((len(column) for column in lists.values()), default=0)
    if any(len(column) != length for column in lists.values()):
        raise DataError(
            f"Columns have different lengths: { {name: len(column) for name, column in lists.items()} }. "
            "Give columns of equal length."
        )
    return [{name: column[i] for name, column in lists.items()} for i in range(length)]


def _chat(value: Any) -> list[Any]:
    """Return a chat; in a CSV file it is JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    chat = value if isinstance(value, list) else []
    if not chat or not all(isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in chat):
        raise DataError(f"messages: got {value!r}, expected a list of role and content, like {EXAMPLE}.")
    return chat


def _has_value(value: Any) -> bool:
    """Return whether a value is present; pandas represents missing values by NaN."""
    return value is not None and value == value if isinstance(value, float) else value is not None


def _to_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _load_pyfunc(path: str) -> ChatModel:
    """Load the model; MLflow calls this function by name."""
    return ChatModel(path)


def mlmodel_text() -> str:
    """Return the `MLmodel` file for a folder whose weights are in `files/`.

    Its signature has only parameters: MLflow drops parameters that a signature lacks, and would reject rows with
    columns that it lacks.
    """
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    parameters = ParamSchema([ParamSpec("max_tokens", DataType.long, MAX_TOKENS)])
    model = Model(signature=ModelSignature(params=parameters))
    mlflow.pyfunc.add_to_model(model, loader_module=__name__, data=FILES)
    return str(model.to_yaml())


def write_mlmodel(folder: Path) -> None:
    """Write `MLmodel` to a folder that contains `files/`."""
    (folder / "MLmodel").write_text(mlmodel_text())
