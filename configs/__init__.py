"""One file per experiment: the default and the keys that differ."""
