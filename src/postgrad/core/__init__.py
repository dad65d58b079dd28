"""Types, errors, config, run directory, models, data and report: what every room stands on."""
