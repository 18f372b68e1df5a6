"""How well does a small model do the household tasks of ALFWorld, before and after StepPO?

python benchmarks/household.py --save              trains configs/household.yaml (CPU, up to 45 min)
python benchmarks/household.py --save --resume     continues an interrupted run
python benchmarks/household.py --config configs/household_gpu.yaml --variant gpu --save
"""

from learning import arguments, learn

if __name__ == "__main__":
    options = arguments(__doc__, "configs/household.yaml")
    learn(options, "household", {"minutes, evaluation included": ("at most 45", lambda m: m <= 45)})
