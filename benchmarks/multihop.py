"""Does StepPO turn a weak searcher into a good one, and in how many minutes?

python benchmarks/multihop.py --save
python benchmarks/multihop.py --config configs/multihop_hard.yaml --variant hard --save
"""

from learning import arguments, learn, save_credit

if __name__ == "__main__":
    options = arguments(__doc__, "configs/quickstart.yaml")
    goals = {"success, main split, sampled, after RL": ("at least 0.90", lambda v: v >= 0.90)}
    if options.variant != "hard":
        goals |= {
            "success, main split, sampled, before RL": ("at most 0.30", lambda v: v <= 0.30),
            "success, main split, greedy, before RL": ("at most 0.45", lambda v: v <= 0.45),
            "success, main split, greedy, after RL": ("at least 0.98", lambda v: v >= 0.98),
            "minutes, evaluation included": ("at most 3", lambda m: m <= 3),
        }
    done = learn(options, "multihop", goals)
    if options.save and not options.variant:
        save_credit(done, "multihop")
