"""How the compared methods are called in tables and pictures, in the order in which they stand."""

NAMES = {
    "steppo": "StepPO",
    "step_credit_token_ratio": "step credit, token ratio",
    "token_credit_step_ratio": "token credit, step ratio",
    "ppo": "PPO",
    "ppo_step_lambda": "PPO, λ a step",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "reinforce_pp": "REINFORCE++",
    "gspo": "GSPO",
    "gigpo": "GiGPO",
    "branpo": "BranPO",
    "appo": "APPO",
    "arpo": "ARPO",
}
