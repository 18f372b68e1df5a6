"""Names of the compared methods in tables and pictures, in the order of the rows."""

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
