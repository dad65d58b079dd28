"""One file per verb: reads the config, assembles rooms, writes the run. The only place where rooms meet."""
