"""Benchmark everything that can sample a diffusion model on this machine; each contestant runs in its own process.

    python -m tools.bench build                          # the models, their bundles, and the graphs of ONNX Runtime's own tool
    python -m tools.bench run digits --batch 1 --batch 8 # a JSON file for each batch under build/bench/digits
    python -m tools.bench start digits                   # start-up time, cost of an engine swap, memory
    python -m tools.bench profile digits                 # milliseconds of a network call by kind of operator
    python -m tools.bench page build/bench/*/*.json > docs/benchmark.md

The contestants take turns, so that a slowdown of the machine affects them all. Compare ratios; absolute times depend on the machine.
"""
