"""Reinforcement learning: rollouts, rewards, PPO and GRPO, with all models as adapters on one base."""
