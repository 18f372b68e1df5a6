"""The parts of `algorithms.py`: what is compared, one run of it, and what came out."""
