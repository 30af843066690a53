"""The console scripts: the only place that parses arguments, prints and exits."""
