"""How the networks run: device, number type, speed, memory."""
