"""What a training costs on many cards: a model of its step, and what the processes do besides computing."""
