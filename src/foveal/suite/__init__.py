"""The field's benchmarks, scored by lmms-eval: their data, the plugin, and runs beside each other and beside papers.

Nothing is imported here: lmms-eval loads the plugin's manifest at every start, whatever model it runs.
"""

__all__: list[str] = []
