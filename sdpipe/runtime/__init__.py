"""How the networks run: device, dtype, speed, memory."""
