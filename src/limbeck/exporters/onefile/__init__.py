"""What the one-file Python target is made of: the policy that plays and the source of what it needs."""
