"""The optimizer: pure functions over models. No I/O, no clock; randomness is an argument."""
