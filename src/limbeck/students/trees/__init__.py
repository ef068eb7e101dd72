"""Students that people can read, found by search in the collected rows: trees, oblique trees, controllers of few numbers."""
