"""Micro-benchmarks that fill a topology file. Needs torch; the model that reads the file does not.

clock.py    seconds of one call on a device that is kept busy
shapes.py   the exact shapes that are measured
compute.py  products, attention, memory, launches, a layer of T5 and the VAE's operators on one device
launcher.py torch's launcher, which ends with the process that calibrates
ranks.py    exchanges between ranks by size and placement
numbers.py  the model's formulas, solved for its shares of peak and its links
machine.py  measures this machine and writes its YAML
"""

HEADER = "# Measured by `python -m xdit_bench.calibrate`"  # what a file of ours begins with, and nobody else's
MODELS = {"cuda": "flux_schnell", "cpu": "flux_tiny"}  # whose shapes are measured on a device of that kind
