"""The parts of `critics.py`: what is compared, how it is run, and the results."""
