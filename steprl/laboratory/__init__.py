"""The laboratory: whole experiments as one compiled program, their statistics and pictures."""
