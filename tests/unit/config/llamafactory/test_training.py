"""Training keys of LlamaFactory: optimizers, evaluation and preference losses."""

from tests.llamafactory_files import errors_of, recipe_of
from tuneline.config.llamafactory import training


def test_galore_arguments_are_translated(project):
    train = recipe_of(finetuning_type="full", use_galore=True, galore_rank=4, galore_target="mlp").train

    assert (train.optim, train.optim_target_modules) == ("galore_adamw", ["mlp"])
    assert train.optim_args == "rank=4,update_proj_gap=200,scale=2,proj_type=std"


def test_the_pattern_for_all_targets_matches_layers_but_not_the_head():
    from transformers.trainer_utils import check_target_module_exists

    names = ["model.layers.11.self_attn.q_proj", "transformer.h.0.mlp.c_fc", "lm_head", "model.embed_tokens"]

    assert [bool(check_target_module_exists([training.IN_LAYERS], name)) for name in names] == [
        True,
        True,
        False,
        False,
    ]


def test_an_unsupported_optimizer_is_reported(project):
    assert "optim: 'adamw_anyprecision' is not supported." in errors_of(optim="adamw_anyprecision")[0]
    assert recipe_of(optim="adamw_8bit").train.optim == "adamw_bnb_8bit"


def test_optimizers_of_other_libraries_keep_their_arguments(project):
    apollo = recipe_of(finetuning_type="full", use_apollo=True, apollo_rank=4, apollo_layerwise=False).train
    badam = recipe_of(finetuning_type="full", use_badam=True, badam_switch_interval=7).train

    assert apollo.optim == "apollo_adamw"
    assert "rank=4" in apollo.optim_args
    assert badam.optim == "badam"
    assert "switch_block_every=7" in badam.optim_args
    assert (
        "badam_mode: 'ratio' is not supported"
        in errors_of(finetuning_type="full", use_badam=True, badam_mode="ratio")[0]
    )


def test_evaluation_during_training_is_translated(project):
    train = recipe_of(eval_steps=50, load_best_model_at_end=True, early_stopping_steps=3).train

    assert (train.eval_steps, train.load_best_model_at_end, train.early_stopping_patience) == (50, True, 3)
    assert "load_best_model_at_end: requires eval_steps" in errors_of(load_best_model_at_end=True)[0]
    assert "eval_steps: 0.1 is a fraction" in errors_of(eval_steps=0.1)[0]


def test_preference_losses_become_stages(project):
    pairs = {"stage": "dpo", "dataset": "pairs"}

    ipo = recipe_of(**pairs, pref_loss="ipo", pref_beta=0.3)
    orpo = recipe_of(**pairs, pref_loss="orpo", pref_beta=0.2)

    assert (ipo.stage, ipo.train.loss_type, ipo.train.beta) == ("dpo", "ipo", 0.3)
    assert ipo.registry.gate.metric == "preference_accuracy"
    assert (orpo.stage, orpo.train.beta) == ("orpo", 0.2)
    assert "pref_loss: 'kto_pair' is not supported." in errors_of(**pairs, pref_loss="kto_pair")[0]
    both = recipe_of(**pairs, pref_ftx=0.5).train
    assert both.weighted_losses() == [("sigmoid", 1.0), ("sft", 0.5)]
    assert "ld_alpha: 0.5 is not supported: stage dpo has no train.ld_alpha" in errors_of(**pairs, ld_alpha=0.5)[0]
