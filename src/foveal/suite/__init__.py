"""The field's benchmarks, scored by lmms-eval: their data, the plugin, and runs beside each other and beside papers."""

from foveal.suite.benchmarks import BENCHMARKS, SUITES, Benchmark, average
from foveal.suite.harness import SuiteRun, run_suite

__all__ = ["BENCHMARKS", "SUITES", "Benchmark", "SuiteRun", "average", "run_suite"]
