"""What `pipeline.distill` says in one line each, every stage resumable on its own."""
