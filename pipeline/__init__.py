"""What people type: commands, config, the run, the report. No torch at import."""

from edge_demo import __version__

__all__ = ["__version__"]
