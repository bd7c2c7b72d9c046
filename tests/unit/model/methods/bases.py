"""Tiny base models whose weights are large enough for errors to show, and a minimal training loop."""

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from tuneline.model.methods import families

IDS = torch.tensor([[5, 9, 30, 44, 45, 7, 8, 12, 46, 47, 3, 2]])
NEW_IDS = (44, 45, 46, 47)
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}


def llama(tied=True, dtype=torch.float32, **changes):
    """A two-layer Llama; the weights are always the same."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES | {"tie_word_embeddings": tied} | changes)
    return LlamaForCausalLM(config).to(dtype).eval()


def mixtral(**changes):
    """A mixture of four experts, with one parameter per layer for all experts."""
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2} | changes)
    return MixtralForCausalLM(config).eval()


def gpt2():
    """A GPT-2, whose layers store transposed matrices (Conv1D)."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    return GPT2LMHeadModel(config).eval()


def on_meta(build=llama, **changes):
    """A model on the meta device, without weights."""
    with torch.device("meta"):
        return build(**changes)


def logits(model, name="lora", ids=IDS):
    """Return the logits of the text, without gradients."""
    model.eval()
    with torch.no_grad():
        return families[name].logits(model, {"input_ids": ids}, torch.arange(ids.shape[1])).float()


def train(model, name, steps=3, lr=1e-2):
    """Train a few steps on one row like the trainer; return the losses."""
    family = families[name]
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    losses = []
    for step in range(steps):
        rows = family.logits(model, {"input_ids": IDS}, torch.arange(IDS.shape[1] - 1))
        loss = cross_entropy(rows.float(), IDS[0, 1:])
        penalty = family.penalty(model)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        family.after_step(model, step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def max_difference(a, b):
    """Return the largest absolute difference."""
    assert a.shape == b.shape
    return float((a - b).abs().max())


def copy_weights(model):
    """Return a copy of a model's weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def attach(name, config, build=llama, **options):
    """Return a base model with a method attached."""
    torch.manual_seed(1)
    return families[name].attach(build(), config, total_steps=6, **options)


def attach_and_train(name, config, build=llama, **options):
    """Return the model after a few training steps, in evaluation mode."""
    model = attach(name, config, build, **options)
    train(model, name)
    return model.eval()
