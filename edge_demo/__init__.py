"""What ships to the device: bundle, preprocessing, runtimes, decoding, camera, demo. Imports no training stack."""

__version__ = "0.1.0"
