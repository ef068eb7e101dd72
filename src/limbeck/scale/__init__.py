"""Work above single runs: many distillations that share one folder."""
