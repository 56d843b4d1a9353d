"""Shared by the tests: tiny models, inputs, and the masked oracle."""
