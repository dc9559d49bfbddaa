"""What each step does: one module per stage = command = TOML section."""
