"""The parts of `algorithms.py`: what is compared, how it is run, and the results."""
