"""Measuring: reference vectors, benchmarks."""
