"""What the built-in model's training adds to the paper's: later stages and their losses."""
