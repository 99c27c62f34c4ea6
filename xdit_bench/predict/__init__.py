"""The performance model: seconds, memory and verdicts of a point on a machine that is not here. Imports no torch.

workload.py   FLOPs, bytes and shapes of every stage, from the model's own config
profiles.py   what each engine does differently, as counts
roofline.py   seconds of compute on one GPU, with efficiency by size
network.py    seconds over the hierarchy of links, all groups of a placement at once
step.py       one denoising step, term by term, and the launch floor
text.py       the text stage
utilisation.py model FLOPs of a step over the GPUs' peak
decode.py     the VAE decode: plain, tiled, in row bands
memory.py     peaks of a rank and the three verdicts
model.py      the sum by stage, its interval, its warnings
records.py    a prediction as a record
advice.py     which split of a machine to use; ties
fit.py        a topology's free numbers corrected by published latencies; leave-one-out
published.py  reference figures as points
compared.py   samples, sets of them, their errors
measured.py   the model against our own studies, from a machine's own calibrated file where there is one
validation.py errors, regrets and facts, published and measured apart
points.py     models and points without Hydra
"""
