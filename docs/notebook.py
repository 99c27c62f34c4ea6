# %% From records to a table of speedups: open as a notebook (Jupytext, VS Code) or run from the repository's root.
import xdit_bench.results

frame = xdit_bench.results.load("results/quickstart")
frame["runner"] = frame.engine + "/" + frame.execution
ok = frame[frame.ok]

# %% The best split of every size and GPU count, beside plain diffusers on one GPU
best = ok.loc[ok[ok.engine == "usp"].groupby(["res", "gpus"]).total_s.idxmin()]
stock = ok[(ok.engine == "stock") & (ok.gpus == 1)].groupby("res").total_s.min()
best["gain"] = best.res.map(stock) / best.total_s
print(best[["res", "gpus", "ulysses", "ring", "runner", "total_s", "gain", "peak_bytes"]].to_string(index=False))

# %% Where the time goes
print(ok.groupby(["runner", "res"])[["text_s", "denoise_s", "vae_s"]].min())

# %% What failed, and why
print(frame.loc[~frame.ok, ["res", "gpus", "status", "reason"]].to_string(index=False))

# %% Raw samples: the spread of each point in percent
spread = ok.set_index(["runner", "ulysses", "ring", "res"]).samples.map(lambda s: 100 * (max(s) / min(s) - 1))
print(spread.round(1))
