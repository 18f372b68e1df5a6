"""Campaigns of `benchmarks/robustness.py`: each gives cases, which say what went wrong and what was said."""
