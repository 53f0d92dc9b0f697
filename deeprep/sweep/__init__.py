"""Many runs of `python -m deeprep.run`, and what they show together: `python -m deeprep.sweep`.

A sweep is every combination of some values of the flags of run, its grid, for every one of some
seeds. Its directory holds

sweep.json        the grid, the seeds, and the settings of every run
runs/<name>/      a directory of `deeprep.run` for each
outcomes/*.json   how each of them ended: finished, failed and why, or stopped
logs/*.txt        what each of them printed
table.csv         a row a point of the grid: final loss, accuracy and rates, mean and std over seeds
figure.png        C_l and D_l of every point, with a band over seeds

of which the last two are written anew whenever a sweep ends or stops.
"""
