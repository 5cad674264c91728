"""One server for every model of `models/`: look up features, score, write down, answer."""
