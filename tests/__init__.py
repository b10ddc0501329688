"""Tests: ``test_x.py`` for every ``x``."""
