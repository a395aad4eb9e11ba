"""What the built-in model learns from: images of emoji, and captions in many words."""
