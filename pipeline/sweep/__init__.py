"""Sweep: many runs of the pipeline over a space of config keys, chosen by what val says. Test is never evaluated.

It drives the run engine, so it lives here and not among the stages; its settings are `stages.spec.SweepConfig`.

    plan.py      the space: which keys, which values, and the config of a trial
    study.py     Optuna: storage, what to try next, who works on what, what a killed process left
    trial.py     one trial: a real run folder, up to the weights or up to the INT8 file's latency
    latency.py   the stage that ends a trial when latency is an objective
    document.py  what sweep.json holds
    results.py   the best, or the Pareto front: TOMLs, table, sentences
    picture.py   the Pareto front as a picture
    run.py       the loop
"""
