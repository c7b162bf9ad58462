"""One benchmark of everything that can sample a diffusion model on this machine, in turn, each in a process of its own.

    python -m tools.bench build                          # the models, their bundles, and the graphs of ONNX Runtime's own tool
    python -m tools.bench run digits --batch 1 --batch 8 # a JSON file for each batch under build/bench/digits
    python -m tools.bench start digits                   # how soon sampling starts, what a swap costs, memory
    python -m tools.bench page build/bench/*/*.json > docs/benchmark.md

The contestants take turns, so that a machine that slows down slows them all: ratios are the result, absolute times belong to the machine.
"""
