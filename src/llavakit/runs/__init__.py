"""Long runs over a model: many requests under way, and results on disk that survive a kill.

Knows neither documents nor benchmarks, which use it.
"""
