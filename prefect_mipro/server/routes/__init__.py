"""Thin routes: parse by signature, one service call, a model back."""
