"""How many draft blocks a device can afford."""
