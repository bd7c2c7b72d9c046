"""Tasks of lm-evaluation-harness on local files: multiple choice with few-shot examples, and texts with two filters."""

import json
from pathlib import Path

CHOICES = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {train: shots.jsonl, test: colours.jsonl}}
test_split: test
fewshot_split: train
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "What colour is the {{thing}}? It is"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: mcc}
metadata: {version: 1.0}
"""

TEXTS = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
process_docs: !function helpers.add_total
doc_to_text: "What is {{a}} and {{b}}?"
doc_to_target: "{{total}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: digits, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}
metadata: {version: 1.0}
"""

HELPERS = "def add_total(docs):\n    return docs.map(lambda doc: {'total': doc['a'] + doc['b']})\n"


def write(folder: Path, num_items: int = 6) -> Path:
    """Write both tasks, their data and a group of them."""
    folder.mkdir(parents=True, exist_ok=True)
    things = ["fox", "quick answer", "brown bread", "third letter", "fourth number", "lazy dog"]
    rows = [
        {"thing": f"{things[i % 6]} {i}", "choices": ["brown", "quick or brown", "red"], "label": i % 3}
        for i in range(num_items)
    ]
    _lines(folder / "colours.jsonl", rows)
    _lines(folder / "shots.jsonl", [{**row, "thing": f"old {row['thing']}"} for row in rows])
    _lines(folder / "sums.jsonl", [{"a": i, "b": 1} for i in range(num_items)])
    (folder / "helpers.py").write_text(HELPERS)
    (folder / "colours.yaml").write_text(CHOICES)
    (folder / "sums.yaml").write_text(TEXTS)
    (folder / "both.yaml").write_text("group: both\ntask: [colours, sums]\nmetadata: {version: 1.0}\n")
    return folder


def _lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
