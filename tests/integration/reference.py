"""Reference implementations with transformers, peft and mlflow that do not use Tuneline.

Each function starts from a registered folder and plain text, so that a bug of Tuneline cannot hide itself.
"""

import json
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import pyarrow.parquet
import torch
from peft import PeftModel
from safetensors.torch import load_file
from scipy.stats import binomtest
from torch.nn.functional import gelu, linear
from transformers import AutoModelForCausalLM, AutoTokenizer


def champion_folder(name):
    """Return the folder of a model's champion, found through MLflow."""
    return folder_of(mlflow.MlflowClient().get_model_version_by_alias(name, "champion"))


def folder_of(version):
    """Return the folder of a version of MLflow's registry."""
    return Path(unquote(urlsplit(version.source).path)) / "files"


def champion_run(name):
    """Return the MLflow run that registered a model's champion."""
    client = mlflow.MlflowClient()
    return client.get_run(client.get_model_version_by_alias(name, "champion").run_id)


def stored_scores(run_id, benchmark="held_out", side="model"):
    """Return a benchmark's scores that an MLflow run stores: one row per item, with its metrics as a mapping."""
    with tempfile.TemporaryDirectory() as scratch:
        path = mlflow.MlflowClient().download_artifacts(run_id, f"evaluation/{side}.parquet", scratch)
        rows = pyarrow.parquet.read_table(path).to_pylist()
    return [row | {"metrics": json.loads(row["metrics"])} for row in rows if row["benchmark"] == benchmark]


def load(folder):
    """Load a registered folder: a full model, or an adapter with its base model in `base_model/`."""
    folder = Path(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if (folder / "adapter_config.json").is_file():
        base = AutoModelForCausalLM.from_pretrained(folder / "base_model", dtype=torch.float32)
        return PeftModel.from_pretrained(base, folder).eval(), tokenizer
    if (folder / "bottleneck_config.json").is_file():
        return _bottleneck(folder), tokenizer
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


def _bottleneck(folder):
    """Add `x + up(gelu(down(x)))` after the modules that the weights name (Houlsby et al. 2019, arXiv:1902.00751)."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base_model", dtype=torch.float32)
    weights = load_file(folder / "bottleneck.safetensors")

    def hook(network):
        def run(module, inputs, output):
            x = output[0] if isinstance(output, tuple) else output
            inner = gelu(linear(x, weights[f"{network}.down.weight"], weights[f"{network}.down.bias"]))
            x = x + linear(inner, weights[f"{network}.up.weight"], weights[f"{network}.up.bias"])
            return (x, *output[1:]) if isinstance(output, tuple) else x

        return run

    for network in {name.rsplit(".", 2)[0] for name in weights}:
        model.get_submodule(network.removesuffix(".bottleneck")).register_forward_hook(hook(network))
    return model.eval()


@torch.inference_mode()
def log_likelihood(model, prompt_ids, answer_ids):
    """Return the mean log-probability (nats per token) of an answer after its prompt."""
    ids = torch.tensor([[*prompt_ids, *answer_ids]])
    logits = model(input_ids=ids, use_cache=False).logits[0, -len(answer_ids) - 1 : -1].float()
    return float(logits.log_softmax(-1).gather(1, torch.tensor(answer_ids)[:, None]).mean())


def text_log_likelihood(model, tokenizer, text):
    """Return the mean log-probability of a text and its end token, without the first token."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return log_likelihood(model, ids[:1], ids[1:])


def answer_log_likelihood(model, tokenizer, prompt, answer):
    """Return the mean log-probability of an answer to a list of messages, including ChatML's stop token."""
    prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    return log_likelihood(model, prompt_ids, tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"])


@torch.inference_mode()
def reward(folder, model, tokenizer, prompt, answer):
    """Return the reward of an answer: the output of the registered value head at the last token."""
    head = load_file(Path(folder) / "value_head.safetensors")
    prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = prompt_ids + tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
    hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states[-1][0, -1]
    return float(hidden @ head["summary.weight"][0] + head["summary.bias"][0])


@torch.inference_mode()
def generate(model, tokenizer, messages, max_new_tokens):
    """Return the greedy answer to a chat."""
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output_ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0)
    return tokenizer.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@torch.inference_mode()
def predict_letter(model, tokenizer, prompt, letters="ABCD"):
    """Return the letter with the largest logit after a prompt."""
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    logits = model(input_ids=ids).logits[0, -1]
    tokens = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][-1] for letter in letters]
    return letters[int(logits[tokens].argmax())]


def mcnemar(before, after):
    """Return the one-sided p-value of McNemar's exact test that accuracy increased."""
    won, lost = (sum(a - b == sign for a, b in zip(after, before, strict=True)) for sign in (1, -1))
    return binomtest(won, won + lost, alternative="greater").pvalue
