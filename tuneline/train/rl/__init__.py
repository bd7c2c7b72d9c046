"""Learning from rewards on a model's own answers: roles on one base, answers, and what PPO and GRPO make of them."""
